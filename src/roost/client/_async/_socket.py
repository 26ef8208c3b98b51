"""A WebSocket as the terminal needs it. Written by hand here and in the sync half."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from roost.client import _tls as tls
from roost.client._ws import closed, refused, unreachable

MAX_MESSAGE = 8 << 20


class AsyncSocket:
    def __init__(self, connection: ClientConnection, stack: AsyncExitStack) -> None:
        self._connection = connection
        self._stack = stack

    @classmethod
    async def connect(cls, url: str, headers: Mapping[str, str]) -> AsyncSocket:
        """Raises RoostError: what the daemon said, or that there is none."""
        stack = AsyncExitStack()
        try:
            connection = await stack.enter_async_context(
                connect(
                    url,
                    additional_headers=dict(headers),
                    max_size=MAX_MESSAGE,
                    proxy=None,
                    ssl=tls.context(url),
                )
            )
        except InvalidHandshake as exc:
            raise refused(url, exc) from exc
        except (OSError, TimeoutError) as exc:
            raise unreachable(url, exc) from exc
        return cls(connection, stack)

    async def send(self, text: str) -> None:
        try:
            await self._connection.send(text)
        except ConnectionClosed as exc:
            raise closed(exc) from exc

    async def receive(self, timeout: float | None = None) -> str | None:
        """The next text message; None when none came within ``timeout`` s."""
        try:
            async with asyncio.timeout(timeout):
                message = await self._connection.recv()
        except TimeoutError:
            return None
        except ConnectionClosed as exc:
            raise closed(exc) from exc
        return message if isinstance(message, str) else message.decode("utf-8", "replace")

    async def aclose(self) -> None:
        await self._stack.aclose()
