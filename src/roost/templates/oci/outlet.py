"""The way out of what fetches images: the one thing that an empty network namespace has.

skopeo speaks to whatever a registry sends it to (tokens, blobs elsewhere), so looking at the registry's own name would
not do. It runs where nothing is reachable but this: an HTTP proxy that knows CONNECT (RFC 9110, 9.3.6) alone, looks at
every address as egress does, and counts what comes in. Go asks no proxy for loopback addresses: a registry there, which
the operator must have named, gets a listener of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Awaitable, Callable

from roost.egress.dialling import Dialler, RefusedError, UnreachableError
from roost.egress.policy import METADATA

_HEAD = 8 * 1024
_HEAD_S = 10.0
_IDLE_S = 120.0
_CONNECT_S = 10.0
_PIECE = 256 * 1024
_CONNECTIONS = 64
Target = tuple[str, int]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Outlet:
    """Of one fetch. ``private``: host and port of registries that may lie at private addresses."""

    def __init__(self, dialler: Dialler, private: frozenset[Target], most: int) -> None:
        self._dialler = dialler
        self._private = private
        self._most = most
        self._open: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self.taken = 0
        self.refused: str | None = None  # what was, for whoever explains the failure
        self.unreachable: str | None = None

    async def listen(self, proxy: socket.socket, direct: dict[socket.socket, Target]) -> None:
        """On sockets that the fetcher's namespace has; they are closed with it."""
        self._servers.append(await asyncio.start_server(self._proxied, sock=proxy, limit=_HEAD))
        for sock, target in direct.items():
            self._servers.append(await asyncio.start_server(self._straight(target), sock=sock))

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _straight(
        self, target: Target
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._served(writer, self._through(reader, writer, target, b""))

        return connected

    async def _proxied(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._served(writer, self._asked(reader, writer))

    async def _served(self, writer: asyncio.StreamWriter, work: Awaitable[None]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            if len(self._open) <= _CONNECTIONS:
                await work
            else:
                asyncio.ensure_future(work).cancel()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        except (
            asyncio.CancelledError
        ):  # by ``close``; asyncio's streams take a cancelled task for a failure
            pass
        finally:
            self._open.discard(task)
            writer.close()

    async def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_HEAD_S):
            head = await reader.readuntil(b"\r\n\r\n")
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        target = _target(words[1]) if len(words) == 3 and words[0] == "CONNECT" else None
        if target is None:
            writer.write(b"HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
            return
        await self._through(reader, writer, target, b"HTTP/1.1 200 OK\r\n\r\n")

    async def _through(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        target: Target,
        greeting: bytes,
    ) -> None:
        try:
            there = await self._dial(target)
        except RefusedError:
            self.refused = f"{target[0]}:{target[1]}"
            writer.write(
                b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n" if greeting else b""
            )
            await writer.drain()
            return
        except (UnreachableError, OSError, TimeoutError) as failure:
            self.unreachable = str(failure) or f"{target[0]}:{target[1]} does not answer"
            answer = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n"
            writer.write(answer if greeting else b"")
            await writer.drain()
            return
        writer.write(greeting)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(reader, there[1], False))
                group.create_task(self._copy(there[0], writer, True))
        except* (OSError, TimeoutError):
            pass
        finally:
            there[1].close()

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counted: bool
    ) -> None:
        while True:
            async with asyncio.timeout(_IDLE_S):
                piece = await reader.read(_PIECE)
                if not piece:
                    break
                if counted:
                    self.taken += len(piece)
                    if self.taken > self._most:
                        self.refused = None
                        raise OSError("more than the image can have")
                writer.write(piece)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def _dial(self, target: Target) -> Streams:
        """Raises RefusedError, UnreachableError, OSError, TimeoutError."""
        host, port = target
        if target in self._private:
            return await _private(host, port)
        try:
            ipaddress.ip_address(host)
        except ValueError:
            line = await self._dialler.by_name(host, port, whose=self)
        else:
            line = await self._dialler.by_address(host, port)
        return await asyncio.open_connection(sock=line.sock)


async def _private(host: str, port: int) -> Streams:
    """Of the operator's own network: by the host's whole means, /etc/hosts among them; never metadata."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(_CONNECT_S):
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(each[4][0]) for each in found]
        for address in addresses:
            parsed = ipaddress.ip_address(address)
            if any(parsed in network for network in METADATA):
                raise RefusedError("private")
        return await asyncio.open_connection(addresses[0], port)


def _target(text: str) -> Target | None:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 1 <= int(port[:6]) <= 65535:
        return None
    return host.strip("[]").lower(), int(port)
