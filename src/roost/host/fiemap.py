"""Where a file's blocks lie, and which of them others share (FIEMAP)."""

from __future__ import annotations

import fcntl
import struct
from pathlib import Path
from typing import NamedTuple

_FS_IOC_FIEMAP = 0xC020660B
_HEADER = struct.Struct("=QQLLLL")  # start, length, flags, mapped, count, reserved
_EXTENT = struct.Struct("=QQQ16xL12x")  # logical, physical, length, flags
_LAST, _UNKNOWN, _DELAYED, _SHARED = 0x1, 0x2, 0x4, 0x2000
_AT_ONCE = 1024
_ALL = 2**64 - 1


class Extent(NamedTuple):
    """Bytes. ``shared``: another file has it, too; only then its place means anything."""

    start: int
    length: int
    shared: bool


def extents(path: Path) -> list[Extent]:
    """In the file's order; holes are none. What is not written out yet has no place and is nobody else's."""
    found: list[Extent] = []
    buffer = bytearray(_HEADER.size + _AT_ONCE * _EXTENT.size)
    at = 0
    with open(path, "rb", buffering=0) as file:
        while True:
            _HEADER.pack_into(buffer, 0, at, _ALL - at, 0, 0, _AT_ONCE, 0)
            fcntl.ioctl(file, _FS_IOC_FIEMAP, buffer)
            mapped = _HEADER.unpack_from(buffer)[3]
            end = _HEADER.size + mapped * _EXTENT.size
            flags = _LAST
            for logical, physical, length, flags in _EXTENT.iter_unpack(buffer[_HEADER.size : end]):
                shared = flags & (_SHARED | _UNKNOWN | _DELAYED) == _SHARED
                found.append(Extent(physical, length, shared))
                at = logical + length
            if flags & _LAST:
                return found
