"""Closes the difference between what a machine shall be and what it is, where nobody is at work on it.

    desired destroyed, failed on the way   -> destroyed again
    desired sleeping, stuck on the way     -> what it is stuck in is done to its end

Each is tried again after twice as long as before. A machine that shall run and does not is left to the next call that
needs it: what ended by itself would only end again.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import TYPE_CHECKING

from roost.engine import recovery
from roost.engine.lifecycle import Desired
from roost.errors import RoostError
from roost.store import machines

if TYPE_CHECKING:
    from roost.engine.engine import Engine

log = logging.getLogger(__name__)
FIRST_S = 30.0
LONGEST_S = 1800.0


class Reconciler:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pauses: dict[str, float] = {}
        self._not_before: dict[str, float] = {}  # monotonic seconds

    async def look(self) -> None:
        engine = self._engine
        astray = await engine.store.read(machines.astray)
        known = {machine_id for machine_id, _ in astray}
        self._pauses = {m: pause for m, pause in self._pauses.items() if m in known}
        for machine_id, desired in astray:
            due = self._not_before.get(machine_id, 0.0) <= engine.clock.monotonic()
            if due and engine.desk.last(machine_id) is None:
                await self._mend(machine_id, desired)

    async def _mend(self, machine_id: str, desired: str) -> None:
        engine = self._engine
        try:
            if desired == Desired.DESTROYED:
                await engine.destroy(machine_id)
            else:
                unstick = functools.partial(recovery.unstick, engine, machine_id)
                await asyncio.shield(engine.line_up(machine_id, unstick))
        except RoostError as error:
            pause = min(LONGEST_S, self._pauses.get(machine_id, FIRST_S / 2) * 2)
            self._pauses[machine_id] = pause
            self._not_before[machine_id] = engine.clock.monotonic() + pause
            log.warning(
                "machine %s is not %s yet, once more in %d s: %s", machine_id, desired, pause, error
            )
        else:
            self._not_before.pop(machine_id, None)
            log.info("machine %s is %s at last", machine_id, desired)
