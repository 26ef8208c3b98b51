"""Files that must be whole after a power cut, and reflinks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_FICLONE = 0x40049409
_PIECE = 1 << 20
NO_REFLINK = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS)


def sync(path: Path) -> None:
    """A file's content and size; its name is its directory's matter."""
    _sync(path, 0)


def sync_dir(directory: Path) -> None:
    _sync(directory, os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(
    path: Path, data: Mapping[str, Any], *, durable: bool = True, sync_parent: bool = True
) -> None:
    """Whole or not at all: a temporary file beside it, then rename; 0600. ``sync_parent`` off leaves the
    name to a later sync of the directory."""
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(data, file, separators=(",", ":"))
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    if durable and sync_parent:
        sync_dir(path.parent)


def read_json(path: Path) -> dict[str, Any] | None:
    """None where there is none, or where it is not whole."""
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def reflink(source: Path, target: Path, *, durable: bool = True) -> None:
    """A copy that shares blocks; replaces ``target``. On failure ``target`` is not there."""
    src = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        dst = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            reflink_fd(src, dst)
            if durable:
                os.fsync(dst)
        except BaseException:
            os.unlink(target)
            raise
        finally:
            os.close(dst)
    finally:
        os.close(src)
    if durable:
        sync_dir(target.parent)


def reflink_fd(source: int, target: int) -> None:
    """The whole of a file into an empty one that is open for writing."""
    fcntl.ioctl(target, _FICLONE, source)


def rewrite(source: Path, target: Path) -> None:
    """A copy in as few pieces as the file system has room for, and that shares none with others: to clone a file costs
    by its pieces. Holes stay, but small ones. On failure ``target`` is not there."""
    with source.open("rb", buffering=0) as src, target.open("xb", buffering=0) as dst:
        try:
            os.fchmod(dst.fileno(), 0o600)
            dst.truncate(os.fstat(src.fileno()).st_size)
            for start, end in runs(src.fileno()):
                os.posix_fallocate(dst.fileno(), start, end - start)
                for at in range(start, end, _PIECE):
                    data = os.pread(src.fileno(), min(_PIECE, end - at), at)
                    if os.pwrite(dst.fileno(), data, at) != len(data):
                        raise OSError(errno.EIO, "the copy was cut short", str(target))
        except BaseException:
            target.unlink()
            raise


def runs(fd: int) -> Iterator[tuple[int, int]]:
    """Where a file has data: begin and end; what lies nearer to each other than a piece is one."""
    size, begin, end = os.fstat(fd).st_size, -1, -1
    while end < size:
        try:
            start = os.lseek(fd, max(end, 0), os.SEEK_DATA)
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                raise
            break
        if begin >= 0 and start - end >= _PIECE:
            yield begin, end
            begin = start
        begin = start if begin < 0 else begin
        end = os.lseek(fd, start, os.SEEK_HOLE)
    if begin >= 0:
        yield begin, end


def can_reflink(directory: Path) -> bool:
    """By trying."""
    with tempfile.TemporaryDirectory(prefix=".probe-", dir=directory) as probe:
        source = Path(probe) / "a"
        source.write_bytes(b"roost" * 1000)
        try:
            reflink(source, Path(probe) / "b", durable=False)
        except OSError as exc:
            if exc.errno in NO_REFLINK:
                return False
            raise
    return True
