"""An open file: what a client reads piece after piece comes in one stream, and so goes what it writes.

A call of the agent for each 32 KiB would cost more than the bytes. A read or write that does not follow the one
before ends the stream and begins another there. How a write ended is told by the next one, or at the close.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from roost.services.files import FileInfo, Write
from roost.ssh.sftp.wire import MAX_DATA
from roost.ssh.visit import Visit

WAITING = 4  # pieces between the client and the agent


class OpenFile:
    """``appends``: every write goes to the end, wherever it says."""

    def __init__(self, visit: Visit, path: bytes, reads: bool, writes: bool, appends: bool) -> None:
        self.path = path
        self.reads = reads
        self.writes = writes
        self._download = _Download(visit, path)
        self._upload = _Upload(visit, path, appends)

    async def read(self, offset: int, length: int) -> bytes:
        """Empty at the end of the file. Raises RoostError."""
        await self._upload.settle()
        return await self._download.read(offset, min(length, MAX_DATA))

    async def write(self, offset: int, data: bytes) -> None:
        """Raises RoostError, of this write or of one before it."""
        await self._download.close()
        await self._upload.write(offset, data)

    async def settle(self) -> None:
        """All that was written is in the file. Raises RoostError."""
        await self._upload.settle()
        await self._download.close()

    async def abandon(self) -> None:
        """As if the connection broke: nobody hears how it ended."""
        self._upload.abandon()
        await self._download.close()


class _Download:
    def __init__(self, visit: Visit, path: bytes) -> None:
        self._visit = visit
        self._path = path
        self._stream: AsyncGenerator[bytes, None] | None = None
        self._at = 0
        self._held = b""

    async def read(self, offset: int, length: int) -> bytes:
        if length == 0:
            return b""
        begun = self._stream is None or offset != self._at
        if begun:
            await self._begin(offset)
        await self._fill(length)
        if not self._held and not begun:  # it may have grown since the stream began
            await self._begin(offset)
            await self._fill(length)
        data, self._held = self._held[:length], self._held[length:]
        self._at += len(data)
        return data

    async def _begin(self, offset: int) -> None:
        await self.close()
        visit = self._visit
        reading = await visit.inside.files.read(
            visit.tenant, visit.machine_id, self._path, offset=offset
        )
        self._stream, self._at = reading.data, offset

    async def _fill(self, length: int) -> None:
        """So much held, or all there is."""
        parts = [self._held]
        size = len(self._held)
        while size < length and self._stream is not None:
            part = await anext(self._stream, None)
            if part is None:
                break
            parts.append(part)
            size += len(part)
        self._held = b"".join(parts)

    async def close(self) -> None:
        stream, self._stream, self._held = self._stream, None, b""
        if stream is not None:
            await stream.aclose()


class _Upload:
    def __init__(self, visit: Visit, path: bytes, appends: bool) -> None:
        self._visit = visit
        self._path = path
        self._appends = appends
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(WAITING)
        self._task: asyncio.Task[FileInfo] | None = None
        self._at = 0

    async def write(self, offset: int, data: bytes) -> None:
        if self._task is None or (offset != self._at and not self._appends):
            await self.settle()
            self._begin(offset)
        await self._put(data)
        self._at += len(data)

    def _begin(self, offset: int) -> None:
        visit = self._visit
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(WAITING)

        async def pieces() -> AsyncGenerator[bytes, None]:
            while (piece := await queue.get()) is not None:
                yield piece

        spec = Write(
            self._path,
            make_parents=False,
            append=self._appends,
            offset=None if self._appends else offset,
        )
        work = visit.inside.files.write(visit.tenant, visit.machine_id, spec, pieces())
        self._queue, self._at = queue, offset
        self._task = asyncio.get_running_loop().create_task(work)

    async def settle(self) -> None:
        task = self._task
        if task is None:
            return
        try:
            await self._put(None)
        except asyncio.CancelledError:
            self.abandon()  # the handle may be given up already, so nobody else would
            raise
        self._task = None
        await task

    async def _put(self, piece: bytes | None) -> None:
        """Waits for room; where the stream has ended already, why is raised."""
        task = self._task
        assert task is not None
        put = asyncio.ensure_future(self._queue.put(piece))
        try:
            await asyncio.wait({put, task}, return_when=asyncio.FIRST_COMPLETED)
            if not put.done():
                self._task = None
                await task
        finally:
            put.cancel()

    def abandon(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            task.add_done_callback(_heard)


def _heard(task: asyncio.Task[FileInfo]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        task.exception()
