"""Writing into a tree that somebody hostile also writes: every path stays in it, no link is followed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import secrets
import stat
from pathlib import Path

from roost.host import syscalls

_RESOLVE = (
    syscalls.RESOLVE_BENEATH
    | syscalls.RESOLVE_NO_SYMLINKS
    | syscalls.RESOLVE_NO_MAGICLINKS
    | syscalls.RESOLVE_NO_XDEV
)
_CHUNK = 1 << 20
_MOST_NAMES = 10_000


class Tree:
    """A directory tree by descriptor. Paths are relative to its root, without a leading slash."""

    def __init__(self, root: Path) -> None:
        self._fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def _open(self, path: str, flags: int, mode: int = 0) -> int:
        return syscalls.openat2(self._fd, path, flags, mode, _RESOLVE)

    def directory(self, path: str) -> int:
        """Raises where any part is a link or no directory."""
        return self._open(path, os.O_RDONLY | os.O_DIRECTORY)

    def has(self, path: str) -> bool:
        """Whether there is anything, also a link; no part of the way there may be one."""
        try:
            os.close(self._open(path, os.O_PATH | os.O_NOFOLLOW))
        except OSError:
            return False
        return True

    def owner(self, path: str) -> int | None:
        """Of a directory; None where there is none, or a link on the way."""
        try:
            fd = self.directory(path)
        except OSError:
            return None
        try:
            return os.fstat(fd).st_uid
        finally:
            os.close(fd)

    def give(self, path: str, uid: int, gid: int) -> None:
        """A directory its owner, if it has another. Raises OSError as ``directory``."""
        fd = self.directory(path)
        try:
            info = os.fstat(fd)
            if (info.st_uid, info.st_gid) != (uid, gid):
                os.fchown(fd, uid, gid)
        finally:
            os.close(fd)

    def names(self, path: str) -> list[str]:
        """Of a directory's entries. Raises OSError where any part is a link or no directory, or there are more than any
        honest one has: whoever fills it shall not fill our memory."""
        fd = self.directory(path)
        try:
            with os.scandir(fd) as entries:
                found = [entry.name for entry in itertools.islice(entries, _MOST_NAMES + 1)]
        finally:
            os.close(fd)
        if len(found) > _MOST_NAMES:
            raise OSError(errno.EFBIG, f"more than {_MOST_NAMES} entries", path)
        return found

    def read(self, path: str, limit: int) -> bytes | None:
        """None where there is no such regular file, or it is larger. Never blocks on a FIFO."""
        try:
            fd = self._open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode) or info.st_size > limit:
                return None
            data = bytearray()
            while len(data) <= limit and (chunk := os.read(fd, min(_CHUNK, limit + 1))):
                data += chunk
            return bytes(data) if len(data) <= limit else None
        finally:
            os.close(fd)

    def digest(self, path: str, size: int, mode: int) -> str | None:
        """SHA-256 of a regular file of root's with exactly that size and mode; None for anything else."""
        try:
            fd = self._open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return None
        with os.fdopen(fd, "rb") as file:
            info = os.fstat(fd)
            if (
                not stat.S_ISREG(info.st_mode)
                or info.st_size != size
                or stat.S_IMODE(info.st_mode) != mode
                or info.st_uid != 0
            ):
                return None
            return hashlib.file_digest(file, "sha256").hexdigest()

    def make_directory(self, name: str, mode: int) -> None:
        """At the tree's root. What is not a directory there is put aside, never followed."""
        try:
            os.close(self.directory(name))
            return
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EXDEV):
                raise
            if exc.errno != errno.ENOENT:
                self._aside(name)
        root = self._open(".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.mkdir(name, mode, dir_fd=root)
            os.chown(name, 0, 0, dir_fd=root, follow_symlinks=False)
        finally:
            os.close(root)
        made = self.directory(name)
        try:
            os.fchmod(made, mode)  # whatever the umask
        finally:
            os.close(made)

    def make_directories(self, path: str, mode: int) -> None:
        """All that are missing of the path. Raises OSError where a part is a link or no directory."""
        above = "."
        for name in path.split("/"):
            here = name if above == "." else f"{above}/{name}"
            directory = self.directory(above)
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=directory)
                    made = self.directory(here)
                    try:
                        os.fchmod(made, mode)  # whatever the umask
                    finally:
                        os.close(made)
            finally:
                os.close(directory)
            above = here

    def _aside(self, name: str) -> None:
        root = self._open(".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.rename(
                name, f"{name}.aside-{secrets.token_hex(4)}", src_dir_fd=root, dst_dir_fd=root
            )
        finally:
            os.close(root)

    def write(self, path: str, data: bytes, mode: int) -> None:
        """Replaces the name, whatever it was (a link is replaced, not followed; a directory is put
        aside). Whole or not at all. The directory above must be a real one."""
        above, _, name = path.rpartition("/")
        directory = self.directory(above or ".")
        temporary = f".roost-{secrets.token_hex(6)}"
        try:
            fd = os.open(
                temporary,
                os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
                dir_fd=directory,
            )
            try:
                with os.fdopen(fd, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fchmod(fd, mode)
                    os.fchown(fd, 0, 0)
                try:
                    os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
                except (IsADirectoryError, OSError) as exc:
                    if exc.errno not in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
                        raise
                    aside = f"{name}.aside-{secrets.token_hex(4)}"
                    os.rename(name, aside, src_dir_fd=directory, dst_dir_fd=directory)
                    os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=directory)
                raise
        finally:
            os.close(directory)
