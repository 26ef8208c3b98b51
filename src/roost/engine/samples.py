"""What machines used lately: a short series of each that runs, in memory alone.

The clock that meters takes one of each once an interval (``Meter``); who asks gets one of this moment, too. A daemon
that starts knows nothing of what was before it.
"""

from __future__ import annotations

import asyncio
import math
import struct
from collections import deque
from dataclasses import astuple, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from roost.clock import Clock
from roost.drivers.interface import Usage
from roost.engine.roster import Roster, Running
from roost.engine.rungs import Rungs
from roost.errors import RoostError
from roost.store.keys import NOBODY

KEPT = 1440  # of a machine: a day at one a minute
OLDEST = timedelta(days=1)
AT_ONCE = 8
FRESH_S = 1.0  # younger than that is this moment
STATS_S = 2.0


@dataclass(frozen=True, slots=True)
class Sample:
    """``cpu_used_pct``: of one processor, since the sample before (or since it started). Memory and disk as the machine
    itself sees them, where it answered; else as the host does, without the disk."""

    at: datetime
    cpu_count: float
    cpu_used_pct: float
    memory_used_bytes: int
    memory_total_bytes: int
    memory_cache_bytes: int
    disk_used_bytes: int | None
    disk_total_bytes: int | None


_PACKED = struct.Struct(
    "<8d"
)  # a quarter of the object: there may be a thousand of each of a thousand machines


def _pack(sample: Sample) -> bytes:
    at, *numbers = astuple(sample)
    return _PACKED.pack(at.timestamp(), *(math.nan if n is None else n for n in numbers))


def _unpack(packed: bytes) -> Sample:
    at, count, used, *sizes = _PACKED.unpack(packed)
    told = [None if math.isnan(n) else int(n) for n in sizes]
    return Sample(datetime.fromtimestamp(at, UTC), count, used, *told)  # type: ignore[arg-type]


def _at(packed: bytes) -> float:
    return float(_PACKED.unpack(packed)[0])


@dataclass(slots=True)
class _Series:
    samples: deque[bytes]  # packed
    generation: int = -1  # of the start that ``cpu_us`` is counted from
    cpu_us: int = 0
    since: float = 0.0  # monotonic seconds


class Samples:
    def __init__(self, clock: Clock, rungs: Rungs, roster: Roster) -> None:
        self._clock = clock
        self._rungs = rungs
        self._roster = roster
        self._series: dict[str, _Series] = {}

    async def take(self) -> None:
        """One of each that runs. What does not answer is left out; what is older than a day is known no more."""
        self._prune()
        limit = asyncio.Semaphore(AT_ONCE)

        async def one(running: Running) -> None:
            async with limit:
                await self._one(running)

        users = [each for each in self._roster if each.machine.tenant_id != NOBODY]
        await asyncio.gather(*(one(each) for each in users))

    async def now(self, machine_id: str) -> None:
        """One of this moment, unless there is or the machine does not run."""
        running = self._roster.peek(machine_id)
        series = self._series.get(machine_id)
        if running is None:
            return
        same = series is not None and series.generation == running.machine.generation
        if same and series is not None and self._clock.monotonic() - series.since < FRESH_S:
            return
        await self._one(running)

    def of(
        self, machine_id: str, start: datetime | None = None, end: datetime | None = None
    ) -> list[Sample]:
        """Oldest first, both ends included."""
        series = self._series.get(machine_id)
        found = [_unpack(each) for each in (series.samples if series is not None else ())]
        return [
            each
            for each in found
            if (start is None or each.at >= start) and (end is None or each.at <= end)
        ]

    def forget(self, machine_id: str) -> None:
        """It is destroyed."""
        self._series.pop(machine_id, None)

    def _prune(self) -> None:
        oldest = (self._clock.now() - OLDEST).timestamp()
        for machine_id, series in list(self._series.items()):
            while series.samples and _at(series.samples[0]) < oldest:
                series.samples.popleft()
            if not series.samples and self._roster.peek(machine_id) is None:
                del self._series[machine_id]

    async def _one(self, running: Running) -> None:
        driver = self._rungs.driver(running.machine.driver)
        try:
            usage = await driver.usage(running.handle)
        except (RoostError, OSError):
            return
        stats = await stats_of(running.agent)
        now = self._roster.peek(running.machine.id)
        if now is None or now.machine.generation != running.machine.generation:
            return  # that start of it ended meanwhile, maybe the machine for good
        self._add(running, usage, stats)

    def _add(self, running: Running, usage: Usage, stats: Any) -> None:
        machine, now, at = running.machine, self._clock.monotonic(), self._clock.now()
        series = self._series.setdefault(machine.id, _Series(deque(maxlen=KEPT)))
        if series.generation != machine.generation:  # its counters began anew
            up_s = (at - machine.last_transition_at).total_seconds()
            series.generation, series.cpu_us, series.since = machine.generation, 0, now - up_s
        passed = max(now - series.since, 0.001)
        used = min(max(0, usage.cpu_usage_us - series.cpu_us) / 1e6 / passed, machine.vcpu)
        series.cpu_us, series.since = usage.cpu_usage_us, now
        total = machine.memory_mib << 20
        said = stats is not None
        series.samples.append(
            _pack(
                Sample(
                    at=at,
                    cpu_count=machine.vcpu,
                    cpu_used_pct=round(100 * used, 2),
                    memory_used_bytes=stats.memory_used_bytes if said else usage.memory_bytes,
                    memory_total_bytes=stats.memory_total_bytes if said else total,
                    memory_cache_bytes=stats.memory_cache_bytes if said else 0,
                    disk_used_bytes=stats.disk_used_bytes if said else None,
                    disk_total_bytes=stats.disk_total_bytes if said else None,
                )
            )
        )


async def stats_of(agent: Any) -> Any:
    """What the agent says of itself; None where it is silent: how much is used the host sees, too."""
    try:
        async with asyncio.timeout(STATS_S):
            return await agent.stats()
    except (RoostError, TimeoutError):
        return None
