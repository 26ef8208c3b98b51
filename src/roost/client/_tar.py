"""Trees as tar streams on the user's machine: packed as they are, unpacked as if hostile.

What comes from a machine is whatever its guest wants. ``Unpacker`` is fed bytes and holds no more than
one block and one small header in memory. It never leaves the destination: every directory on the way
to an entry is opened below the destination without following links, files are made anew, links are
made last and only where their target stays inside, devices and sparse files are refused, setuid bits
dropped, names, entries and bytes bounded. (``tarfile``'s own extraction filter has been escaped
before; only its header parser is used here.)
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NoReturn

from roost.errors import error

BLOCK = 512
CHUNK = 1 << 20
MAX_HEADER = 1 << 20  # bytes of one extended header
MAX_PATH = 4096

_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


@dataclass(slots=True)
class Transfer:
    """What a copy did. ``skipped`` are links that point outside the tree: not made."""

    entries: int = 0
    bytes: int = 0
    skipped: list[str] = field(default_factory=list)


def _bad(what: str) -> NoReturn:
    raise error("INVALID_PATH", f"The machine sent a tree that is not safe to unpack: {what}.")


class Unpacker:
    """``feed`` the stream, then ``finish``; ``close`` in any case. The destination must exist."""

    def __init__(
        self, destination: Path, *, max_entries: int = 1_000_000, max_bytes: int = 1 << 40
    ) -> None:
        self.done = Transfer()
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._root = os.open(destination, os.O_RDONLY | os.O_DIRECTORY)
        self._buffer = bytearray()
        self._file: IO[bytes] | None = None
        self._left = 0  # bytes of the present entry's content
        self._pad = 0
        self._special: tuple[bytes, bytearray] | None = None
        self._pax: dict[str, str] = {}
        self._links: list[tuple[list[str], str]] = []
        self._modes: list[tuple[list[str], int]] = []
        self._ended = False

    def __enter__(self) -> Unpacker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def feed(self, data: bytes) -> None:
        """Raises InvalidRequestError INVALID_PATH at the first thing that is not safe; OSError."""
        view = memoryview(data)
        while len(view):
            if self._left:
                view = self._content(view)
            elif self._pad:
                cut = min(self._pad, len(view))
                self._pad -= cut
                view = view[cut:]
            else:
                cut = min(BLOCK - len(self._buffer), len(view))
                self._buffer += view[:cut]
                view = view[cut:]
                if len(self._buffer) == BLOCK:
                    block = bytes(self._buffer)
                    self._buffer.clear()
                    self._header(block)

    def finish(self) -> Transfer:
        """Makes the links and directory modes. Raises where the stream broke off."""
        if self._left or self._buffer or not self._ended:
            raise error("AGENT_LOST", "The tree broke off in the middle; what came was kept.")
        for parts, target in self._links:
            self._link(parts, target)
        for parts, mode in reversed(self._modes):
            parent = self._parent(parts)
            try:
                os.chmod(parts[-1], mode, dir_fd=parent)
            finally:
                os.close(parent)
        return self.done

    def _content(self, view: memoryview) -> memoryview:
        cut = min(self._left, len(view))
        if self._special is not None:
            self._special[1].extend(view[:cut])
        elif self._file is not None:
            self._file.write(view[:cut])
        self._left -= cut
        if not self._left:
            self._entry_end()
        return view[cut:]

    def _entry_end(self) -> None:
        if self._special is not None:
            self._extend(*self._special)
            self._special = None
        elif self._file is not None:
            self._file.close()
            self._file = None

    def _header(self, block: bytes) -> None:
        if self._ended or not any(block):
            self._ended = True
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as exc:
            _bad(f"a header is damaged ({exc})")
        extended = info.type in _PAX or info.type in (
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        )
        if not extended:
            self._apply_pax(info)
        if info.size < 0:
            _bad("an entry of negative size")
        size = info.size if extended or info.type in _FILES else 0
        self._left, self._pad = size, -size % BLOCK
        if extended:
            if size > MAX_HEADER:
                _bad("an oversized header")
            self._special = (info.type, bytearray())
        else:
            self._entry(info)
        if not size:
            self._entry_end()

    def _extend(self, kind: bytes, data: bytearray) -> None:
        if kind == tarfile.GNUTYPE_LONGNAME:
            self._pax["path"] = bytes(data).rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif kind == tarfile.GNUTYPE_LONGLINK:
            self._pax["linkpath"] = bytes(data).rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif kind != tarfile.XGLTYPE:
            self._pax.update(_pax_records(bytes(data)))

    def _apply_pax(self, info: tarfile.TarInfo) -> None:
        pax, self._pax = self._pax, {}
        if any(name.startswith("GNU.sparse") for name in pax):
            _bad("a sparse file")
        info.name = pax.get("path", info.name)
        info.linkname = pax.get("linkpath", info.linkname)
        if "size" in pax:
            if not pax["size"].isdecimal() or len(pax["size"]) > 18:
                _bad("a size that is no number")
            info.size = int(pax["size"])

    def _entry(self, info: tarfile.TarInfo) -> None:
        parts = _parts(info.name)
        self.done.entries += 1
        if self.done.entries > self._max_entries:
            _bad(f"more than {self._max_entries} entries")
        if info.type in _FILES:
            self.done.bytes += info.size
            if self.done.bytes > self._max_bytes:
                _bad(f"more than {self._max_bytes} bytes")
            if not parts:
                _bad("a file without a name")
            self._file = self._create(parts, info.mode & 0o777)
        elif info.type == tarfile.DIRTYPE:
            if parts:
                os.close(self._directory(parts))
                self._modes.append((parts, info.mode & 0o777 | 0o700))
        elif info.type == tarfile.SYMTYPE:
            if not parts:
                _bad("a link without a name")
            self._links.append((parts, info.linkname))
        elif info.type == tarfile.LNKTYPE:
            self._hard_link(parts, _parts(info.linkname))
        else:
            _bad(f"{_show(info.name)} is neither file, directory nor link")

    def _directory(self, parts: list[str]) -> int:
        """A descriptor of the directory, made where it is missing; no link is followed."""
        here = os.dup(self._root)
        for name in parts:
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=here)
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                below = os.open(name, flags, dir_fd=here)
            except OSError as exc:
                if isinstance(exc, NotADirectoryError) or exc.errno == errno.ELOOP:
                    _bad(f"{_show('/'.join(parts))} goes through something that is no directory")
                raise
            finally:
                os.close(here)
            here = below
        return here

    def _parent(self, parts: list[str]) -> int:
        return self._directory(parts[:-1])

    def _create(self, parts: list[str], mode: int) -> IO[bytes]:
        parent = self._parent(parts)
        try:
            _clear(parts[-1], parent)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            made = os.open(parts[-1], flags, 0o600, dir_fd=parent)
        finally:
            os.close(parent)
        os.fchmod(made, mode | 0o600)
        return open(made, "wb")

    def _hard_link(self, parts: list[str], target: list[str]) -> None:
        if not parts or not target:
            _bad("a link without a name")
        there, here = self._parent(target), self._parent(parts)
        try:
            try:
                kind = os.stat(target[-1], dir_fd=there, follow_symlinks=False)
            except FileNotFoundError:
                _bad(f"{_show('/'.join(parts))} links to what is not in the tree")
            if not stat.S_ISREG(kind.st_mode):
                _bad(f"{_show('/'.join(parts))} links to something that is no file")
            if target == parts:
                return
            _clear(parts[-1], here)
            os.link(target[-1], parts[-1], src_dir_fd=there, dst_dir_fd=here, follow_symlinks=False)
        finally:
            os.close(there)
            os.close(here)

    def _link(self, parts: list[str], target: str) -> None:
        if not _stays_inside(len(parts) - 1, target):
            self.done.skipped.append("/".join(parts))
            return
        parent = self._parent(parts)
        try:
            _clear(parts[-1], parent)
            os.symlink(target, parts[-1], dir_fd=parent)
        finally:
            os.close(parent)


def _clear(name: str, parent: int) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    except (IsADirectoryError, PermissionError):
        _bad(f"{_show(name)} would replace a directory")


def _stays_inside(depth: int, target: str) -> bool:
    """True if a link ``depth`` directories below the root cannot lead out.

    Only leading ``..`` count as known: the link's own directories are real ones, but a later ``..``
    may come after another link, where its meaning is the guest's to choose.
    """
    parts = [p for p in target.split("/") if p not in ("", ".")]
    up = 0
    while up < len(parts) and parts[up] == "..":
        up += 1
    inside = not target.startswith("/") and up <= depth and ".." not in parts[up:]
    return inside and 0 < len(target) <= MAX_PATH and "\0" not in target


def _parts(name: str) -> list[str]:
    if "\0" in name or len(name) > MAX_PATH:
        _bad("a name that no file has")
    if name.startswith("/"):
        _bad(f"the absolute name {_show(name)}")
    parts = [p for p in name.split("/") if p not in ("", ".")]
    if ".." in parts:
        _bad(f"the name {_show(name)}")
    return parts


def _show(name: str) -> str:
    return ascii(name[:200])


def _pax_records(data: bytes) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 12)
        if space < 0 or not data[at:space].isdigit():
            _bad("a damaged header")
        end = at + int(data[at:space])
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end > len(data) or end <= space or not equals:
            _bad("a damaged header")
        yield key.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape")
        at = end


def pack(root: Path) -> Iterator[bytes]:
    """``root``'s contents as a pax tar, names relative to it; what is neither file, directory nor link
    is left out. A file that changes while it is read keeps the size it had at first."""
    for folder, names, files in os.walk(root, followlinks=False):
        here = Path(folder)
        entries = sorted(files) + [n for n in names if (here / n).is_symlink()]
        if here != root:
            yield _head(here, here.relative_to(root))
        for name in entries:
            path = here / name
            info = path.lstat()
            if stat.S_ISREG(info.st_mode):
                yield from _file(path, path.relative_to(root))
            elif stat.S_ISLNK(info.st_mode):
                yield _head(path, path.relative_to(root))
    yield bytes(2 * BLOCK)


def _head(path: Path, name: Path, size: int = 0, source: os.stat_result | None = None) -> bytes:
    found = source or path.lstat()
    info = tarfile.TarInfo(name.as_posix())
    info.mode = stat.S_IMODE(found.st_mode)
    info.mtime = int(found.st_mtime)
    info.size = size
    if stat.S_ISDIR(found.st_mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(found.st_mode):
        info.type = tarfile.SYMTYPE
        info.linkname = os.readlink(path)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _file(path: Path, name: Path) -> Iterator[bytes]:
    with open(path, "rb") as source:
        found = os.fstat(source.fileno())
        left = found.st_size
        yield _head(path, name, left, found)
        while left:
            chunk = source.read(min(CHUNK, left))
            if not chunk:
                chunk = bytes(min(CHUNK, left))
            left -= len(chunk)
            yield chunk
    if pad := -found.st_size % BLOCK:
        yield bytes(pad)
