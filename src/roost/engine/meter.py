"""What cannot be known from rows, looked up once an interval: bytes sent, blocks held; and that time goes by."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
from collections.abc import Callable, Iterator

import sqlalchemy as sa

from roost.engine import metering
from roost.engine.flows import Parts
from roost.engine.roster import Roster
from roost.engine.samples import Samples
from roost.errors import RoostError
from roost.storage.interface import Holder
from roost.store import snapshots, usage
from roost.store.keys import NOBODY

log = logging.getLogger(__name__)
BATCH = 500  # rows of one transaction
LOOKED_AT = 100  # families of sleeping machines measured again in one round
STORAGE_EVERY = 5  # intervals between looks at the disk of one that runs
SOON_S = 2.0  # a fork of many is looked at once


class Meter:
    """Transitions close intervals by themselves (``metering``); this one closes those that last."""

    def __init__(
        self, parts: Parts, roster: Roster, interval_s: float, samples: Samples | None = None
    ) -> None:
        self._parts = parts
        self._roster = roster
        self._samples = samples
        self._interval_s = interval_s
        self._changed = asyncio.Event()

    def soon(self) -> None:
        """Somebody's storage is another now: a sleep, a snapshot, a fork."""
        self._changed.set()

    async def run(self) -> None:
        await asyncio.gather(self._rounds(), self._changes(), self._sampling())

    async def _rounds(self) -> None:
        while True:
            with self._told():
                await self._begin_missing()
            await self._parts.clock.sleep(self._interval_s)
            with self._told():
                await self.round()

    async def _sampling(self) -> None:
        """Beside the rounds: agents that do not answer hold no count up."""
        while self._samples is not None:
            await self._parts.clock.sleep(self._interval_s)
            with self._told():
                await self._samples.take()

    async def _changes(self) -> None:
        while True:
            await self._changed.wait()
            await self._parts.clock.sleep(SOON_S)
            self._changed.clear()
            with self._told():
                await self._measure(usage.unmeasured)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Rates and watermarks stand as they are: what could not be counted now is counted next time."""
        try:
            yield
        except (RoostError, OSError) as error:
            log.warning("usage could not be counted now: %s", error)
        except Exception:
            log.exception("usage could not be counted now")

    async def round(self) -> None:
        """Counts up to now what holds memory, and what was sent; measures what changes."""
        store, clock = self._parts.store, self._parts.clock
        sent = await self._sent()

        def fn(connection: sa.Connection) -> None:
            now = clock.now()
            metering.tick(connection, now)
            for machine_id, (generation, seen) in sent.items():
                metering.sent(connection, machine_id, generation, seen, now)

        await store.write(fn)
        before = metering.to_ms(clock.now()) - int(STORAGE_EVERY * self._interval_s * 1000)
        await self._measure(lambda c: usage.unmeasured(c) | usage.due(c, before, LOOKED_AT))

    async def _measure(self, which: Callable[[sa.Connection], set[str]]) -> None:
        found = iter((await self._sizes(which)).items())
        while batch := list(itertools.islice(found, BATCH)):
            await self._parts.store.write(functools.partial(self._measured, batch))

    def _measured(self, sizes: list[tuple[str, int]], connection: sa.Connection) -> None:
        now = self._parts.clock.now()
        for subject, size in sizes:
            metering.measured(connection, subject, -(-size // 1024), now)

    async def _sent(self) -> dict[str, tuple[int, int]]:
        """(generation, bytes) of those that run before and after it is looked up: of one and the same start."""
        before = self._running()
        seen = await self._parts.network.egress(before)
        after = self._running()
        return {m: (before[m], n) for m, n in seen.items() if after.get(m) == before[m]}

    def _running(self) -> dict[str, int]:
        machines = (running.machine for running in self._roster)
        return {m.id: m.generation for m in machines if m.tenant_id != NOBODY}

    async def _sizes(self, which: Callable[[sa.Connection], set[str]]) -> dict[str, int]:
        def fn(connection: sa.Connection) -> tuple[list[list[Holder]], list[str]]:
            found: dict[str, list[Holder]] = {}
            for row in usage.in_families(connection, which(connection)):
                holder = Holder(row["id"], is_snapshot=row["id"] != row["machine_id"])
                found.setdefault(row["family"], []).append(holder)
            return list(found.values()), snapshots.of_nobody(connection) if found else []

        families, free = await self._parts.store.read(fn)
        return await self._parts.storage.shares(families, free) if families else {}

    async def _begin_missing(self) -> None:
        store, clock = self._parts.store, self._parts.clock
        while await store.read(lambda c: usage.has_missing(c)):
            await store.write(lambda c: metering.begin_missing(c, clock.now(), BATCH))
