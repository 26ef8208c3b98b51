"""Bodies, counted: how much of what comes belongs to this message. Sans-I/O."""

from __future__ import annotations

import re

from roost.preview.head import Refused

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILERS = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+")
_NOT_TRAILING = re.compile(
    rb"(?im)^(?:content-|transfer-|host:|authorization:|set-cookie:|cookie:|connection:|trailer:|te:|upgrade:"
    rb"|x-forwarded|forwarded:|x-api-key:|x-roost)"
)
LINE = 256  # of a chunk's size
TRAILERS = 8192
LAST = b"0\r\n\r\n"


class Fixed:
    """A body of a known length."""

    __slots__ = ("left",)

    def __init__(self, length: int) -> None:
        self.left = length

    def take(self, data: bytes) -> tuple[bytes, bool, bytes]:
        """(of the body, whether that was the last of it, what follows it)."""
        size = len(data)
        if size < self.left:
            self.left -= size
            return data, False, b""
        if size == self.left:
            self.left = 0
            return data, True, b""
        mine, rest = data[: self.left], data[self.left :]
        self.left = 0
        return mine, True, rest


class Endless:
    """A body that ends with its connection."""

    __slots__ = ()

    def take(self, data: bytes) -> tuple[bytes, bool, bytes]:
        return data, False, b""


class Chunked:
    """Gives what is inside the chunks. ``trailers``: lines after the last one, those that may go on."""

    __slots__ = ("_left", "_rest", "_state", "trailers")

    def __init__(self) -> None:
        self._left = 0
        self._rest = b""
        self._state = 0  # 0 a size, 1 data, 2 the line end after it, 3 trailers
        self.trailers = b""

    def take(self, data: bytes) -> tuple[bytes, bool, bytes]:
        """As ``Fixed``. Raises Refused for what is no chunk."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        parts: list[bytes] = []
        at, size = 0, len(data)
        while True:
            if self._state == 1:
                part = data[at : at + self._left] if at or self._left < size else data
                parts.append(part)
                at += len(part)
                self._left -= len(part)
                if self._left:
                    return _joined(parts), False, b""
                self._state = 2
            if self._state == 2:
                if size - at < 2:
                    if not b"\r\n".startswith(data[at:]):
                        raise Refused("A chunk is longer than it says.")
                    self._rest = data[at:]
                    return _joined(parts), False, b""
                if data[at : at + 2] != b"\r\n":
                    raise Refused("A chunk is longer than it says.")
                at += 2
                self._state = 0
            if self._state == 0:
                end = data.find(b"\r\n", at, at + LINE)
                if end < 0:
                    if size - at >= LINE:
                        raise Refused("A chunk's size is too long.")
                    self._rest = data[at:]
                    return _joined(parts), False, b""
                match = _SIZE.fullmatch(data, at, end)
                if match is None:
                    raise Refused("A chunk's size is no number.")
                at = end + 2
                self._left = int(match[1], 16)
                self._state = 1 if self._left else 3
                if self._left:
                    continue
            if data[at : at + 2] == b"\r\n":
                return _joined(parts), True, data[at + 2 :]
            end = data.find(b"\r\n\r\n", at, at + TRAILERS)
            if end < 0:
                if size - at >= TRAILERS:
                    raise Refused("The trailers are too long.")
                self._rest = data[at:]
                return _joined(parts), False, b""
            self.trailers = _trailers(data[at : end + 2])
            return _joined(parts), True, data[end + 4 :]


Body = Fixed | Chunked | Endless


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def _joined(parts: list[bytes]) -> bytes:
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _trailers(block: bytes) -> bytes:
    if _TRAILERS.fullmatch(block) is None:
        raise Refused("A trailer is malformed.")
    lines = block.splitlines(keepends=True)
    return b"".join(line for line in lines if _NOT_TRAILING.match(line) is None)
