"""What a page's browser says on its debugging port: an answer, a failure with a code, or an end."""

from __future__ import annotations

import asyncio
from typing import Any

from websockets import client
from websockets.utils import accept_key

from roost.errors import RoostError
from roost.services.cdp import Failed, Session
from tests.fuzz.targets._pieces import cut


def _text(data: bytes, first: int = 0x81) -> bytes:
    size = bytes((len(data),)) if len(data) < 126 else b"\x7e" + len(data).to_bytes(2)
    return bytes((first,)) + size + data


COVERS = ("roost.services.cdp", "roost.services.inner", "websockets.frames")
SEEDS = (
    b"\x3c" + _text(b'{"id": 1, "result": {"a": 1}}'),
    b"\x06"
    + _text(b'{"method": "Page.javascriptDialogOpening", "params": {}}')
    + _text(b'{"id": 1, "error": {"message": 5}}'),
    b"\x3c" + _text(b'{"id": 1, ', 0x01) + _text(b'"result": null}', 0x80),
    b"\x3c" + _text(b"hi", 0x89) + _text(b"\x03\xe8", 0x88),
    b"\x3c" + _text(b'{"method": "Inspector.detached", "params": {}}'),
    b"\x3bHTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno",
    b"\x3c\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xff",
)
WORDS = (
    b'"id": 1',
    b'"result": ',
    b'"error": ',
    b'"method": ',
    b'"params": ',
    b"\x81\x7e",
    b"\x00",
    b"\x80",
    b"\x89\x00",
)


class _Stream:
    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = iter(pieces)

    async def read(self) -> bytes:
        return next(self.pieces, b"")

    async def write(self, data: bytes) -> None:
        pass

    def close(self) -> None:
        pass


_loop = asyncio.new_event_loop()
client.generate_key = lambda: "AAAAAAAAAAAAAAAAAAAAAA=="  # so that the answer to it is known
_SHAKEN = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Accept: {accept_key('AAAAAAAAAAAAAAAAAAAAAA==')}\r\n\r\n"
).encode()


async def _talk(pieces: list[bytes]) -> None:
    stream: Any = _Stream(pieces)
    async with asyncio.timeout(30), Session.open(stream, 9222, "/x") as session:
        assert isinstance(await session.call("Page.enable"), dict)


def one(data: bytes) -> None:
    """An even first byte: the handshake went well, and this comes after it."""
    pieces, _ = cut(data)
    shaken = bool(data) and data[0] % 2 == 0
    try:
        _loop.run_until_complete(_talk([_SHAKEN, *pieces] if shaken else pieces))
    except (Failed, RoostError):
        pass
