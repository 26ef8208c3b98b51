"""A screen seen as its viewer's page does: RFB over a WebSocket (RFC 6143), raw rectangles."""

from __future__ import annotations

import struct
from typing import Any

from tests.system.pictures import Picture

_PIXELS = struct.pack(">BBBBHHHBBB3x", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)


class Screen:
    """``ws``: an open WebSocket connection of ``websockets.sync``."""

    def __init__(self, ws: Any) -> None:
        self._ws = ws
        self._ahead = b""
        version = self._read(12)
        assert version.startswith(b"RFB 003.00"), version
        ws.send(b"RFB 003.008\n")
        (count,) = self._read(1)
        assert 1 in self._read(count), "a screen of the machine's own asks for no password"
        ws.send(b"\x01")
        assert self._read(4) == bytes(4)
        ws.send(b"\x01")  # shared
        self.width, self.height = struct.unpack(">HH", self._read(4))
        self._read(16)
        (length,) = struct.unpack(">I", self._read(4))
        self.name = self._read(length).decode()
        ws.send(struct.pack(">B3x", 0) + _PIXELS)
        ws.send(struct.pack(">BxHi", 2, 1, 0))

    def picture(self) -> Picture:
        """All of it, as it is now."""
        self._ws.send(struct.pack(">BBHHHH", 3, 0, 0, 0, self.width, self.height))
        pixels = bytearray(3 * self.width * self.height)
        left = self.width * self.height
        while left > 0:
            (kind,) = self._read(1)
            if kind == 2:  # a bell
                continue
            if kind == 3:  # the clipboard
                _, length = struct.unpack(">3sI", self._read(7))
                self._read(length)
                continue
            assert kind == 0, kind
            _, count = struct.unpack(">BH", self._read(3))
            for _ in range(count):
                x, y, width, height, encoding = struct.unpack(">HHHHi", self._read(12))
                assert encoding == 0, encoding
                data = self._read(4 * width * height)
                for row in range(height):
                    line = data[4 * row * width : 4 * (row + 1) * width]
                    start = 3 * ((y + row) * self.width + x)
                    part = bytearray(3 * width)
                    part[0::3], part[1::3], part[2::3] = line[2::4], line[1::4], line[0::4]
                    pixels[start : start + 3 * width] = part
                left -= width * height
        return Picture(self.width, self.height, bytes(pixels))

    def _read(self, size: int) -> bytes:
        while len(self._ahead) < size:
            self._ahead += self._ws.recv(timeout=30)
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        return data
