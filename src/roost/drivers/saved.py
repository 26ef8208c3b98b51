"""The files of a machine's saved memory: made durable, described, and found to be still what they were.

A CRC tells of damage, which is all it is for: nobody but the daemon can write here. It costs an eighth of
what a cryptographic digest does, on the way to a machine that somebody waits for. What was read whole a moment ago
is not read again: the files' identity (inode, size, times), which whatever writes to them changes, tells siblings of
one capture, and a machine woken soon after it slept, that nothing did.
"""

from __future__ import annotations

import os
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from roost.errors import ConflictError
from roost.host import files

_CHUNK = 1 << 20
_MOMENT_S = 600.0  # what a disk does to data at rest takes longer
_KEPT = 1024

Identity = tuple[int, ...]


class Known:
    """Files read whole not long ago. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[Identity, tuple[int, float]] = {}  # -> CRC-32, when

    def add(self, identity: Identity, crc: int) -> None:
        with self._lock:
            self._found.pop(identity, None)
            self._found[identity] = (crc, time.monotonic())
            while len(self._found) > _KEPT:
                del self._found[next(iter(self._found))]

    def crc(self, identity: Identity) -> int | None:
        with self._lock:
            crc, at = self._found.get(identity, (None, 0.0))
            return crc if time.monotonic() - at < _MOMENT_S else None


def seal(
    directory: Path, known: Known, *, durable: bool = True, beside: Sequence[Path] = ()
) -> dict[str, Any]:
    """Name -> size in bytes and CRC-32, durable on return, as are the files ``beside`` it; or else, for what is of use
    for moments only and comes back from memory, size and identity."""
    paths = sorted(directory.iterdir())
    if not durable:
        return {path.name: _unread(path.stat()) for path in paths}
    found: dict[str, Any] = {}
    with ThreadPoolExecutor(1, thread_name_prefix="seal") as other:
        # Reading is the processor's work, this the disk's.
        writing = [other.submit(files.sync, path) for path in (*paths, *beside)]
        for path in paths:
            identity, crc = _read(path)
            known.add(identity, crc)
            found[path.name] = {"size": path.stat().st_size, "crc32": crc}
        for done in writing:
            done.result()
    for each in {directory, *(path.parent for path in beside)}:
        files.sync_dir(each)
    return found


def check(directory: Path, sealed: Mapping[str, Any], known: Known) -> None:
    """Raises SNAPSHOT_INVALID unless the directory holds what was sealed."""
    for name, was in sealed.items():
        path = directory / Path(name).name
        try:
            found = path.stat()
            if found.st_size != was["size"]:
                raise invalid(
                    f"its file {path.name} has {found.st_size} bytes instead of {was['size']}"
                )
            if not _is_whole(path, found, was, known):
                raise invalid(f"its file {path.name} is damaged")
        except OSError as exc:
            raise invalid(f"its file {path.name} cannot be read ({exc.strerror})") from exc


def clear(directory: Path) -> None:
    """Of the files a runtime left in it."""
    if directory.is_dir():
        for path in directory.iterdir():
            path.unlink()


def invalid(why: str, **details: Any) -> ConflictError:
    return ConflictError(
        f"The saved memory cannot be restored here: {why}. The disk is good: start the machine from it.",
        code="SNAPSHOT_INVALID",
        details=details,
    )


def _is_whole(path: Path, found: os.stat_result, was: Mapping[str, Any], known: Known) -> bool:
    if "crc32" not in was:
        return was == _unread(found)
    crc = known.crc(_identity(found))
    if crc is None:
        identity, crc = _read(path)
        known.add(identity, crc)
    return bool(crc == was["crc32"])


def _unread(found: os.stat_result) -> dict[str, Any]:
    return {"size": found.st_size, "identity": list(_identity(found))}


def _identity(found: os.stat_result) -> Identity:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _read(path: Path) -> tuple[Identity, int]:
    """The identity is from before: one that is written to meanwhile is not known afterwards."""
    value = 0
    buffer = memoryview(bytearray(_CHUNK))
    with open(path, "rb", buffering=0) as file:
        identity = _identity(os.fstat(file.fileno()))
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while read := file.readinto(buffer):
            value = zlib.crc32(buffer[:read], value)
    return identity, value
