"""How many machines start at once; a start that is no longer wanted gives up its place in the queue."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Turns:
    def __init__(self, at_once: int) -> None:
        self._semaphore = asyncio.Semaphore(at_once)

    @property
    def free(self) -> bool:
        return not self._semaphore.locked()

    @contextlib.asynccontextmanager
    async def turn(self, interrupt: asyncio.Event) -> AsyncIterator[None]:
        """Waits for a turn, or goes on without one once ``interrupt`` is set: what follows only undoes."""
        taken = await self._take(interrupt)
        try:
            yield
        finally:
            if taken:
                self._semaphore.release()

    async def _take(self, interrupt: asyncio.Event) -> bool:
        if self.free:
            return await self._semaphore.acquire()
        ours = asyncio.ensure_future(self._semaphore.acquire())
        told = asyncio.ensure_future(interrupt.wait())
        try:
            await asyncio.wait({ours, told}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._drop(ours)
            raise
        finally:
            told.cancel()
        if ours.done():
            return True
        self._drop(ours)
        return False

    def _drop(self, ours: asyncio.Task[bool]) -> None:
        """Lets go of a turn that may have come meanwhile."""
        if ours.done() and not ours.cancelled():
            self._semaphore.release()
        else:
            ours.cancel()
