"""A directory as the context of a build: what ``.dockerignore`` leaves of it, as a tar stream.

Done where the directory lies: in the SDK for users', in the daemon for shipped recipes. Owners are root's and
nothing but files, directories and symbolic links is taken, so the same tree gives the same content anywhere.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

IGNORE = ".dockerignore"
CHUNK = 1 << 20
MAX_IGNORE = 1 << 20
END = b"\0" * 1024


class Ignore:
    """Patterns as Docker has them: the last that matches a path, or a directory above it, decides."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._rules: list[tuple[re.Pattern[str], bool]] = []
        for line in lines:
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            kept = text.startswith("!")
            text = clean(text[1:].strip() if kept else text)
            if text:
                self._rules.append((re.compile(pattern(text)), kept))

    @property
    def has_exceptions(self) -> bool:
        return any(kept for _, kept in self._rules)

    def __call__(self, name: str) -> bool:
        """``name``: relative, with slashes."""
        parts = name.split("/")
        above = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
        ignored = False
        for rule, kept in self._rules:
            if ignored == kept and any(rule.fullmatch(each) for each in above):
                ignored = not kept
        return ignored


def read_ignore(directory: Path) -> Ignore:
    try:
        with (directory / IGNORE).open("rb") as file:
            text = file.read(MAX_IGNORE).decode(errors="surrogateescape")
    except FileNotFoundError:
        return Ignore(())
    return Ignore(text.removeprefix("\ufeff").splitlines())


def clean(text: str) -> str:
    """A pattern or name without ``.``, empty parts and a slash at either end; ``..`` goes up as far as it can."""
    parts: list[str] = []
    for part in text.replace("\\\\", "\\").split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def pattern(text: str) -> str:
    """A regular expression: ``*`` and ``?`` stay within a name, ``**`` does not."""
    out = []
    at = 0
    while at < len(text):
        char = text[at]
        at += 1
        if char == "*":
            if text[at : at + 1] == "*":
                at += 1
                if text[at : at + 1] == "/":
                    at += 1
                    out.append("(?:.*/)?")
                else:
                    out.append(".*")
            else:
                out.append("[^/]*")
        elif char == "?":
            out.append("[^/]")
        elif char == "[" and (end := text.find("]", at + 1)) > 0:
            inner = text[at:end]
            negated = inner[:1] in ("^", "!")
            body = inner[1:] if negated else inner
            body = body.replace("\\", "\\\\").replace("[", "\\[").replace("^", "\\^")
            out.append(f"(?!/)[{'^' if negated else ''}{body}]")
            at = end + 1
        elif char == "\\" and at < len(text):
            out.append(re.escape(text[at]))
            at += 1
        else:
            out.append(re.escape(char))
    found = "".join(out)
    try:
        re.compile(found)
    except re.error:  # a range that is none
        return re.escape(text)
    return found


def pack(directory: Path, ignore: Ignore | None = None) -> Iterator[bytes]:
    """The tar stream, in pieces of 1 MiB at most, names in order. Raises OSError."""
    ignore = read_ignore(directory) if ignore is None else ignore
    for name, path, info in _walk(directory, ignore):
        yield from _entry(name, path, info)
    yield END


def names(directory: Path, ignore: Ignore | None = None) -> list[str]:
    """What ``pack`` takes."""
    ignore = read_ignore(directory) if ignore is None else ignore
    return [name for name, _, _ in _walk(directory, ignore)]


def _walk(directory: Path, ignore: Ignore) -> Iterator[tuple[str, str, os.stat_result]]:
    waiting = [""]
    while waiting:
        above = waiting.pop()
        with os.scandir(directory / above if above else directory) as scanned:
            found = sorted(scanned, key=lambda each: each.name)
        below = []
        for each in found:
            name = f"{above}/{each.name}" if above else each.name
            ignored = ignore(name)
            is_directory = each.is_dir(follow_symlinks=False)
            if is_directory and (not ignored or ignore.has_exceptions):
                below.append(name)
            if ignored:
                continue
            info = each.stat(follow_symlinks=False)
            if stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode) or is_directory:
                yield name, each.path, info
        waiting += reversed(below)


def header(name: str, kind: bytes, mode: int, size: int, mtime: int, link: str = "") -> bytes:
    """One entry's, root's own."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size, entry.mtime = kind, mode, size, max(0, mtime)
    entry.linkname = link
    return entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def padding(size: int) -> bytes:
    return b"\0" * (-size % tarfile.BLOCKSIZE)


def _entry(name: str, path: str, info: os.stat_result) -> Iterator[bytes]:
    mode, mtime = stat.S_IMODE(info.st_mode), int(info.st_mtime)
    if stat.S_ISLNK(info.st_mode):
        yield header(name, tarfile.SYMTYPE, 0o777, 0, mtime, os.readlink(path))
        return
    if stat.S_ISDIR(info.st_mode):
        yield header(name, tarfile.DIRTYPE, mode, 0, mtime)
        return
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        size = os.fstat(fd).st_size
        yield header(name, tarfile.REGTYPE, mode, size, mtime)
        left = size
        while left:
            piece = file.read(min(CHUNK, left))
            if not piece:
                raise OSError(f"{path} became shorter while it was read")
            left -= len(piece)
            yield piece
    if pad := padding(size):
        yield pad
