"""What is in an image, as a digest: of its blocks that are not all zeros, and where they lie."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

BLOCK = 1 << 20
_ZEROS = bytes(BLOCK)


def digest(path: Path) -> str:
    """The same however the file's holes lie. Reads all that is allocated."""
    total = hashlib.sha256(b"roost-disk 1\n")
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        total.update(f"{size}\n".encode())
        done = 0  # blocks before it were looked at
        at = 0
        while at < size:
            try:
                start = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as failure:
                if failure.errno != errno.ENXIO:
                    raise
                break
            end = os.lseek(fd, start, os.SEEK_HOLE)
            block = max(done, start - start % BLOCK)
            while block < end:
                data = os.pread(fd, BLOCK, block)
                if data != _ZEROS[: len(data)]:
                    total.update(f"{block}\n".encode())
                    total.update(data)
                block += BLOCK
            done = block
            at = max(end, block)
    finally:
        os.close(fd)
    return f"sha256:{total.hexdigest()}"
