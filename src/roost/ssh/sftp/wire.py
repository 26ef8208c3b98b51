"""Packets of SFTP version 3, as draft-ietf-secsh-filexfer-02 has them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

MAX_PACKET = 256 * 1024 + 1024  # a write of MAX_DATA and its head
MAX_DATA = 256 * 1024  # of one read or write, as told by limits@openssh.com
_EXTENDED_ATTRS = 64


class Kind(IntEnum):
    INIT = 1
    VERSION = 2
    OPEN = 3
    CLOSE = 4
    READ = 5
    WRITE = 6
    LSTAT = 7
    FSTAT = 8
    SETSTAT = 9
    FSETSTAT = 10
    OPENDIR = 11
    READDIR = 12
    REMOVE = 13
    MKDIR = 14
    RMDIR = 15
    REALPATH = 16
    STAT = 17
    RENAME = 18
    READLINK = 19
    SYMLINK = 20
    STATUS = 101
    HANDLE = 102
    DATA = 103
    NAME = 104
    ATTRS = 105
    EXTENDED = 200
    EXTENDED_REPLY = 201


class Status(IntEnum):
    OK = 0
    EOF = 1
    NO_SUCH_FILE = 2
    PERMISSION_DENIED = 3
    FAILURE = 4
    BAD_MESSAGE = 5
    OP_UNSUPPORTED = 8


class Flag:
    """Of OPEN."""

    READ, WRITE, APPEND, CREATE, TRUNCATE, EXCLUSIVE = 1, 2, 4, 8, 16, 32


_SIZE, _OWNER, _MODE, _TIMES, _MORE = 1, 2, 4, 8, 0x80000000


class Malformed(Exception):
    """A packet that is none."""


class Refused(Exception):
    """A request's answer is this status."""

    def __init__(self, status: Status, message: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Attrs:
    """What is None is not said."""

    size: int | None = None
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None  # with the file's type, on the way out
    atime: int | None = None
    mtime: int | None = None

    def encode(self) -> bytes:
        flags, parts = 0, []
        if self.size is not None:
            flags |= _SIZE
            parts.append(struct.pack(">Q", self.size))
        if self.uid is not None and self.gid is not None:
            flags |= _OWNER
            parts.append(struct.pack(">II", self.uid, self.gid))
        if self.mode is not None:
            flags |= _MODE
            parts.append(struct.pack(">I", self.mode))
        if self.mtime is not None:
            flags |= _TIMES
            at = min(max(0, self.mtime), 0xFFFFFFFF)
            parts.append(struct.pack(">II", at, at))
        return struct.pack(">I", flags) + b"".join(parts)


class Reader:
    """The fields of a packet, in order. Raises Malformed."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def u8(self) -> int:
        return self._take(1)[0]

    def u32(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self._take(8), "big")

    def string(self) -> bytes:
        return self._take(self.u32())

    def attrs(self) -> Attrs:
        flags = self.u32()
        size = self.u64() if flags & _SIZE else None
        uid, gid = (self.u32(), self.u32()) if flags & _OWNER else (None, None)
        mode = self.u32() if flags & _MODE else None
        atime, mtime = (self.u32(), self.u32()) if flags & _TIMES else (None, None)
        if flags & _MORE:
            count = self.u32()
            if count > _EXTENDED_ATTRS:
                raise Malformed("too many attributes")
            for _ in range(2 * count):
                self.string()
        return Attrs(size, uid, gid, mode, atime, mtime)

    def _take(self, size: int) -> bytes:
        part = self._data[self._at : self._at + size]
        if len(part) != size:
            raise Malformed("a packet is shorter than its fields")
        self._at += size
        return part


class Packets:
    """Cuts a stream into packets: ``feed`` and then ``next`` until it gives None. Raises Malformed."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> None:
        self._held += data

    def next(self) -> bytes | None:
        if len(self._held) < 4:
            return None
        size = int.from_bytes(self._held[:4], "big")
        if not 1 <= size <= MAX_PACKET:
            raise Malformed(f"a packet of {size} bytes")
        if len(self._held) < 4 + size:
            return None
        packet = bytes(self._held[4 : 4 + size])
        del self._held[: 4 + size]
        return packet


def string(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def packet(kind: Kind, *fields: bytes) -> bytes:
    body = b"".join(fields)
    return struct.pack(">IB", len(body) + 1, kind) + body


def reply(kind: Kind, request: int, *fields: bytes) -> bytes:
    return packet(kind, struct.pack(">I", request), *fields)


def status(request: int, code: Status, message: str = "") -> bytes:
    said = (message or code.name.replace("_", " ").lower()).encode()
    return reply(Kind.STATUS, request, struct.pack(">I", code), string(said), string(b"en"))


def names(request: int, found: list[tuple[bytes, bytes, Attrs]]) -> bytes:
    """``found``: name, the line that ``ls -l`` shows, attributes."""
    parts = [struct.pack(">I", len(found))]
    for name, line, attrs in found:
        parts += (string(name), string(line), attrs.encode())
    return reply(Kind.NAME, request, *parts)
