"""Machines that nobody uses are put to sleep; frozen ones go to the disk in time, or when memory is short.

    running --autosleep--> frozen --hibernate_after, or memory short--> hibernated (stopped, where no memory is kept)

A rung that cannot freeze goes to its deepest sleep at once. What cannot be put to sleep now (no room on the disk)
stays as it is and is tried again after a while.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from roost.engine.lifecycle import Tier
from roost.engine.machine import Machine
from roost.errors import RoostError

if TYPE_CHECKING:
    from roost.engine.engine import Engine

log = logging.getLogger(__name__)
LOOK_S = 1.0
MEMORY_LOOK_S = 5.0
TRY_AGAIN_S = 60.0
AT_ONCE = 4


class Idle:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._making = asyncio.Lock()  # room, for whoever needs it
        self._under_way: set[str] = set()
        # Monotonic seconds, of what could not be put to sleep.
        self._not_before: dict[str, float] = {}

    async def watch(self) -> None:
        """For as long as the engine is open."""
        roster, clock = self._engine.roster, self._engine.clock
        while True:
            roster.changed.clear()
            pause = self.look()
            waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(roster.changed.wait())]
            if pause is not None:
                waits.append(asyncio.ensure_future(clock.sleep(pause)))
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in waits:
                    each.cancel()
            try:
                await self.relieve()
            except Exception:  # or no machine would ever fall asleep again
                log.exception("idle machines")

    def look(self) -> float | None:
        """Has those put to sleep, or deeper, whose time it is; seconds until there may be more (None: not
        before the roster changes)."""
        roster, now = self._engine.roster, self._engine.clock.monotonic()
        self._not_before = {m: at for m, at in self._not_before.items() if at > now}
        lefts: list[float] = []
        for running in roster:
            machine = running.machine
            limit, idle = machine.autosleep_seconds, roster.idle_for(machine.id)
            if limit is not None and idle is not None:
                if idle >= limit:
                    self._begin(machine, machine.lightest)
                lefts.append(max(LOOK_S, limit - idle))
        for running in roster.frozen():
            machine = running.machine
            limit, frozen = machine.hibernate_after_seconds, roster.frozen_for(machine.id)
            if limit is not None and frozen is not None:
                if frozen >= limit:
                    self._begin(machine, machine.deepest)
                lefts.append(max(LOOK_S, limit - frozen))
            lefts.append(MEMORY_LOOK_S)
        return min(lefts, default=None)

    async def relieve(self) -> None:
        """Where the host is short of memory, the longest frozen goes to the disk."""
        engine = self._engine
        # Where room is being made, the next look tells whether that was enough.
        if not engine.roster.frozen() or self._making.locked():
            return
        host = engine.host()
        if host.available_mib is None or host.available_mib >= engine.settings.memory_reserve_mib:
            return
        if await self.make_room():
            log.warning("a frozen machine went to the disk: %d MiB are free", host.available_mib)

    async def make_room(self, tenant: str | None = None) -> bool:
        """The longest frozen goes to the disk, of ``tenant`` before others; whether there was one that could, or others
        made room meanwhile, which may be enough."""
        if self._making.locked():
            async with self._making:
                return True
        async with self._making:
            return await self._make_room(tenant)

    async def _make_room(self, tenant: str | None) -> bool:
        engine = self._engine
        frozen = engine.roster.frozen()
        for running in sorted(frozen, key=lambda each: each.machine.tenant_id != tenant):
            machine = running.machine
            busy = engine.desk.last(machine.id) is not None  # perhaps for whoever asks here
            if busy or machine.id in self._under_way or machine.id in self._not_before:
                continue
            self._under_way.add(machine.id)
            if await self._sleep(machine, machine.deepest):
                return True
        return False

    def _begin(self, machine: Machine, tier: Tier) -> None:
        if (
            machine.id in self._under_way
            or machine.id in self._not_before
            or len(self._under_way) >= AT_ONCE
        ):
            return
        self._under_way.add(machine.id)
        self._engine.background(self._sleep(machine, tier))

    async def _sleep(self, machine: Machine, tier: Tier) -> bool:
        engine = self._engine
        try:
            if tier is Tier.HIBERNATED:  # rather resident than lost
                await engine.parts.storage.require(machine.memory_mib << 20)
            return await engine.doze(machine.id, tier)
        except (RoostError, OSError) as error:
            log.warning("machine %s could not be put to sleep: %s", machine.id, error)
            self._not_before[machine.id] = engine.clock.monotonic() + TRY_AGAIN_S
            return False
        finally:
            self._under_way.discard(machine.id)
