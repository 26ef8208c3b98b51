"""Trees of files that somebody else may be writing in: copied, measured and removed by descriptor, no link followed.

Only what belongs to ``owner`` is copied: a link that a program of the tree made to somebody else's file must not make
that file its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from roost.errors import InvalidRequestError
from roost.host import files, syscalls

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DEEPEST = 130  # descriptors of a copy are three a level
_REMEMBERED = 1_000_000  # files with several names; more are copied, or counted, by each of them
_BATCH = 1000
_MODE = 0o1777  # neither setuid nor setgid


class _Copy:
    def __init__(self, owner: tuple[int, int]) -> None:
        self._owner = owner
        self._gives = os.geteuid() == 0
        self._linked: dict[tuple[int, int], list[str]] = {}  # of files with several names

    def tree(self, source: int, target: int, path: list[str]) -> None:
        if len(path) > _DEEPEST:
            raise InvalidRequestError(
                f"The directory {'/'.join(path)[:200]} lies too deep to be copied: {_DEEPEST} levels at most."
            )
        for name in _names(source):
            try:
                info = os.stat(name, dir_fd=source, follow_symlinks=False)
            except FileNotFoundError:  # gone since
                continue
            if info.st_uid != self._owner[0]:
                continue
            with contextlib.suppress(FileNotFoundError):
                self._entry(source, target, name, info, path)

    def _entry(
        self, source: int, target: int, name: str, info: os.stat_result, path: list[str]
    ) -> None:
        if stat.S_ISDIR(info.st_mode):
            with _opened(name, _DIRECTORY, source) as below:
                os.mkdir(name, 0o700, dir_fd=target)
                with _opened(name, _DIRECTORY, target) as made:
                    self.tree(below, made, [*path, name])
                    self.dress(made, os.fstat(below))
        elif stat.S_ISLNK(info.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            if self._gives:
                os.chown(name, *self._owner, dir_fd=target, follow_symlinks=False)
        elif stat.S_ISREG(info.st_mode):
            self._file(source, target, name, path)

    def _file(self, source: int, target: int, name: str, path: list[str]) -> None:
        with _opened(name, _FILE, source) as content:
            info = os.fstat(content)
            if not stat.S_ISREG(info.st_mode) or info.st_uid != self._owner[0]:
                return
            key = (info.st_dev, info.st_ino)
            if info.st_nlink > 1 and key in self._linked and self._link(target, name, key, path):
                return
            with _opened(name, _NEW, target, 0o600) as made:
                _content(content, made, info.st_size)
                self.dress(made, info)
            if info.st_nlink > 1 and len(self._linked) < _REMEMBERED:
                self._linked[key] = [*path, name]

    def _link(self, target: int, name: str, key: tuple[int, int], path: list[str]) -> bool:
        first = "/".join([".."] * len(path) + self._linked[key])
        try:
            os.link(first, name, src_dir_fd=target, dst_dir_fd=target, follow_symlinks=False)
        except OSError:
            return False
        return True

    def dress(self, made: int, info: os.stat_result) -> None:
        if self._gives:
            os.fchown(made, *self._owner)
        os.fchmod(made, stat.S_IMODE(info.st_mode) & _MODE)
        os.utime(made, ns=(info.st_atime_ns, info.st_mtime_ns))


def copy(source: Path, target: Path, owner: tuple[int, int], *, durable: bool = True) -> None:
    """``target`` is made; its blocks are shared where the file system can. Files that are written meanwhile are as they
    happen to be. What is no file, directory or link is left out. On failure ``target`` is not there."""
    with _opened(str(source), _DIRECTORY) as below:
        os.mkdir(target, 0o700)
        try:
            with _opened(str(target), _DIRECTORY) as made:
                copying = _Copy(owner)
                copying.tree(below, made, [])
                copying.dress(made, os.fstat(below))
                if durable:
                    syscalls.syncfs(made)
        except BaseException:
            remove(target)
            raise


def allocated(path: Path) -> int:
    """Bytes on the disk of all that is in it, files with several names once, what is shared with other trees in full.
    What its owner forbade himself to look at counts nothing."""
    seen: set[int] = set()
    total = 0
    with contextlib.suppress(OSError), _opened(str(path), _DIRECTORY) as top:
        for info in _walk(top):
            if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
                if info.st_ino in seen:
                    continue
                if len(seen) < _REMEMBERED:
                    seen.add(info.st_ino)
            total += info.st_blocks * 512
    return total


def _walk(top: int, depth: int = 0) -> Iterator[os.stat_result]:
    for name in _names(top):
        with contextlib.suppress(OSError):
            info = os.stat(name, dir_fd=top, follow_symlinks=False)
            yield info
            if stat.S_ISDIR(info.st_mode) and depth < _DEEPEST:
                with _opened(name, _DIRECTORY, top) as below:
                    yield from _walk(below, depth + 1)


def remove(path: Path) -> None:
    """However deep it is, whatever its directories forbid. Idempotent; nobody may write in it any more."""
    try:
        above = os.open(path.parent, _DIRECTORY)
    except FileNotFoundError:
        return
    try:
        _remove(above, path.name)
    finally:
        os.close(above)


def _remove(above: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=above)
        return
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        pass
    with _held(_enter(name, above)) as top:
        _empty(top, top, 0)
    os.rmdir(name, dir_fd=above)


def _empty(directory: int, top: int, depth: int) -> None:
    """What lies deeper than can be held open is moved up to the top, which is emptied last."""
    while names := list(itertools.islice(_names(directory), _BATCH)):
        for name in names:
            try:
                os.unlink(name, dir_fd=directory)
                continue
            except (IsADirectoryError, PermissionError):
                pass
            if depth >= _DEEPEST:
                up = f".roost-{secrets.token_hex(8)}"
                os.rename(name, up, src_dir_fd=directory, dst_dir_fd=top)
                continue
            with _held(_enter(name, directory)) as below:
                _empty(below, top, depth + 1)
            os.rmdir(name, dir_fd=directory)


def _names(directory: int) -> Iterator[str]:
    """As they are read: whoever fills a directory shall not fill our memory."""
    with os.scandir(directory) as entries:
        for entry in entries:
            yield entry.name


def _enter(name: str, above: int) -> int:
    """A directory that can be emptied: its owner may have forbidden himself to."""
    if os.geteuid() != 0:
        os.chmod(name, 0o700, dir_fd=above)
    return os.open(name, _DIRECTORY, dir_fd=above)


def _content(source: int, target: int, size: int) -> None:
    try:
        files.reflink_fd(source, target)
        return
    except OSError as failure:
        if failure.errno not in files.NO_REFLINK:
            raise
    os.ftruncate(target, size)
    for start, end in files.runs(source):
        at = start
        while at < min(end, size):
            done = os.copy_file_range(source, target, min(end, size) - at, at, at)
            if done == 0:  # it shrank
                break
            at += done


@contextlib.contextmanager
def _opened(
    name: str, flags: int, directory: int | None = None, mode: int = 0o777
) -> Iterator[int]:
    with _held(os.open(name, flags, mode, dir_fd=directory)) as descriptor:
        yield descriptor


@contextlib.contextmanager
def _held(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
