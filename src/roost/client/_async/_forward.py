"""A port of a machine as a port here. Written by hand here; the sync half runs this one in a thread.

    local connection -> WebSocket .../ports/{port}/connect -> the machine

Binary frames are the bytes; the text frame ``{"type": "eof"}`` ends the sender's half. Each side waits for the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from roost.client._config import Config
from roost.client._wire import segment
from roost.errors import RoostError, error

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

log = logging.getLogger("roost.client")

PIECE = 64 * 1024
FRAMES = 4  # that wait here for whoever reads
MAX_FRAME = 1 << 20
OPEN_S = 120.0  # the machine may have to be woken first
EOF = json.dumps({"type": "eof"})


class AsyncForward:
    """``port`` is known once it is entered. ``on_error`` hears why a connection could not be made or broke."""

    def __init__(
        self, config: Config, machine_id: str, remote: int, local: int = 0, host: str = "127.0.0.1"
    ) -> None:
        self._config = config
        self._machine_id = machine_id
        self._wanted = local
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        self.remote = remote
        self.host = host
        self.on_error: Callable[[RoostError], None] = self._log

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.host}:{self.port} -> {self.remote}>"

    @property
    def port(self) -> int:
        """Here; 0 before it is entered and afterwards."""
        if self._server is None or not self._server.sockets:
            return 0
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Self:
        """Raises ConflictError where the port here is taken."""
        try:
            self._server = await asyncio.start_server(
                self._carry, self.host, self._wanted, limit=PIECE
            )
        except OSError as exc:
            raise error(
                "PORT_IN_USE",
                f"Cannot listen on {self.host}:{self._wanted}: {exc.strerror or exc}. Choose another port.",
            ) from exc
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Listens no more and cuts what is open."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for task in list(self._open):
            task.cancel()
        if self._open:
            await asyncio.wait(set(self._open), timeout=5)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        writer.transport.set_write_buffer_limits(high=PIECE)
        try:
            async with await self._connect() as socket:
                await _both(socket, reader, writer)
        except RoostError as failure:
            writer.transport.abort()
            self.on_error(failure)
        except asyncio.CancelledError:  # we were closed; asyncio would log it
            writer.transport.abort()
        except OSError:
            writer.transport.abort()
        finally:
            self._open.discard(task)
            writer.close()

    async def _connect(self) -> ClientConnection:
        from websockets.asyncio.client import connect
        from websockets.exceptions import InvalidHandshake

        from roost.client import _tls as tls
        from roost.client._ws import refused, unreachable

        path = f"/v1/machines/{segment(self._machine_id)}/ports/{self.remote}/connect"
        url = self._config.url.replace("http", "ws", 1) + path
        try:
            return await connect(
                url,
                additional_headers={"Authorization": f"Bearer {self._config.api_key}"},
                max_size=MAX_FRAME,
                max_queue=FRAMES,
                open_timeout=OPEN_S,
                compression=None,
                proxy=None,
                ssl=tls.context(url),
            )
        except InvalidHandshake as exc:
            raise refused(url, exc) from exc
        except (OSError, TimeoutError) as exc:
            raise unreachable(url, exc) from exc

    def _log(self, failure: RoostError) -> None:
        log.warning("forward of port %d: %s", self.remote, failure)


async def _both(
    socket: ClientConnection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Until both halves have ended, or one side broke."""
    from websockets.exceptions import ConnectionClosed

    from roost.client._ws import closed

    async def up() -> None:
        while data := await reader.read(PIECE):
            await socket.send(data)
        await socket.send(EOF)

    async def down() -> None:
        async for message in socket:
            if isinstance(message, bytes):
                writer.write(message)
                await writer.drain()
            elif json.loads(message).get("type") == "eof":
                with contextlib.suppress(OSError, RuntimeError):
                    writer.write_eof()

    loop = asyncio.get_running_loop()
    sending, receiving = loop.create_task(up()), loop.create_task(down())
    try:
        await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done() and not sending.exception():
            await asyncio.wait({receiving})
        for task in (receiving, sending):
            if task.done():
                task.result()
    except ConnectionClosed as exc:
        raise closed(exc) from exc
    finally:
        for task in (sending, receiving):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
