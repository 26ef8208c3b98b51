"""Deadlines on the wall clock: one task for all of them.

It sleeps until the next one and at most a minute, so that a clock that was set, or a host that was suspended,
delays an expiry by no more than that.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from datetime import datetime

from roost.clock import Clock

LONGEST_S = 60.0


class Timers:
    """``fire(name)`` is called once a deadline has passed; it must not block."""

    def __init__(self, clock: Clock, fire: Callable[[str], None]) -> None:
        self._clock = clock
        self._fire = fire
        self._heap: list[tuple[datetime, str]] = []
        self._due: dict[str, datetime] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def set(self, name: str, when: datetime | None) -> None:
        """Moves the deadline of ``name``; None takes it away."""
        if when is None:
            self._due.pop(name, None)
            return
        self._due[name] = when
        heapq.heappush(self._heap, (when, name))
        if self._heap[0] == (when, name):
            self._changed.set()

    def __len__(self) -> int:
        return len(self._due)

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            now = self._clock.now()
            while self._heap and (
                self._heap[0][0] <= now or self._due.get(self._heap[0][1]) != self._heap[0][0]
            ):
                when, name = heapq.heappop(self._heap)
                if self._due.get(name) == when:
                    del self._due[name]
                    self._fire(name)
            wait = LONGEST_S
            if self._heap:
                wait = min(wait, (self._heap[0][0] - now).total_seconds())
            sleeper = asyncio.ensure_future(self._clock.sleep(wait))
            changed = asyncio.ensure_future(self._changed.wait())
            try:
                await asyncio.wait({sleeper, changed}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleeper.cancel()
                changed.cancel()
