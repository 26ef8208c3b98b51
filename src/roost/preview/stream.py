"""A connection through the agent, with the face of a transport: as much of one as the proxy asks for."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any

from roost.agent.streams import DialStream
from roost.errors import RoostError

HIGH = 512 * 1024
LEAVE_S = 10.0  # for what was written to go out


class StreamTransport(asyncio.Transport):
    """Two tasks, one for each direction. The protocol hears of the end once: ``connection_lost``, with the error there
    was."""

    def __init__(self, stream: DialStream, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._stream = stream
        self._protocol = protocol
        self._out: deque[bytes | None] = deque()  # None: the end
        self._size = 0
        self._wanted = asyncio.Event()
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._closing = False
        self._over = False
        self._full = False
        loop = asyncio.get_running_loop()
        protocol.connection_made(self)
        self._reader = loop.create_task(self._read())
        self._writer = loop.create_task(self._write())

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return self._size

    def write(self, data: Any) -> None:
        if self._closing or not data:
            return
        self._out.append(bytes(data))
        self._size += len(data)
        self._wanted.set()
        if self._size > HIGH and not self._full:
            self._full = True
            self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self._closing:
            self._out.append(None)
            self._wanted.set()

    def pause_reading(self) -> None:
        self._may_read.clear()

    def resume_reading(self) -> None:
        self._may_read.set()

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """What was written goes out first, if the machine takes it."""
        if not self._closing:
            self._closing = True
            self._wanted.set()
            self._may_read.set()
            asyncio.get_running_loop().call_later(LEAVE_S, self._end, None)

    def abort(self) -> None:
        self._closing = True
        self._end(None)

    async def _read(self) -> None:
        try:
            while True:
                await self._may_read.wait()
                data = await self._stream.read()
                await self._may_read.wait()
                if self._closing:
                    return
                if not data:
                    if not self._protocol.eof_received():
                        self.close()
                    return
                self._protocol.data_received(data)
        except RoostError as failure:
            self._end(failure)

    async def _write(self) -> None:
        try:
            while True:
                if not self._out:
                    if self._closing:
                        break
                    self._wanted.clear()
                    await self._wanted.wait()
                    continue
                part = self._out.popleft()
                if part is None:
                    await self._stream.write_eof()
                    continue
                await self._stream.write(part)
                self._size -= len(part)
                if self._full and self._size < HIGH // 4:
                    self._full = False
                    self._protocol.resume_writing()
            self._end(None)
        except RoostError as failure:
            self._end(failure)

    def _end(self, failure: Exception | None) -> None:
        if self._over:
            return
        self._over = self._closing = True
        self._out.clear()
        current = asyncio.current_task()
        for task in (self._reader, self._writer):
            if task is not current:
                task.cancel()
        with contextlib.suppress(Exception):
            self._stream.close()
        asyncio.get_running_loop().call_soon(self._protocol.connection_lost, failure)
