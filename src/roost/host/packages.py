"""What is installed of a program that machines are kept by, as its distribution tells: version, patches, or neither."""

from __future__ import annotations

import contextlib
import functools
import gzip
import os
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from roost.host import run

_DOC = Path("/usr/share/doc")
_STATUS = Path("/var/lib/dpkg/status")
_CVE = re.compile(r"CVE-\d{4}-\d{4,}")
# With what makes it a pre-release: 1.4.0-rc.1, 1.4.0~rc1+ds1, 5.17.0-0.rc5.102.fc36.
_UPSTREAM = re.compile(
    r"(\d+(?:\.\d+)*)(?:[-~](?:0\.)?(rc|alpha|beta|pre|dev)[.-]?(\d*)(?![a-z]))?", re.I
)
_TOLD = re.compile(rf"version (?:release-|0\.0~)?({_UPSTREAM.pattern})", re.I)
_PARTS = 4  # of a version, at most
# What distributions write below a changelog of which they left out the old end.
_TRIMMED = re.compile(r"^# (?:Older entries have been removed|For older changelog entries)", re.M)
_DEBIAN_KERNEL = re.compile(r"\bDebian (\d\S*)")
# Numbers of these kernels do not tell what was put into them.
_PATCHED_KERNEL = re.compile(r"generic|aws|azure|gcp|oracle|\.el\d|\.amzn|\.fc\d|-pve|ubuntu", re.I)
_TIMEOUT_S = 10.0
_MOST = 8 << 20  # of a changelog


@dataclass(frozen=True, slots=True)
class Installed:
    """``version`` is what its makers count by: numbers with dots between, and which pre-release it is of those.
    ``revision`` is the package's own, where it is from one; ``mended`` the CVEs that its changelog says are, None where there is no changelog."""

    version: str
    revision: str | None = None
    mended: frozenset[str] | None = None
    trimmed: bool = False  # of that changelog only the newest is there
    patched: bool = False  # its number may be an old one's, and its content newer

    @property
    def numbers(self) -> tuple[int, ...]:
        return numbers(self.version)


def numbers(version: str) -> tuple[int, ...]:
    """In the order of versions: a pre-release is below what it is one of, and above what was before that. Empty where
    there are none."""
    found = _UPSTREAM.search(version)
    if found is None:
        return ()
    parts = [*map(int, found[1].split(".")), *[0] * _PARTS][:_PARTS]
    if (kind := found[2]) is None:
        return (*parts, 0)
    return (*parts, -1, int(found[3] or 0) if kind.lower() == "rc" else 0)


def upstream(revision: str) -> str:
    """Of a Debian version: ``1:10.0.2+ds-2+deb13u1`` is 10.0.2, ``0.0~20240729.0-4`` is 20240729.0,
    ``1.4.0~rc1+ds1-1`` is 1.4.0~rc1."""
    bare = revision.partition(":")[2] or revision
    found = _UPSTREAM.match(bare.removeprefix("0.0~"))
    return found[0] if found else bare


State = tuple[tuple[int, int], ...]


def state(program: str) -> State:
    """Another one once the program, or any package of this host, was put in, renewed or taken away: what was found out
    before is to be looked at again."""
    found = []
    for path in (_STATUS, shutil.which(program) or ""):
        with contextlib.suppress(FileNotFoundError):
            info = os.stat(path)
            found.append((info.st_ino, info.st_mtime_ns))
    return tuple(found)


def found(program: str) -> Installed | None:
    """What is known of the program that would run; None where there is none.

    A package counts by its own numbers: another program's may have this one in it, at another version, and a file may
    have been replaced. Such a one is what it says itself that it is, and what its package's changelog says is mended.
    """
    package, said = installed(program), told(program)
    if package is None or (said is not None and said.numbers == package.numbers):
        return package or said
    return Installed(said.version if said else "", mended=package.mended)


def installed(program: str) -> Installed | None:
    """Of the package that has the program; None where it is from none, or there is no dpkg."""
    try:
        return _installed(program, state(program))
    except TimeoutError:  # not remembered: the next look may tell
        return None


@functools.lru_cache(maxsize=16)
def _installed(program: str, _: State) -> Installed | None:
    path = shutil.which(program)
    if path is None or shutil.which("dpkg-query") is None:
        return None
    for each in dict.fromkeys((path, os.path.realpath(path), path.removeprefix("/usr"))):
        try:
            owner = run.run(["dpkg-query", "-S", each], timeout_s=_TIMEOUT_S).stdout
            package = owner.partition(":")[0].partition(",")[0].strip()
            asked = ["dpkg-query", "-W", "-f=${Version}", package]
            revision = run.run(asked, timeout_s=_TIMEOUT_S).stdout.strip()
        except TimeoutError:
            raise
        except OSError:
            continue
        mended, trimmed = _changelog(package)
        return Installed(upstream(revision), revision, mended, trimmed, patched=True)
    return None


def told(program: str) -> Installed | None:
    """By what the program itself says; None where there is none."""
    try:
        return _told(program, state(program))
    except TimeoutError:
        return None


@functools.lru_cache(maxsize=16)
def _told(program: str, _: State) -> Installed | None:
    try:
        said = run.run([program, "--version"], timeout_s=_TIMEOUT_S).stdout
    except TimeoutError:
        raise
    except OSError:
        return None
    found = _TOLD.search(said)
    return Installed(found[1] if found else "")


def kernel(release: str | None = None, version: str | None = None) -> Installed:
    """The one that runs."""
    release = platform.release() if release is None else release
    debian = _DEBIAN_KERNEL.search(platform.version() if version is None else version)
    if debian is not None:
        return Installed(upstream(debian[1]), debian[1])
    return Installed(upstream(release), None, patched=_PATCHED_KERNEL.search(release) is not None)


def at_least(revision: str, other: str) -> bool:
    """As dpkg orders versions."""
    argv = ["dpkg", "--compare-versions", revision, "ge", other]
    return run.run(argv, timeout_s=_TIMEOUT_S, check=False).code == 0


def _changelog(package: str) -> tuple[frozenset[str] | None, bool]:
    for name in ("changelog.Debian.gz", "changelog.gz"):
        with contextlib.suppress(OSError, EOFError):
            with gzip.open(_DOC / package / name) as file:
                text = file.read(_MOST).decode(errors="replace")
            return frozenset(_CVE.findall(text)), _TRIMMED.search(text) is not None
    return None, False
