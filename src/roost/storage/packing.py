"""A machine's directory as a tar, for the disk it gets when it goes up the ladder.

Whoever ran in it made it as they liked, and may still be at it: everything is opened below descriptors and no link is
followed. Files, directories and links are packed with their modes and times; sockets, FIFOs and devices are left out, so is
what belongs to another than the directory does (a link to somebody's file, say), and so are owners: whoever unpacks it says
whose it is.
"""

from __future__ import annotations

import asyncio
import os
import stat
import tarfile
from collections.abc import AsyncGenerator
from pathlib import Path

from roost.errors import CapacityError, InvalidRequestError
from roost.host import files

_PIECE = 1 << 20
_DEEPEST = 200  # a descriptor a level
_KEPT = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)


def pack(directory: Path, target: Path, most: int) -> None:
    """Durable on return; on failure there is no ``target``. Raises MACHINE_DISK_FULL before it is larger than ``most``
    bytes: a file of nothing but a hole counts in full."""
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
    owner = directory.stat().st_uid
    for at, names, others, fd in os.fwalk(directory, follow_symlinks=False):
        below = os.path.relpath(at, directory)
        if below.count("/") >= _DEEPEST:
            raise InvalidRequestError(
                f"The directory {below[:200]} lies too deep to be packed: {_DEEPEST} levels at most."
            )
        for name in sorted((*names, *others)):
            path = name if below == "." else f"{below}/{name}"
            _add(tar, fd, name, path, owner, most)


def _add(tar: tarfile.TarFile, fd: int, name: str, path: str, owner: int, most: int) -> None:
    _require(tar.offset, most)
    info = os.stat(name, dir_fd=fd, follow_symlinks=False)
    kind = stat.S_IFMT(info.st_mode)
    if kind not in _KEPT or info.st_uid != owner:
        return
    entry = tarfile.TarInfo(path)
    entry.mode, entry.mtime = stat.S_IMODE(info.st_mode) & 0o777, info.st_mtime
    _require(tar.offset, most)
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
            if (
                not stat.S_ISREG(held.st_mode) or held.st_uid != owner
            ):  # it was another a moment ago
                return
            entry.size = held.st_size
            _require(tar.offset + held.st_size, most)
            tar.addfile(entry, file)


def _require(size: int, most: int) -> None:
    if size > most:
        raise CapacityError(
            f"What is in its directory does not fit on its disk, which has {max(0, most) >> 20} MiB beside the system: take"
            " it to a larger machine with roost cp.",
            code="MACHINE_DISK_FULL",
        )


async def pieces(tree: Path) -> AsyncGenerator[bytes, None]:
    """Of a packed one."""
    with await asyncio.to_thread(lambda: tree.open("rb")) as file:
        while piece := await asyncio.to_thread(file.read, _PIECE):
            yield piece
