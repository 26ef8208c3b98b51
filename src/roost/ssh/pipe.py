"""One channel's bytes, bounded both ways.

In: what came and was not taken yet; above ``HELD`` the channel is paused, so the client's window closes. Out: ``write``
returns when the client's window and the connection's socket have room; asyncssh minds the first alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

import asyncssh

if TYPE_CHECKING:
    from asyncssh.channel import SSHChannel

    from roost.ssh.connection import Connection

HELD = 256 * 1024
WINDOW = 512 * 1024  # what a client may send before any of it was taken
PACKET = 32 * 1024
_STDERR = asyncssh.EXTENDED_DATA_STDERR


class Pipe:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._channel: SSHChannel[bytes] | None = None
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._paused = False
        self._came = asyncio.Event()
        self._ended = False
        self._room = asyncio.Event()
        self._room.set()
        self.lost = False

    # --- what asyncssh tells ----------------------------------------------------------------------

    def attach(self, channel: SSHChannel[Any]) -> None:
        self._channel = channel

    def feed(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        self._came.set()
        if self._size > HELD and not self._paused and self._channel is not None:
            self._paused = True
            self._channel.pause_reading()

    def feed_eof(self) -> None:
        self._ended = True
        self._came.set()

    def pause(self) -> None:
        self._room.clear()

    def resume(self) -> None:
        self._room.set()

    def close(self) -> None:
        """The channel is no more."""
        self.lost = True
        self.feed_eof()
        self.resume()

    # --- for who serves it ------------------------------------------------------------------------

    async def read(self) -> bytes:
        """All that has come; empty at the end."""
        while not self._parts and not self._ended:
            self._came.clear()
            await self._came.wait()
        data = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        if self._paused and not self.lost and self._channel is not None:
            self._paused = False
            self._channel.resume_reading()
        return data

    async def write(self, data: bytes, stderr: bool = False) -> None:
        """Raises BrokenPipeError once the channel is closed."""
        if self.lost or self._channel is None:
            raise BrokenPipeError
        self._channel.write(data, _STDERR if stderr else None)
        await self._room.wait()
        await self._connection.room()

    def write_eof(self) -> None:
        if not self.lost and self._channel is not None:
            self._channel.write_eof()
