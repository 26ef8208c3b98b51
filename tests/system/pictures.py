"""Pictures looked at: PNG to pixels, with the standard library alone."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Picture:
    width: int
    height: int
    pixels: bytes  # three bytes each, by rows

    def at(self, x: int, y: int) -> Colour:
        start = 3 * (y * self.width + x)
        red, green, blue = self.pixels[start : start + 3]
        return red, green, blue

    def colours(
        self, left: int = 0, top: int = 0, width: int = 0, height: int = 0
    ) -> Counter[Colour]:
        """How often each is in a part, by default the whole."""
        found: Counter[Colour] = Counter()
        for y in range(top, top + (height or self.height)):
            row = self.pixels[3 * (y * self.width + left) :][: 3 * (width or self.width)]
            found.update(zip(row[0::3], row[1::3], row[2::3], strict=True))
        return found

    def part(self, left: int, top: int, width: int, height: int) -> bytes:
        rows = (3 * (y * self.width + left) for y in range(top, top + height))
        return b"".join(self.pixels[start : start + 3 * width] for start in rows)


def close(one: Colour, other: Colour, by: int = 6) -> bool:
    return all(abs(a - b) <= by for a, b in zip(one, other, strict=True))


def png(data: bytes) -> Picture:
    """Of 8 bits a channel, RGB or RGBA, not interlaced (https://www.w3.org/TR/png/)."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n", data[:20]
    packed = b""
    width = height = kind = 0
    for name, content in _chunks(data[8:]):
        if name == b"IHDR":
            width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", content)
            assert (depth, interlaced) == (8, 0) and kind in (2, 6), (depth, kind, interlaced)
        elif name == b"IDAT":
            packed += content
    of = 3 if kind == 2 else 4
    raw, stride = zlib.decompress(packed), width * of
    before = bytearray(stride)
    pixels = bytearray()
    for y in range(height):
        start = y * (stride + 1)
        row = bytearray(raw[start + 1 : start + 1 + stride])
        _unfilter(raw[start], row, before, of)
        before = row
        if of == 3:
            pixels += row
        else:
            for channel in zip(row[0::4], row[1::4], row[2::4], strict=True):
                pixels += bytes(channel)
    return Picture(width, height, bytes(pixels))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        at += 12 + size


def _unfilter(kind: int, row: bytearray, above: bytearray, of: int) -> None:
    if kind == 2:
        row[:] = bytes((a + b) & 255 for a, b in zip(row, above, strict=True))
    elif kind:
        for i in range(len(row)):
            left = row[i - of] if i >= of else 0
            up, corner = above[i], above[i - of] if i >= of else 0
            if kind == 1:
                by = left
            elif kind == 3:
                by = (left + up) // 2
            else:
                guess = left + up - corner
                by = min((left, up, corner), key=lambda each: abs(guess - each))
            row[i] = (row[i] + by) & 255
