"""A server as one in a machine, that says what it is told to and shows what reached it; a raw client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.unit.api.kit import TENANT, Served

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Handler = Callable[["Inside", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Inside:
    port: int = 0
    heads: list[bytes] = field(default_factory=list)
    connections: int = 0
    answers: list[bytes] = field(default_factory=list)  # in turn; OK when there is none left

    async def head(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        return head


async def plain(inside: Inside, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await inside.head(reader)
        writer.write(inside.answers.pop(0) if inside.answers else OK)
        await writer.drain()


@contextlib.asynccontextmanager
async def inside(handler: Handler = plain) -> AsyncIterator[Inside]:
    found = Inside()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await handler(found, reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**22)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()


async def shown(served: Served, port: int, **how: str) -> str:
    """The host of a port of a new machine; for everybody, unless said otherwise."""
    mine = served.machine()
    settings: dict[str, Any] = {"visibility": "public", **how}
    await served.ports.create(TENANT, mine, port, **settings)
    return f"{port}-{mine}.localhost"


class Raw:
    """A connection to the one port, by the byte."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def __aenter__(self) -> Raw:
        self.reader, self.writer = await asyncio.open_connection(
            "127.0.0.1", self.port, limit=2**22
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.writer.close()

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """One, of a known length."""
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)).decode("latin-1")
        first, *lines = head.split("\r\n")[:-2]
        fields = {}
        for line in lines:
            name, _, value = line.partition(":")
            fields[name.lower()] = value.strip()
        body = b""
        if "content-length" in fields:
            body = await asyncio.wait_for(
                self.reader.readexactly(int(fields["content-length"])), 10
            )
        return int(first.split(" ")[1]), fields, body

    async def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        await self.say(data)
        return await self.answer()

    async def rest(self) -> bytes:
        return await asyncio.wait_for(self.reader.read(), 10)


def get(host: str, path: str = "/", *lines: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", *lines, "", ""]).encode()
