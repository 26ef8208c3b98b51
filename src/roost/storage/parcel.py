"""A snapshot as one file: what is in the pool of it, packed as it is read and read without believing any of it.

A tar of members whose names say nothing to the host but which part they are:

    manifest.json         first: format, what the snapshot is of, how many bytes each part has
    PART/OFFSET           Zstandard frames of PIECE bytes at most of a part ("disk", "memory-0", ...), at a multiple of
                          PIECE; in order, and what is missing is zeros
    end.json              last: {"sha256": of every byte before it}

Packing holds one piece, its frame and nothing else. ``read`` wants the whole file on the disk: nothing becomes a
snapshot before its digest was right.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zstandard

from roost.errors import InvalidRequestError

FORMAT, VERSION = "roost-snapshot", 1
PIECE = 4 << 20
MAX_JSON = 4 << 20
MAX_PART = 2 << 40
MAX_PARTS = 64
LEVEL = 3
ROOM = 64 << 20  # asked for at a time
_BLOCK = 512
_GRAIN = 64 * 1024  # what is zeros for so long stays a hole
_ZEROS = bytes(PIECE)
_NAME = re.compile(r"(disk|memory-[0-9]{1,2})/([0-9a-f]{12})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Part:
    name: str  # "disk" or "memory-N"
    path: Path


def pack(manifest: Mapping[str, Any], parts: Sequence[Part]) -> Iterator[bytes]:
    """The file, in pieces. Blocking; the parts must not change meanwhile."""
    total = hashlib.sha256()
    sizes = {part.name: part.path.stat().st_size for part in parts}
    said = {"format": FORMAT, "version": VERSION, **manifest, "parts": sizes, "piece": PIECE}
    compressor = zstandard.ZstdCompressor(level=LEVEL)

    def member(name: str, data: bytes) -> bytes:
        piece = b"".join((_header(name, len(data)), data, bytes(-len(data) % _BLOCK)))
        total.update(piece)
        return piece

    yield member("manifest.json", json.dumps(said).encode())
    for part in parts:
        with part.path.open("rb") as file:
            for offset in _written(file, sizes[part.name]):
                data = os.pread(file.fileno(), PIECE, offset)
                if data != _ZEROS[: len(data)]:
                    yield member(f"{part.name}/{offset:012x}", compressor.compress(data))
    yield member("end.json", json.dumps({"sha256": total.hexdigest()}).encode())
    yield bytes(2 * _BLOCK)


def _written(file: IO[bytes], size: int) -> Iterator[int]:
    """Offsets of pieces that have anything."""
    fd, at = file.fileno(), 0
    while at < size:
        try:
            found = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # nothing but a hole is left
            return
        offset = found - found % PIECE
        yield offset
        at = offset + PIECE


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info.tobuf(tarfile.USTAR_FORMAT)


class Parcel:
    """A file that somebody sent. Raises INVALID_BODY for what is none, or was changed on its way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = path.stat().st_size
        with path.open("rb") as file:
            _, name, size = self._next(file)
            if name != "manifest.json" or size > MAX_JSON:
                raise bad("it is no snapshot of Roost's")
            self.manifest = _json(_exactly(file, size))
            self._first = file.tell() + -size % _BLOCK
        self.parts = self._parts()

    def _parts(self) -> dict[str, int]:
        if self.manifest.get("format") != FORMAT:
            raise bad("it is no snapshot of Roost's")
        if self.manifest.get("version") != VERSION or self.manifest.get("piece") != PIECE:
            raise bad(
                f"it is of version {str(self.manifest.get('version'))[:20]}, and this Roost reads {VERSION}"
            )
        parts = self.manifest.get("parts")
        if not isinstance(parts, dict) or "disk" not in parts or len(parts) > MAX_PARTS:
            raise bad("it does not say what is in it")
        for name, size in parts.items():
            whole = isinstance(size, int) and not isinstance(size, bool)
            if not _NAME.fullmatch(f"{name}/{0:012x}") or not whole or not 0 <= size <= MAX_PART:
                raise bad("a part of it cannot be")
        return dict(parts)

    def unpack(
        self,
        into: Mapping[str, Path],
        tell: Callable[[int], None] = lambda taken: None,
        room: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Writes the parts named there, sparse, and proves the digest of all. Blocking; ``tell`` hears how many bytes
        were read, ``room`` is asked for so many more before they are written, and may raise. Files that were begun are
        the caller's to take away when this raises."""
        total = hashlib.sha256()
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        files: dict[str, IO[bytes]] = {}
        places = dict.fromkeys(self.parts, 0)
        left = 0  # of what was asked for
        try:
            for name, path in into.items():
                files[name] = path.open("xb")
                os.chmod(path, 0o600)
                os.truncate(path, self.parts[name])
            with self.path.open("rb") as source:
                total.update(_exactly(source, self._first))
                while True:
                    head, name, size = self._next(source)
                    if name == "end.json" and size <= MAX_JSON:
                        self._ended(_json(_exactly(source, size)), total.hexdigest())
                        return
                    match = _NAME.fullmatch(name)
                    part = match[1] if match else ""
                    offset = int(match[2], 16) if match else -1
                    if part not in self.parts or size > 2 * PIECE:
                        raise bad("there is something in it that has no place")
                    if offset % PIECE or not places[part] <= offset < max(self.parts[part], 1):
                        raise bad("its pieces are not in order")
                    places[part] = offset + PIECE
                    data = _exactly(source, size + -size % _BLOCK)
                    total.update(head)
                    total.update(data)
                    if part in files:
                        whole = min(PIECE, self.parts[part] - offset)
                        if left < whole:
                            room(ROOM)
                            left = ROOM
                        left -= whole
                        piece = _inflated(decompressor, data[:size], whole)
                        _put(files[part].fileno(), offset, piece)
                    tell(source.tell())
        finally:
            for file in files.values():
                file.close()

    def _next(self, file: IO[bytes]) -> tuple[bytes, str, int]:
        block = file.read(_BLOCK)
        try:
            info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        except (tarfile.HeaderError, ValueError) as failure:
            raise bad("it is damaged, or breaks off") from failure
        if info.type != tarfile.REGTYPE or not 0 <= info.size <= self._size:
            raise bad("there is something in it that has no place")
        return block, info.name, info.size

    @staticmethod
    def _ended(said: Mapping[str, Any], found: str) -> None:
        if said.get("sha256") != found:
            raise bad("its digest is not the one it was made with")


def _inflated(decompressor: zstandard.ZstdDecompressor, data: bytes, size: int) -> bytes:
    try:
        if zstandard.frame_content_size(data) != size:
            raise bad("a piece of it is of another size than it should be")
        return decompressor.decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as failure:
        raise bad("a piece of it is damaged") from failure


def _put(fd: int, offset: int, piece: bytes) -> None:
    """Without what is zeros."""
    for at in range(0, len(piece), _GRAIN):
        part = piece[at : at + _GRAIN]
        if part != _ZEROS[: len(part)]:
            os.pwrite(fd, part, offset + at)


def _exactly(file: IO[bytes], count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise bad("it breaks off")
    return data


def _json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as failure:
        raise bad("what it says of itself cannot be read") from failure
    if not isinstance(value, dict):
        raise bad("what it says of itself cannot be read")
    return value


def bad(why: str) -> InvalidRequestError:
    return InvalidRequestError(f"The file cannot be imported: {why}.", code="INVALID_BODY")
