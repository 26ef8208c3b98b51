"""The archive that a kernel unpacks as its initial RAM disk: cpio, "newc", everything root's."""

from __future__ import annotations

import stat
from collections.abc import Mapping

_MAGIC = "070701"
_END = "TRAILER!!!"


def pack(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """``files``: path without a leading slash -> (permissions, content). Their directories are made. The
    same files give the same bytes."""
    directories = {
        "/".join(path.split("/")[:depth])
        for path in files
        for depth in range(1, path.count("/") + 1)
    }
    entries = [(path, stat.S_IFDIR | 0o755, b"") for path in directories]
    entries += [(path, stat.S_IFREG | mode, content) for path, (mode, content) in files.items()]
    # A directory sorts before what lies in it.
    archive = b"".join(
        _entry(number, path, mode, content)
        for number, (path, mode, content) in enumerate(sorted(entries), start=1)
    )
    return archive + _entry(0, _END, 0, b"")


def _entry(number: int, path: str, mode: int, content: bytes) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    # inode, mode, uid, gid, links, time, size, device and special device (major, minor), name, checksum
    fields = (number, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name), 0)
    header = (_MAGIC + "".join(f"{field:08x}" for field in fields)).encode()
    return _padded(header + name) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
