"""Debian's cloud kernel, from its package: fetched once by the host's apt, unpacked, never installed."""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from roost.errors import UnavailableError, UnsupportedError
from roost.host import run

META_PACKAGE = "linux-image-cloud-amd64"

_DEPENDENCY = re.compile(r"^\s*Depends: (linux-image-[0-9][^\s]*)$", re.MULTILINE)
_FETCH_TIMEOUT_S = 600
_ASK_TIMEOUT_S = 60
_UNPACK_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel package."""

    version: str  # as in uname -r
    image: Path  # bzImage
    modules: Path  # /lib/modules/VERSION


def kept(directory: Path) -> Path | None:
    """The package that was fetched last, if one was."""
    found = sorted(directory.glob("*.deb"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def fetch(directory: Path) -> Path:
    """The current kernel's package, checked by apt against the archive's signature, into ``directory``.

    Raises HOST_UNSUPPORTED where there is no apt or no such kernel, DEPENDENCY_UNAVAILABLE where the mirror
    cannot be reached."""
    if platform.machine() != "x86_64" or shutil.which("apt-get") is None:
        raise UnsupportedError(
            "The guest's kernel comes from Debian's archive for amd64, and this host is not one with apt; "
            "use the drivers gvisor or runc here.",
            code="HOST_UNSUPPORTED",
        )
    partial = directory / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        name = _current()
        run.run(
            # apt's own user may not write here; what it fetched is checked all the same.
            [
                "/bin/sh",
                "-c",
                'cd "$1" && exec apt-get -q -o APT::Sandbox::User=root download "$2"',
                "-",
                str(partial),
                name,
            ],
            timeout_s=_FETCH_TIMEOUT_S,
            env=_ENV,
        )
        found = next(partial.glob("*.deb"))
        return found.rename(directory / found.name)
    except (OSError, StopIteration) as exc:
        raise UnavailableError(
            f"The guest's kernel could not be fetched: {exc}. Check that `apt-get update` works on this "
            "host, then try again.",
        ) from exc
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _current() -> str:
    """The package that the archive's meta package stands for; asks the mirror where apt knows none."""
    for attempt in range(2):
        said = run.run(
            ["apt-cache", "depends", META_PACKAGE], timeout_s=_ASK_TIMEOUT_S, env=_ENV, check=False
        )
        if match := _DEPENDENCY.search(said.stdout):
            return match[1]
        if attempt == 0:
            run.run(["apt-get", "-q", "update"], timeout_s=_FETCH_TIMEOUT_S, env=_ENV)
    raise UnsupportedError(
        f"This host's apt knows no {META_PACKAGE}; add Debian 12 to its sources, or use the drivers gvisor "
        "or runc.",
        code="HOST_UNSUPPORTED",
    )


def unpack(package: Path, target: Path) -> Kernel:
    """Into the empty directory ``target``. Raises OSError."""
    run.run(["dpkg-deb", "-x", str(package), str(target)], timeout_s=_UNPACK_TIMEOUT_S)
    images = sorted((target / "boot").glob("vmlinuz-*"))
    if len(images) != 1:
        raise OSError(f"{package.name} holds {len(images)} kernels")
    version = images[0].name.removeprefix("vmlinuz-")
    modules = target / "lib/modules" / version
    if not modules.is_dir():
        raise OSError(f"{package.name} holds no modules of {version}")
    return Kernel(version, images[0], modules)


def digest(path: Path) -> str:
    """sha256, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_ENV = {"LC_ALL": "C"}
