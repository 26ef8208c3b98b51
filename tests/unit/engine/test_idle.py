"""Machines that nobody uses: frozen, then on the disk, back with the next call; and what keeps them awake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from roost.clock import FakeClock
from roost.drivers.interface import Exit
from roost.engine.engine import HOUSEKEEPING_S
from roost.engine.idle import MEMORY_LOOK_S, TRY_AGAIN_S
from roost.engine.journal import TRIES
from roost.engine.reservations import HostSize
from roost.errors import (
    CapacityError,
    MachineError,
    RoostError,
    TimeoutExpired,
    UnavailableError,
    UnsupportedError,
)
from roost.services.models import ForkMachine, PatchMachine
from tests.unit.engine.kit import OTHER, TENANT, Daemon, Host, small, until


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    made = Host(tmp_path, FakeClock(), memory=True)
    yield made
    await made.close()


@pytest.fixture
async def d(host: Host) -> AsyncIterator[Daemon]:
    daemon = await Daemon.start(host)
    yield daemon
    await daemon.stop()


async def passes(d: Daemon, seconds: float) -> None:
    """That time, and what is done because of it."""
    assert isinstance(d.host.clock, FakeClock)
    for _ in range(3):  # whoever waits has begun to
        await asyncio.sleep(0)
    await d.host.clock.advance(seconds)
    for _ in range(5):
        await asyncio.sleep(0.005)
        while busy := d.engine.desk.busy():
            future = d.engine.desk.last(busy[0])
            if future is not None:
                await asyncio.wait([future])
            await asyncio.sleep(0)


async def made(d: Daemon, **changes: Any) -> str:
    values = {"autosleep_seconds": 60, "hibernate_after_seconds": 600, **changes}
    return (await d.machines.create(TENANT, small(**values))).id


async def tier(d: Daemon, machine_id: str) -> str:
    machine = await d.machines.get(TENANT, machine_id)
    return machine.tier or machine.phase


async def test_idle_frozen_on_the_disk_and_back(d: Daemon) -> None:
    m = await made(d)
    await passes(d, 55)
    assert await tier(d, m) == "running"
    await passes(d, 6)
    assert await tier(d, m) == "frozen"
    assert d.host.driver.machines[m].frozen
    await passes(d, 590)
    assert await tier(d, m) == "frozen"
    await passes(d, 15)
    assert await tier(d, m) == "hibernated"
    assert m not in d.host.driver.machines
    live = await d.machines.awake(TENANT, m)
    assert live.machine.phase == "running"
    assert d.host.driver.calls["restore"] == 1
    assert not d.host.leaks(await d.all())


async def test_a_call_thaws_it_once_for_all(d: Daemon) -> None:
    m = await made(d)
    await passes(d, 61)
    generation = (await d.machines.get(TENANT, m)).generation
    clocks = d.agents.calls["set_clock"]
    lives = await asyncio.gather(*(d.machines.awake(TENANT, m) for _ in range(50)))
    assert {live.machine.id for live in lives} == {m}
    assert d.host.driver.calls["thaw"] == 1
    assert d.agents.calls["set_clock"] == clocks + 1  # it stood still as well
    now = await d.machines.get(TENANT, m)
    assert (now.phase, now.generation) == ("running", generation)
    assert not d.host.driver.machines[m].frozen
    await passes(d, 59)
    assert await tier(d, m) == "running"
    await passes(d, 2)
    assert await tier(d, m) == "frozen"


@pytest.mark.parametrize(
    "failure",
    [MachineError("silent", code="AGENT_LOST"), TimeoutExpired("late")],
    ids=lambda failure: failure.code,
)
async def test_an_agent_that_misses_the_first_call_after_a_thaw_is_dialled_anew(
    d: Daemon, failure: RoostError
) -> None:
    """As one whose daemon went away while its machine stood still."""
    m = await made(d)
    await passes(d, 61)
    assert await tier(d, m) == "frozen"
    d.agents.fail("set_clock", failure)
    ready = d.agents.calls["wait_ready"]
    assert (await d.machines.awake(TENANT, m)).machine.phase == "running"
    assert d.agents.calls["wait_ready"] == ready + 1
    assert not d.host.driver.machines[m].frozen


async def test_what_is_under_way_keeps_it_awake(d: Daemon) -> None:
    m = await made(d)
    with d.machines.using(m), d.machines.using(m):
        await passes(d, 300)
        assert await tier(d, m) == "running"
    await passes(d, 50)
    d.machines.touch(m)
    await passes(d, 50)
    assert await tier(d, m) == "running"
    await passes(d, 11)
    assert await tier(d, m) == "frozen"


async def test_a_call_that_comes_with_the_sleep_wins(d: Daemon) -> None:
    """It was idle when the sleep got in line, and is not when its turn comes."""
    m = await made(d)
    hanging = d.host.storage.hang(
        "require"
    )  # of a doze of the deepest kind: none here; of a snapshot
    held = asyncio.ensure_future(d.engine.change(m, _unchanged(d, m), before=hanging.wait))
    await passes_only(d, 61)
    with d.machines.using(m):
        hanging.set()
        await held
        await passes(d, 0)
        assert await tier(d, m) == "running"


def _unchanged(d: Daemon, machine_id: str) -> Any:
    from roost.engine.transitions import amend

    return lambda c: amend(c, machine_id, {}, d.host.clock.now())


async def passes_only(d: Daemon, seconds: float) -> None:
    assert isinstance(d.host.clock, FakeClock)
    await asyncio.sleep(0.02)
    await d.host.clock.advance(seconds)
    await asyncio.sleep(0.02)


async def test_autosleep_can_be_changed_at_any_time(d: Daemon) -> None:
    m = await made(d, autosleep_seconds=None)
    await passes(d, 5000)
    assert await tier(d, m) == "running"
    await d.machines.patch(TENANT, m, PatchMachine(autosleep_seconds=30))
    await passes(d, 2)
    assert await tier(d, m) == "frozen"  # idle for longer already
    await d.machines.patch(TENANT, m, PatchMachine(hibernate_after_seconds=5))
    await passes(d, 6)
    assert await tier(d, m) == "hibernated"
    await d.machines.wake(TENANT, m)
    await d.machines.patch(TENANT, m, PatchMachine(autosleep_seconds=None))
    await passes(d, 5000)
    assert await tier(d, m) == "running"


async def test_a_rung_that_keeps_no_memory(tmp_path: Path) -> None:
    host = Host(tmp_path, FakeClock())
    d = await Daemon.start(host)
    m = await made(d)
    with pytest.raises(UnsupportedError):
        await d.machines.sleep(TENANT, m, "hibernated")
    await passes(d, 61)
    assert await tier(d, m) == "frozen"
    await passes(d, 601)
    assert await tier(d, m) == "stopped"
    assert d.agents.calls["shutdown"] == 1  # thawed first, so that its processes could hear of it
    assert not host.leaks(await d.all())
    await d.stop()
    await host.close()


async def test_a_rung_that_cannot_freeze(host: Host) -> None:
    host.driver._is["freeze"] = False
    d = await Daemon.start(host)
    m = await made(d)
    with pytest.raises(UnsupportedError) as caught:
        await d.machines.sleep(TENANT, m, "frozen")
    assert "without a tier" in caught.value.message
    await passes(d, 61)
    assert await tier(d, m) == "hibernated"
    assert host.driver.calls["freeze"] == 0
    await d.stop()


async def test_frozen_outlasts_the_daemon(host: Host) -> None:
    d = await Daemon.start(host)
    m = await made(d)
    await passes(d, 61)
    for ending in (Daemon.stop, Daemon.kill):
        await ending(d)
        d = await Daemon.start(host)
        assert await tier(d, m) == "frozen"
        assert d.engine.roster.peek(m) is None
        assert not host.leaks(await d.all())
    assert host.driver.machines[m].frozen
    assert isinstance(host.clock, FakeClock)
    await passes(d, 500)
    await d.stop()
    d = await Daemon.start(host)
    await passes(d, 102)  # of 600 since it was frozen
    assert await tier(d, m) == "hibernated"
    await d.stop()


async def test_frozen_that_dies_starts_from_its_disk(d: Daemon) -> None:
    m = await made(d)
    await passes(d, 61)
    d.host.driver.die(m, Exit("oom"))
    await until(lambda: m not in d.host.driver.machines)
    await passes(d, 0)
    now = await d.machines.get(TENANT, m)
    assert (now.phase, now.tier, now.reason) == ("sleeping", "stopped", "its memory was lost")
    assert [e.message for e in await d.machines.events(TENANT, m)][-1].startswith("out of memory")
    starts = d.host.driver.calls["start"]
    await d.machines.awake(TENANT, m)
    assert d.host.driver.calls["start"] == starts + 1
    assert not d.host.leaks(await d.all())


async def test_frozen_while_the_host_restarted(host: Host) -> None:
    d = await Daemon.start(host)
    m = await made(d)
    await passes(d, 61)
    await d.kill()
    host.reboot()
    d = await Daemon.start(host)
    now = await d.machines.get(TENANT, m)
    assert (now.phase, now.tier, now.reason) == ("sleeping", "stopped", "host restarted")
    await d.machines.awake(TENANT, m)
    await d.stop()


async def test_frozen_holds_memory_and_no_cpu_and_makes_room(host: Host) -> None:
    host.size = HostSize(1.0, 300, None)
    d = await Daemon.start(host, memory_overcommit=1.0, cpu_overcommit=1.0)
    first, second = [await made(d, vcpu=0.4, memory_mib=128) for _ in range(2)]
    for m in (first, second):
        await d.machines.sleep(TENANT, m, "frozen")
        await passes(d, 1)
    third = await made(
        d, vcpu=0.9, memory_mib=128
    )  # the CPU of the frozen is free, their memory is not
    assert [await tier(d, m) for m in (first, second, third)] == ["hibernated", "frozen", "running"]
    with pytest.raises(CapacityError) as caught:
        await d.machines.wake(TENANT, second)
    assert "vCPU" in caught.value.message
    assert await tier(d, second) == "frozen"
    await d.machines.delete(TENANT, third)
    await d.machines.wake(TENANT, second)
    await d.machines.wake(TENANT, first)
    assert not host.leaks(await d.all())
    await d.stop()


async def test_nothing_is_given_up_for_what_would_not_fit_even_so(host: Host) -> None:
    host.size = HostSize(1.0, 400, None)
    d = await Daemon.start(host, memory_overcommit=1.0, cpu_overcommit=1.0)
    runs = await made(d, vcpu=0.5, memory_mib=100)
    frozen = [await made(d, vcpu=0.2, memory_mib=100) for _ in range(2)]
    for m in frozen:
        await d.machines.sleep(TENANT, m, "frozen")
    for short, asked in (
        ("memory", {"vcpu": 0.1, "memory_mib": 301}),
        ("vcpu", {"vcpu": 0.6, "memory_mib": 64}),
        (
            "vcpu",
            {"vcpu": 0.6, "memory_mib": 250},
        ),  # of neither there is enough; the frozen hold no CPU
    ):
        with pytest.raises(CapacityError) as caught:
            await d.machines.create(OTHER, small(**asked))
        assert short in (caught.value.details["short"], "vcpu")
        assert [await tier(d, m) for m in frozen] == ["frozen", "frozen"]
    asleep = (await d.machines.create(TENANT, small(vcpu=0.1, memory_mib=64))).id
    await d.machines.sleep(TENANT, asleep)
    host.size = HostSize(1.0, 163, None)  # the frozen one that wakes makes no room for itself
    with pytest.raises(CapacityError):
        await d.machines.wake(TENANT, frozen[0])
    assert await tier(d, frozen[1]) == "frozen"
    assert await tier(d, runs) == "running"
    await d.stop()


async def test_room_is_made_until_enough_is_free_and_no_further(host: Host) -> None:
    d = await Daemon.start(host, memory_reserve_mib=50)
    frozen = [await made(d, memory_mib=100) for _ in range(3)]
    for m in frozen:
        await d.machines.sleep(TENANT, m, "frozen")
        await passes(d, 1)
    frees = len(d.host.driver.machines)

    def size() -> HostSize:
        gone = frees - len(d.host.driver.machines)
        return HostSize(4.0, 1_000_000, 10 + 40 * gone)

    d.engine.host = size
    await made(d, memory_mib=64)
    assert [await tier(d, m) for m in frozen] == ["hibernated", "frozen", "frozen"]
    await d.stop()


async def test_who_needs_room_makes_it_of_its_own_first(host: Host) -> None:
    host.size = HostSize(4.0, 300, None)
    d = await Daemon.start(host, memory_overcommit=1.0)
    others = await made(d, memory_mib=100)
    await d.machines.sleep(TENANT, others, "frozen")
    await passes(d, 1)
    own = (await d.machines.create(OTHER, small(memory_mib=100))).id
    await d.machines.sleep(OTHER, own, "frozen")
    await d.machines.create(OTHER, small(memory_mib=200))
    assert await tier(d, others) == "frozen"
    assert (await d.machines.get(OTHER, own)).tier == "hibernated"
    await d.stop()


async def test_the_host_is_short_of_memory(host: Host) -> None:
    d = await Daemon.start(host, memory_reserve_mib=50)
    first, second = await made(d), await made(d)
    for m in (first, second):
        await d.machines.sleep(TENANT, m, "frozen")
        await passes(d, 1)
    host.size = HostSize(4.0, 1_000_000, 10)
    await passes(d, MEMORY_LOOK_S + 1)
    assert [await tier(d, m) for m in (first, second)] == ["hibernated", "frozen"]
    host.size = HostSize(4.0, 1_000_000, 1000)
    await passes(d, MEMORY_LOOK_S + 1)
    assert await tier(d, second) == "frozen"
    await d.stop()


async def test_no_room_on_the_disk_keeps_it_frozen(d: Daemon) -> None:
    m = await made(d)
    await passes(d, 61)
    d.host.storage.fail("require", CapacityError("full", code="STORAGE_FULL"))
    await passes(d, 601)
    assert await tier(d, m) == "frozen"
    await passes(d, TRY_AGAIN_S - 5)
    assert await tier(d, m) == "frozen"
    await passes(d, 10)
    assert await tier(d, m) == "hibernated"


async def test_what_cannot_be_frozen_runs_on(d: Daemon) -> None:
    m = await made(d)
    d.host.driver.fail("freeze", MachineError("the group does not freeze", code="TIMEOUT"))
    with pytest.raises(RoostError) as caught:
        await d.machines.sleep(TENANT, m, "frozen")
    assert caught.value.details["machine_id"] == m
    assert await tier(d, m) == "running"
    assert not d.host.driver.machines[m].frozen
    await d.machines.awake(TENANT, m)
    d.host.driver.fail("freeze", MachineError("again", code="TIMEOUT"))
    await passes(d, 61)
    assert await tier(d, m) == "running"
    await passes(d, TRY_AGAIN_S + 2)
    assert await tier(d, m) == "frozen"


async def test_what_cannot_be_thawed_stays_frozen(d: Daemon) -> None:
    m = await made(d)
    await passes(d, 61)
    d.host.driver.fail("thaw", MachineError("the group does not thaw", code="TIMEOUT"))
    with pytest.raises(RoostError):
        await d.machines.awake(TENANT, m)
    assert await tier(d, m) == "frozen"
    await d.machines.awake(TENANT, m)
    assert await tier(d, m) == "running"


async def test_what_needs_it_to_run_thaws_it(d: Daemon) -> None:
    m = await made(d)
    await d.machines.sleep(TENANT, m, "frozen")
    (child,) = await d.machines.fork(TENANT, m, ForkMachine(count=1))
    assert child.hibernate_after_seconds == 600
    assert [await tier(d, each) for each in (m, child.id)] == ["frozen", "running"]  # as it was
    await d.snapshots.create(TENANT, m, "s")
    assert await tier(d, m) == "frozen"
    assert (await d.snapshots.rollback(TENANT, m, "s")).phase == "sleeping"
    assert not d.host.leaks(await d.all())
    await d.machines.wake(TENANT, m)


async def test_its_size_is_the_one_it_was_frozen_with(d: Daemon) -> None:
    m = await made(d)
    await d.machines.sleep(TENANT, m, "frozen")
    for change in ({"memory_mib": 128}, {"memory_mib": 64, "vcpu": 0.2}):
        with pytest.raises(RoostError) as caught:
            await d.machines.patch(TENANT, m, PatchMachine(**change))
        assert caught.value.code == "INVALID_STATE"
    now = await d.machines.get(TENANT, m)
    assert (now.vcpu, now.memory_mib) == (0.1, 64)
    await d.machines.sleep(TENANT, m)
    assert (await d.machines.patch(TENANT, m, PatchMachine(memory_mib=128))).memory_mib == 128


async def test_who_comes_as_it_falls_asleep_gets_in_line(d: Daemon) -> None:
    """Nobody is given a machine whose sleep has been decided."""
    m = await made(d)
    gate = d.host.driver.hang("freeze")
    await passes_only(d, 61)
    await until(lambda: d.host.driver.calls["freeze"] == 1)
    coming = asyncio.ensure_future(d.machines.awake(TENANT, m))
    await asyncio.sleep(0.02)
    assert not coming.done()
    gate.set()
    assert (await coming).machine.phase == "running"
    assert d.host.driver.calls["thaw"] == 1


async def test_decided_and_not_written_it_runs_on(d: Daemon) -> None:
    m = await made(d)
    write = d.engine.store.write

    async def broken(fn: Any) -> Any:
        raise UnavailableError("locked", code="DATABASE_UNAVAILABLE")

    d.engine.store.write = broken  # type: ignore[method-assign]
    with pytest.raises(RoostError):
        await d.machines.sleep(TENANT, m, "frozen")
    d.engine.store.write = write  # type: ignore[method-assign]
    assert d.engine.roster.peek(m) is not None


@pytest.mark.parametrize("what", ["freeze", "thaw"])
async def test_a_daemon_that_dies_between_the_deed_and_its_row(host: Host, what: str) -> None:
    """What stands still is what the row says does."""
    d = await Daemon.start(host)
    m = await made(d)
    if what == "thaw":
        await d.machines.sleep(TENANT, m, "frozen")
    points: list[str] = []

    class Killed(BaseException):
        pass

    def hook(kind: str, point: str) -> None:
        if (kind, point) == (what, "end"):
            points.append(point)
            raise Killed

    d.engine.journal._hook = hook
    work = d.machines.wake(TENANT, m) if what == "thaw" else d.machines.sleep(TENANT, m, "frozen")
    with pytest.raises((Killed, asyncio.CancelledError)):
        await work
    await d.kill()
    assert points
    d = await Daemon.start(host)
    assert await tier(d, m) == ("frozen" if what == "thaw" else "running")
    assert not host.leaks(await d.all())
    await d.machines.awake(TENANT, m)
    assert not host.leaks(await d.all())
    await d.stop()


async def test_what_is_stuck_between_frozen_and_running_is_mended(host: Host) -> None:
    d = await Daemon.start(host)
    m = await made(d)
    slow = [MachineError("it does not", code="TIMEOUT") for _ in range(TRIES)]
    host.driver.fail("freeze", MachineError("nor that", code="TIMEOUT"))
    host.driver.fail("thaw", *slow)
    with pytest.raises(RoostError):
        await d.machines.sleep(TENANT, m, "frozen")
    assert await tier(d, m) == "failed"
    await passes(d, HOUSEKEEPING_S + 1)

    async def running() -> bool:
        return await tier(d, m) == "running"

    await until(running)
    assert await d.engine.stuck() == []
    await d.machines.awake(TENANT, m)
    assert not host.leaks(await d.all())
    await d.stop()


async def test_one_that_an_older_release_started_can_be_frozen(host: Host) -> None:
    host.driver._is["freeze"] = False
    d = await Daemon.start(host)
    m = await made(d)
    await d.stop()
    host.driver._is["freeze"] = True
    d = await Daemon.start(host)
    assert (await d.machines.get(TENANT, m)).capabilities.freeze
    await passes(d, 61)
    assert await tier(d, m) == "frozen"
    await d.stop()


async def test_never_up_but_by_waking(d: Daemon) -> None:
    m = await made(d)
    for asked, got in (("frozen", "frozen"), (None, "hibernated"), ("frozen", "hibernated")):
        assert (await d.machines.sleep(TENANT, m, asked)).tier == got
    await d.machines.wake(TENANT, m)
    assert (await d.machines.sleep(TENANT, m, "stopped")).tier == "stopped"
    with pytest.raises(RoostError) as caught:
        await d.machines.sleep(TENANT, m, "deep")
    assert caught.value.code == "VALIDATION_FAILED"


async def test_states_are_told_as_they_come(d: Daemon) -> None:
    m = await made(d)
    with pytest.raises(RoostError) as caught:
        await d.machines.states(OTHER, m)
    assert caught.value.code == "MACHINE_NOT_FOUND"
    states = await d.machines.states(TENANT, m)
    first = await anext(states)
    assert first.phase == "running"
    asleep = asyncio.ensure_future(d.machines.sleep(TENANT, m, "frozen"))
    seen = [first.revision]
    while (
        now := await asyncio.wait_for(anext(states), 15)
    ).tier != "frozen" or now.phase != "sleeping":
        seen.append(now.revision)
    seen.append(now.revision)
    assert seen == sorted(set(seen))
    await asleep
    await states.aclose()
    again = await d.machines.states(TENANT, m, after=now.revision)  # nothing is told twice
    waiting = asyncio.ensure_future(anext(again))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    await d.machines.delete(TENANT, m)
    rest = [await waiting] + [each async for each in again]
    assert rest[-1].phase == "destroyed"
    assert not d.engine.changes._waiting
