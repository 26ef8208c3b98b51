"""What is used: to the millisecond, once, whatever ends when."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.clock import FakeClock
from roost.drivers.interface import Exit
from roost.engine import meter, metering
from roost.prices import Prices
from roost.services.models import CreateMachine, ForkMachine
from roost.services.usage import Amounts, Usage
from roost.store import usage as rows
from roost.store.schema import machine_events

from .kit import OTHER, TENANT, Daemon, Host, daemon, until

START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
GIB = 2**30


async def amounts(d: Daemon, tenant: str = TENANT, **asked: Any) -> Amounts:
    report = await Usage(d.store, d.host.clock, Prices()).report(tenant, **asked)
    assert sum(i.amounts.vcpu_milli_ms for i in report.items) == report.total.amounts.vcpu_milli_ms
    return report.total.amounts


def sized(**more: Any) -> CreateMachine:
    return CreateMachine(**{"vcpu": 0.5, "memory_mib": 512, "created_by": "key-1", **more})


def clock_of(d: Daemon) -> FakeClock:
    assert isinstance(d.host.clock, FakeClock)
    return d.host.clock


def jump(clock: FakeClock, seconds: float) -> None:
    """Time goes by; nobody who sleeps wakes of it."""
    clock._now += timedelta(seconds=seconds)


async def test_a_day_of_a_machine(tmp_path: Path) -> None:
    """10 s awake, 100 s asleep, 5 s awake: vCPU and memory only while it is awake, and nothing once it is gone."""
    async with daemon(tmp_path, FakeClock(START)) as d:
        clock = clock_of(d)
        made = await d.machines.create(TENANT, sized())
        jump(clock, 10)
        assert await amounts(d) == Amounts(500 * 10_000, 512 * 10_000)
        await d.machines.sleep(TENANT, made.id)
        jump(clock, 100)
        await d.machines.wake(TENANT, made.id)
        jump(clock, 5)
        assert await amounts(d) == Amounts(500 * 15_000, 512 * 15_000)
        await d.machines.delete(TENANT, made.id)
        jump(clock, 1000)
        found = await amounts(d)
        assert (found.vcpu_seconds, found.memory_gib_seconds) == (Decimal("7.5"), Decimal("7.5"))
        assert await amounts(d, OTHER) == Amounts()


async def test_an_interval_is_cut_where_the_day_ends(tmp_path: Path) -> None:
    start = datetime(2026, 3, 1, 23, 59, 50, tzinfo=UTC)
    async with daemon(tmp_path, FakeClock(start)) as d:
        made = await d.machines.create(TENANT, sized())
        jump(clock_of(d), 86_400 + 30)
        usage = Usage(d.store, d.host.clock, Prices())
        for _ in range(2):  # open, then closed: the same
            report = await usage.report(TENANT, date(2026, 3, 1), date(2026, 3, 3))
            assert [(r.group["day"], r.amounts.vcpu_milli_ms) for r in report.items] == [
                ("2026-03-01", 500 * 10_000),
                ("2026-03-02", 500 * 86_400_000),
                ("2026-03-03", 500 * 20_000),
            ]
            one = await amounts(d, first=date(2026, 3, 2), last=date(2026, 3, 2), group_by=())
            assert one.vcpu_seconds == 43_200
            await d.machines.sleep(TENANT, made.id)


async def test_by_machine_and_by_key(tmp_path: Path) -> None:
    async with daemon(tmp_path, FakeClock(START)) as d:
        first = await d.machines.create(TENANT, sized())
        second = await d.machines.create(TENANT, sized(created_by="key-2", vcpu=2))
        third = (await d.machines.fork(TENANT, first.id, ForkMachine(created_by="key-2")))[0]
        jump(clock_of(d), 1)
        usage = Usage(d.store, d.host.clock, Prices())
        report = await usage.report(TENANT, group_by=["key", "machine"])
        found = {tuple(r.group.values()): r.amounts.vcpu_milli_ms for r in report.items}
        assert found == {
            ("key-1", first.id): 500_000,
            ("key-2", second.id): 2_000_000,
            ("key-2", third.id): 500_000,
        }
        report = await usage.report(TENANT, group_by=["key"])
        assert [(r.group, r.amounts.vcpu_milli_ms) for r in report.items] == [
            ({"key_id": "key-1"}, 500_000),
            ({"key_id": "key-2"}, 2_500_000),
        ]


async def test_storage_by_what_each_holds(tmp_path: Path) -> None:
    async with daemon(tmp_path, FakeClock(START), memory=True) as d:
        clock = clock_of(d)
        made = await d.machines.create(TENANT, sized())
        snapshot = await d.snapshots.create(TENANT, made.id, "s")
        d.host.storage.sizes = {made.id: 2 * GIB, snapshot.id: GIB}
        await d.engine.meter.round()
        jump(clock, 1800)
        await d.machines.sleep(TENANT, made.id)  # storage goes on as it was
        jump(clock, 1800)
        assert (await amounts(d)).storage_gib_hours == 3
        d.host.storage.sizes[made.id] = 4 * GIB  # its memory lies in the pool now
        await d.engine.meter.round()
        jump(clock, 3600)
        assert (await amounts(d)).storage_gib_hours == 8
        await d.snapshots.delete(TENANT, "s")
        jump(clock, 3600)
        assert (await amounts(d)).storage_gib_hours == 12
        report = await Usage(d.store, clock, Prices()).report(TENANT, group_by=["machine", "key"])
        assert [tuple(r.group.values()) for r in report.items] == [(made.id, "key-1")]
        await d.machines.delete(TENANT, made.id)
        jump(clock, 3600)
        assert (await amounts(d)).storage_gib_hours == 12


async def test_a_frozen_machine_holds_its_memory() -> None:
    row = {"phase": "sleeping", "vcpu": 2.0, "memory_mib": 1024}
    assert metering.rates({**row, "tier": "frozen"}) == (0, 1024)
    assert metering.rates({**row, "tier": "hibernated"}) == (0, 0)
    assert metering.rates({**row, "tier": None}) == (0, 0)
    assert metering.rates({**row, "phase": "running"}) == (2000, 1024)


async def test_another_size_counts_from_when_it_is(tmp_path: Path) -> None:
    from roost.services.models import PatchMachine

    async with daemon(tmp_path, FakeClock(START)) as d:
        made = await d.machines.create(TENANT, sized())
        jump(clock_of(d), 10)
        await d.machines.patch(TENANT, made.id, PatchMachine(vcpu=1.5, memory_mib=1024))
        jump(clock_of(d), 10)
        found = await amounts(d)
        assert (found.vcpu_seconds, found.memory_gib_seconds) == (20, 15)


async def test_egress_is_what_the_counters_of_all_its_slots_said(tmp_path: Path) -> None:
    async with daemon(tmp_path, FakeClock(START)) as d:
        made = await d.machines.create(TENANT, sized())
        sent = d.host.network.sent
        sent[made.id] = 1000
        await d.engine.meter.round()
        await d.engine.meter.round()
        assert (await amounts(d)).egress_bytes == 1000
        sent[made.id] = 1700
        await d.machines.sleep(TENANT, made.id)  # and with that its slot, and its counter
        assert (await amounts(d)).egress_bytes == 1700
        await d.machines.wake(TENANT, made.id)
        sent[made.id] = 300
        await d.engine.meter.round()
        assert (await amounts(d)).egress_bytes == 2000
        # Read before the last sleep, written after it: an old truth changes nothing.
        await d.store.write(
            lambda c: metering.sent(c, made.id, made.generation, 99_000, clock_of(d).now())
        )
        assert (await amounts(d)).egress_bytes == 2000
        sent[made.id] = 450
        await d.machines.delete(TENANT, made.id)
        assert (await amounts(d)).egress_bytes == 2150


async def test_a_warm_machine_costs_nobody_anything_until_it_is_somebodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from roost.services import warm

    monkeypatch.setattr(warm, "REFILL_AFTER_S", 0.0)
    async with daemon(tmp_path, FakeClock(START), warm_machines=1) as d:
        first = await d.machines.create(TENANT, sized())
        await d.machines.delete(TENANT, first.id)
        before = await amounts(d)
        await until(lambda: d.warm.count == 1)
        jump(clock_of(d), 1000)
        starts = d.host.driver.calls["start"]
        made = await d.machines.create(TENANT, sized())
        assert d.host.driver.calls["start"] == starts
        jump(clock_of(d), 2)
        after = await amounts(d)
        assert after.vcpu_milli_ms - before.vcpu_milli_ms == 500 * 2000
        report = await Usage(d.store, d.host.clock, Prices()).report(TENANT, group_by=["machine"])
        assert {r.group["machine_id"] for r in report.items} == {made.id}
        totals = await d.store.read(rows.totals)
        assert totals["vcpu_seconds"] == 0  # nothing is closed yet, and nobody's never was counted


async def test_a_clock_set_back_counts_nothing_twice(tmp_path: Path) -> None:
    async with daemon(tmp_path, FakeClock(START)) as d:
        await d.machines.create(TENANT, sized())
        jump(clock_of(d), 100)
        await d.engine.meter.round()
        jump(clock_of(d), -50)
        await d.engine.meter.round()
        assert (await amounts(d)).vcpu_milli_ms == 500 * 100_000
        jump(clock_of(d), 60)
        await d.engine.meter.round()
        assert (await amounts(d)).vcpu_milli_ms == 500 * 110_000


async def test_what_lived_through_an_absence_is_counted_and_what_died_in_it_is_not(
    tmp_path: Path,
) -> None:
    host = Host(tmp_path, FakeClock(START))
    d = await Daemon.start(host)
    lives, dies = [await d.machines.create(TENANT, sized()) for _ in range(2)]
    jump(clock_of(d), 60)
    await d.engine.meter.round()
    jump(clock_of(d), 30)
    await d.kill()
    host.driver.die(dies.id, Exit("killed"))
    jump(clock_of(d), 3600)
    d = await Daemon.start(host)
    try:
        jump(clock_of(d), 10)
        report = await Usage(d.store, d.host.clock, Prices()).report(TENANT, group_by=["machine"])
        found = {r.group["machine_id"]: r.amounts.vcpu_seconds for r in report.items}
        assert found == {lives.id: Decimal(3700) / 2, dies.id: 30}  # 60 s at most were lost
    finally:
        await d.stop()
        await host.close()


async def test_machines_from_before_anybody_counted(tmp_path: Path) -> None:
    async with daemon(tmp_path, FakeClock(START)) as d:
        made = await d.machines.create(TENANT, sized())
        await d.store.write(lambda c: rows.delete(c, made.id))
        await d.engine.meter._begin_missing()
        jump(clock_of(d), 4)
        assert (await amounts(d)).vcpu_seconds == 2


class Killed(BaseException):
    """The process is gone."""


class Writes:
    """Lets so many writes through; the next one is done or not, and whoever asked never hears of it."""

    def __init__(self, store: Any) -> None:
        self.store, self.left, self.done, self.count = store, -1, False, 0
        self.write = store.write
        self.before: Callable[[], None] = lambda: None

    async def __call__(self, fn: Any) -> Any:
        self.before()
        self.count += 1
        if self.left == 0:
            if self.done:
                await self.write(fn)
                self.done = False
            raise Killed
        self.left -= 1
        return await self.write(fn)


async def _life(d: Daemon) -> None:
    """Everything that opens or closes an interval."""
    made = await d.machines.create(TENANT, sized(key="a"))
    d.host.network.sent[made.id] = 100
    await d.engine.meter.round()
    await d.machines.sleep(TENANT, made.id)
    await d.machines.wake(TENANT, made.id)
    await d.snapshots.create(TENANT, made.id, "s")
    d.host.network.sent[made.id] = 10
    await d.engine.meter.round()
    child = (await d.machines.fork(TENANT, made.id, ForkMachine()))[0]
    await d.snapshots.rollback(TENANT, made.id, "s")
    await d.snapshots.delete(TENANT, "s")
    await d.machines.delete(TENANT, child.id)
    await d.machines.delete(TENANT, made.id)


async def _awake_ms(d: Daemon) -> int:
    """How long machines ran, by what they themselves recorded; those that run, until now."""
    import sqlalchemy as sa

    e = machine_events.c
    query = sa.select(e.machine_id, e.at, e.event).order_by(e.machine_id, e.id)
    total, since = 0, {}
    for machine_id, at, event in await d.store.read(lambda c: list(c.execute(query))):
        if event in ("snapshot", "memory_lost"):
            continue
        began = since.pop(machine_id, None)
        if began is not None:
            total += metering.to_ms(at) - metering.to_ms(began)
        if event == "running":
            since[machine_id] = at
    now = metering.to_ms(d.host.clock.now())
    return total + sum(now - metering.to_ms(at) for at in since.values())


async def test_killed_between_any_two_writes_it_counts_what_was_and_nothing_twice(
    tmp_path: Path,
) -> None:
    """A second goes by before each write; the daemon dies before the n-th, or before its caller hears of it, and
    another begins. What machines recorded of themselves and what was counted are the same."""
    host = Host(tmp_path, FakeClock(START), memory=True)
    clock = host.clock
    assert isinstance(clock, FakeClock)
    writes = Writes(host.store)
    host.store.write = writes  # type: ignore[method-assign]
    writes.before = lambda: jump(clock, 1)
    d = await Daemon.start(host)
    await _life(d)
    whole = writes.count
    await d.stop()
    tried = 0
    for n in range(whole):
        for done in (False, True):
            writes.left, writes.done = -1, False
            d = await Daemon.start(host)
            writes.left, writes.done = n, done
            try:
                async with asyncio.timeout(20):
                    await _life(d)
            except (Killed, asyncio.CancelledError):
                tried += 1
            await d.kill()
            writes.left = -1
            d = await Daemon.start(host)
            for machine in await d.all():
                if machine.phase != "destroyed":
                    await d.machines.delete(TENANT, machine.id)
            for snapshot in (await d.snapshots.list(TENANT)).items:
                await d.snapshots.delete(TENANT, snapshot.id)
            counted = (await amounts(d)).vcpu_milli_ms
            assert counted == 500 * await _awake_ms(d), (n, done)
            assert (await amounts(d)).memory_mib_ms * 500 == counted * 512
            assert await d.store.read(lambda c: rows.of_tenant(c, TENANT)) == []
            await d.stop()
    assert tried > whole
    totals = await host.store.read(rows.totals)
    assert totals["vcpu_seconds"] == pytest.approx(float((counted) / 1e6))
    await host.close()


def test_costs_are_exact() -> None:
    prices = Prices.read(
        '{"currency": "EUR", "vcpu_second": 0.00001, "memory_gib_second": "0.000002",'
        ' "storage_gib_hour": "0.0001", "egress_gib": "0.05"}'
    )
    used = Amounts(
        vcpu_milli_ms=1500 * 3_600_000,  # 1.5 vCPU, 1 h
        memory_mib_ms=2048 * 3_600_000,
        storage_kib_ms=10 * 2**20 * 3_600_000 * 24,  # 10 GiB, 1 day
        egress_bytes=3 * 2**30,
    )
    assert used.cost(prices) == Decimal("0.054") + Decimal("0.0144") + Decimal("0.024") + Decimal(
        "0.15"
    )
    assert Prices().free
    assert used.cost(Prices()) == 0


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"cpu": 1}', '{"vcpu_second": -1}', '{"vcpu_second": "NaN"}',
     '{"vcpu_second": true}', '{"currency": "euro"}'],
)  # fmt: skip
def test_prices_that_are_none(text: str) -> None:
    with pytest.raises(ValueError):
        Prices.read(text)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3 * metering.DAY_MS),
            st.integers(1, 9 * metering.DAY_MS),
            st.sampled_from("ab"),
            st.integers(1, 9),
        ),
        max_size=6,
    ),
    st.sampled_from([("day",), ("machine_id",), ("machine_id", "day"), ()]),
)
def test_days_added_up_are_the_days_gone_through(
    made: list[tuple[int, int, str, int]], columns: tuple[str, ...]
) -> None:
    from roost.services.usage import _open

    meters, want = [], {}
    for since, length, name, rate in made:
        meter = {
            "machine_id": name, "key_id": "k", "vcpu_milli": rate, "memory_mib": rate * 2,
            "storage_kib": 7,
        }  # fmt: skip
        meters.append((meter, since, since + length))
        for day, ms in metering.days(since, since + length):
            group = tuple({"day": day, "machine_id": name}[c] for c in columns)
            want[group] = want.get(group, Amounts()).plus(metering.amounts(meter, ms))
    found: dict[tuple[str, ...], Amounts] = {}
    for group, sums in _open(iter(meters), columns):
        found[group] = found.get(group, Amounts()).plus(sums)
    assert {g: a for g, a in found.items() if a != Amounts()} == want


async def _all_measured(d: Daemon) -> bool:
    return not await d.store.read(rows.unmeasured)


async def test_storage_is_looked_at_soon_after_a_sleep_a_fork_and_a_snapshot(
    tmp_path: Path,
) -> None:
    async with daemon(tmp_path, FakeClock(START), usage_interval_s=3600.0) as d:
        calls = d.host.storage.calls

        async def looked_at(act: Callable[[], Awaitable[Any]]) -> Any:
            before = calls["shares"]
            done = await act()
            await asyncio.sleep(0.02)
            await clock_of(d).advance(meter.SOON_S)
            await until(lambda: calls["shares"] == before + 1)
            await until(lambda: _all_measured(d))
            return done

        made = await looked_at(lambda: d.machines.create(TENANT, sized()))
        await looked_at(lambda: d.machines.sleep(TENANT, made.id))
        await looked_at(lambda: d.machines.wake(TENANT, made.id))
        await looked_at(lambda: d.machines.fork(TENANT, made.id, ForkMachine()))
        await looked_at(lambda: d.snapshots.create(TENANT, made.id, "s"))


async def test_a_round_that_fails_is_made_up_for_by_the_next(tmp_path: Path) -> None:
    async with daemon(tmp_path, FakeClock(START)) as d:
        made = await d.machines.create(TENANT, sized())
        d.host.network.sent[made.id] = 5
        d.host.network.fail("egress", OSError("no netlink"))
        for _ in range(2):
            await clock_of(d).advance(60)
            await asyncio.sleep(0.05)
        await until(lambda: d.host.network.calls["egress"] >= 2)
        await asyncio.sleep(0.05)
        found = await amounts(d)
        assert (found.egress_bytes, found.vcpu_seconds) == (5, 60)
