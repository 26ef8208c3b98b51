"""The files of a machine's saved memory: made durable, described, and found to be still what they were.

A CRC tells of damage, which is all it is for: nobody but the daemon can write here. It costs an eighth of
what a cryptographic digest does, on the way to a machine that somebody waits for.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roost.errors import ConflictError
from roost.host import files

_CHUNK = 1 << 20


def seal(directory: Path) -> dict[str, Any]:
    """Durable on return; name -> size in bytes and CRC-32."""
    found: dict[str, Any] = {}
    for path in sorted(directory.iterdir()):
        files.sync(path)
        found[path.name] = {"size": path.stat().st_size, "crc32": _crc(path)}
    files.sync_dir(directory)
    return found


def check(directory: Path, sealed: Mapping[str, Any]) -> None:
    """Raises SNAPSHOT_INVALID unless the directory holds what was sealed."""
    for name, was in sealed.items():
        path = directory / Path(name).name
        try:
            size = path.stat().st_size
            if size != was["size"]:
                raise invalid(f"its file {path.name} has {size} bytes instead of {was['size']}")
            if _crc(path) != was["crc32"]:
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


def _crc(path: Path) -> int:
    value = 0
    buffer = memoryview(bytearray(_CHUNK))
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while read := file.readinto(buffer):
            value = zlib.crc32(buffer[:read], value)
    return value
