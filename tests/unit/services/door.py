"""Doors that lead to servers of the tests' own, on this host's loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from roost.errors import MachineError
from roost.services.helpers import Helpers
from roost.services.inner import Inner

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Through:
    """As ``doors.Stream``, over a socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def read(self) -> bytes:
        try:
            return await self.reader.read(65536)
        except OSError as failure:
            raise MachineError("broke", code="PORT_CLOSED") from failure

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def write_eof(self) -> None:
        self.writer.write_eof()

    def close(self) -> None:
        self.writer.transport.abort()


class Doors:
    """``port`` None: nothing listens."""

    def __init__(self) -> None:
        self.port: int | None = None
        self.asked: list[tuple[str, str, int]] = []

    async def loopback(self, tenant: str, machine_id: str, port: int, host: str) -> Through:
        self.asked.append((tenant, machine_id, port))
        if self.port is None:
            raise MachineError("closed", code="PORT_CLOSED")
        return Through(*await asyncio.open_connection("127.0.0.1", self.port))


class Started:
    """Executions that start nothing but what the test says."""

    def __init__(self, then: Callable[[], None] | Exception | None = None) -> None:
        self.then = then
        self.commands: list[Any] = []
        self.exit_code: int | None = None

    async def start(self, tenant: str, machine_id: str, spec: Any) -> Any:
        self.commands.append(spec.command)
        if isinstance(self.then, Exception):
            raise self.then
        if self.then is not None:
            self.then()
        return await self.get(tenant, machine_id, "e")

    async def get(self, tenant: str, machine_id: str, execution_id: str) -> Any:
        ended = None if self.exit_code is None else "now"
        return type("Row", (), {"id": "e", "ended_at": ended, "exit_code": self.exit_code})


def helpers(doors: Doors, started: Started | None = None) -> Helpers:
    here: Any = doors
    executions: Any = started or Started()
    return Helpers(Inner(here), executions)


@contextlib.asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await handler(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def saying(*answers: bytes) -> Handler:
    """What is asked does not matter."""
    left = list(answers)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(left.pop(0) if len(left) > 1 else left[0])
        await writer.drain()

    return handler
