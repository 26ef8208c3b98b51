"""A machine's directory as a tar, for the disk it gets when it goes up the ladder.

Whoever ran in it made it as they liked, and may still be at it: everything is opened below descriptors and no link is
followed. Files, directories and links are packed with their modes and times; sockets, FIFOs and devices are left out, and
so are owners: whoever unpacks it says whose it is.
"""

from __future__ import annotations

import asyncio
import os
import stat
import tarfile
from collections.abc import AsyncGenerator
from pathlib import Path

from roost.errors import CapacityError
from roost.host import files

_PIECE = 1 << 20
_KEPT = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)


def pack(directory: Path, target: Path, most: int) -> None:
    """Durable on return; on failure there is no ``target``. Holes of a file count as what they are read as. Raises
    MACHINE_DISK_FULL for more than ``most`` bytes, before they are written."""
    made = half(target)
    try:
        with made.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                _walk(directory, tar, most)
            file.flush()
            os.fsync(file.fileno())
        made.rename(target)
    except BaseException:
        made.unlink(missing_ok=True)
        raise
    files.sync_dir(target.parent)


def half(target: Path) -> Path:
    """As which it is there while it is being packed."""
    return target.with_name(f".{target.name}")


def _walk(directory: Path, tar: tarfile.TarFile, most: int) -> None:
    for at, names, others, fd in os.fwalk(directory, follow_symlinks=False):
        below = os.path.relpath(at, directory)
        for name in sorted((*names, *others)):
            _add(tar, fd, name, name if below == "." else f"{below}/{name}", most)


def _add(tar: tarfile.TarFile, fd: int, name: str, path: str, most: int) -> None:
    _fits(tar.offset, most)
    info = os.stat(name, dir_fd=fd, follow_symlinks=False)
    kind = stat.S_IFMT(info.st_mode)
    if kind not in _KEPT:
        return
    entry = tarfile.TarInfo(path)
    entry.mode, entry.mtime = stat.S_IMODE(info.st_mode) & 0o777, info.st_mtime
    if kind == stat.S_IFDIR:
        entry.type = tarfile.DIRTYPE
        tar.addfile(entry)
    elif kind == stat.S_IFLNK:
        entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=fd)
        tar.addfile(entry)
    else:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(name, flags, dir_fd=fd), "rb") as file:
            held = os.fstat(file.fileno())
            if not stat.S_ISREG(held.st_mode):  # it was something else a moment ago
                return
            entry.size = held.st_size
            _fits(tar.offset + entry.size, most)
            tar.addfile(entry, file)


def _fits(size: int, most: int) -> None:
    if size > most:
        raise CapacityError(
            f"What is in its directory does not fit on its disk beside the system ({most >> 20} MiB are left for it):"
            " take it to a larger machine with roost cp.",
            code="MACHINE_DISK_FULL",
        )


async def pieces(tree: Path) -> AsyncGenerator[bytes, None]:
    """Of a packed one."""
    with await asyncio.to_thread(lambda: tree.open("rb")) as file:
        while piece := await asyncio.to_thread(file.read, _PIECE):
            yield piece
