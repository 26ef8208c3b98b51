"""Copies that machines asked for themselves, for as long as somebody may ask how it went.

A capture cuts the stream that the request came on, and in each copy the program that asked goes on, too. So a request is
only begun, under a key that its program chose, and asked for again by that key: by the parent, and by its copies, each
of which is told its own part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from roost.engine.machine import Machine
from roost.errors import LimitError, NotFoundError

KEPT_S = 600.0  # after its end
AT_ONCE = 8  # of a machine, with those that are kept
LOOK_S = 10.0  # how long who asks is kept waiting


@dataclass(slots=True)
class Fork:
    parent_id: str
    key: str
    making: asyncio.Task[list[Machine]]
    ended: float | None = None  # monotonic seconds


class Forks:
    """In memory: a daemon that starts anew knows of none, and its copies are what they are."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._forks: dict[tuple[str, str], Fork] = {}  # by parent and key

    def known(self, parent_id: str, key: str) -> bool:
        return (parent_id, key) in self._forks

    def check(self, parent_id: str) -> None:
        """Whether one more may be begun. Raises LIMIT_EXCEEDED."""
        self._forget()
        if sum(each == parent_id for each, _ in self._forks) >= AT_ONCE:
            raise LimitError(
                f"This machine asked for {AT_ONCE} forks in the last minutes: try again later.",
                code="LIMIT_EXCEEDED",
                details={"retry_after_s": KEPT_S},
            )

    def begin(
        self, parent_id: str, key: str, making: Coroutine[Any, Any, list[Machine]]
    ) -> asyncio.Task[list[Machine]]:
        task = asyncio.create_task(making, name=f"inside-fork-{parent_id}")
        fork = self._forks[parent_id, key] = Fork(parent_id, key, task)

        def done(task: asyncio.Task[list[Machine]]) -> None:
            fork.ended = self._monotonic()
            if not task.cancelled():
                task.exception()  # told to who asks

        task.add_done_callback(done)
        return task

    async def look(self, machine_id: str, key: str) -> tuple[str, list[Machine] | None]:
        """Who made the copies, and these; None while they are being made. Raises what making them did, and NOT_FOUND
        for who is neither."""
        self._forget()
        own = self._forks.get((machine_id, key))
        if own is not None:
            await asyncio.wait({own.making}, timeout=LOOK_S)
            return machine_id, own.making.result() if own.making.done() else None
        # A copy may ask before its siblings are made, and with them itself.
        others = [fork for fork in self._forks.values() if fork.key == key]
        if others:
            await asyncio.wait({fork.making for fork in others}, timeout=LOOK_S)
        for fork in others:
            if not fork.making.done():
                return fork.parent_id, None
            failed = fork.making.cancelled() or fork.making.exception() is not None
            if not failed and any(each.id == machine_id for each in fork.making.result()):
                return fork.parent_id, fork.making.result()
        raise NotFoundError(
            "Nothing is known of such a fork: ask roost status what this machine is."
        )

    async def close(self) -> None:
        tasks = [fork.making for fork in self._forks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self) -> None:
        before = self._monotonic() - KEPT_S
        old = [at for at, f in self._forks.items() if f.ended is not None and f.ended < before]
        for at in old:
            del self._forks[at]
