from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from roost.clock import FakeClock
from roost.drivers.interface import Exit
from roost.engine.engine import HOUSEKEEPING_S
from roost.engine.journal import TRIES, Operation
from roost.errors import MachineError, NotFoundError, RoostError
from roost.services.models import PatchMachine
from roost.store import machines as rows
from roost.store import operations
from tests.attack.record import case
from tests.unit.engine.kit import TENANT, Daemon, FakeAgents, Host, small, until


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    made = Host(tmp_path)
    yield made
    await made.close()


async def test_machines_outlive_the_daemon(host: Host) -> None:
    d = await Daemon.start(host)
    m = await d.machines.create(TENANT, small())
    asleep = await d.machines.create(TENANT, small())
    await d.machines.sleep(TENANT, asleep.id)
    for ending in (Daemon.stop, Daemon.kill):
        await ending(d)
        assert set(host.driver.machines) == {m.id}
        d = await Daemon.start(host)
        live = await d.machines.awake(TENANT, m.id)
        assert (live.machine.generation, live.machine.phase) == (1, "running")
        assert live.config == {"env": {"FROM": "base"}}
        assert (await d.machines.get(TENANT, asleep.id)).phase == "sleeping"
        assert not host.leaks(await d.all())
    assert host.driver.calls["start"] == 2
    host.driver.die(m.id, Exit("oom"))  # the adopted one is watched
    await until(lambda: d.engine.roster.peek(m.id) is None)
    await d.machines.wake(TENANT, m.id)
    await d.stop()


@case("F11")
async def test_an_agent_of_another_contract_is_told_at_once(host: Host) -> None:
    d = await Daemon.start(host)
    m = await d.machines.create(TENANT, small())
    await d.kill()
    # Before the first call to it: the next daemon says hello by itself.
    with_another = MachineError("it speaks 2", code="MACHINE_FAILED", details={"contract": 2})
    FakeAgents.next_acquaint = with_another
    try:
        d = await Daemon.start(host)

        async def told() -> bool:
            events = await d.machines.events(TENANT, m.id)
            return any(e.event == "agent" and "it speaks 2" in e.message for e in events)

        await until(told)
    finally:
        FakeAgents.next_acquaint = None
    assert (await d.machines.get(TENANT, m.id)).phase == "running", "and it can be stopped"
    assert (await d.machines.sleep(TENANT, m.id)).phase == "sleeping"
    await d.stop()


async def test_a_machine_that_died_while_no_daemon_looked(host: Host) -> None:
    d = await Daemon.start(host)
    m = await d.machines.create(TENANT, small())
    await d.stop()
    host.driver.die(m.id)
    d = await Daemon.start(host)
    m = await d.machines.get(TENANT, m.id)
    assert (m.phase, m.reason, m.retryable, m.desired_state) == (
        "failed",
        "crashed",
        True,
        "running",
    )
    assert not host.leaks(await d.all())
    assert (await d.machines.wake(TENANT, m.id)).phase == "running"
    await d.stop()


async def test_after_a_reboot_the_next_call_starts_it(host: Host) -> None:
    d = await Daemon.start(host)
    m = await d.machines.create(TENANT, small())
    await d.kill()
    host.reboot()
    d = await Daemon.start(host)
    m = await d.machines.get(TENANT, m.id)
    assert (m.phase, m.reason, m.desired_state) == ("sleeping", "host restarted", "running")
    assert not host.leaks(await d.all())
    live = await d.machines.awake(TENANT, m.id)
    assert live.machine.generation == 2
    assert not host.leaks(await d.all())
    await d.stop()


async def test_debris_is_swept(host: Host) -> None:
    d = await Daemon.start(host)
    m = await d.machines.create(TENANT, small())
    await d.machines.sleep(TENANT, m.id)
    await d.stop()
    host.driver.debris |= {"stranger", m.id}
    host.storage.disks.add("stranger")
    host.network.slots["stranger"] = 7
    d = await Daemon.start(host)
    assert not host.leaks(await d.all())
    assert host.storage.disks == {m.id}
    host.driver.fail("remove", RoostError("no"))
    host.driver.debris.add("x")
    await d.stop()
    d = await Daemon.start(host)  # what cannot be swept does not keep the daemon from starting
    assert host.driver.debris == {"x"}
    await d.stop()


async def test_a_state_between_two_states_without_an_operation(host: Host) -> None:
    d = await Daemon.start(host)
    made = [await d.machines.create(TENANT, small()) for _ in range(6)]
    phases = ["accepted", "placement_pending", "starting", "waking", "stopping", "destroying"]
    for m, phase in zip(made, phases, strict=True):
        await host.store.write(lambda c, m=m, p=phase: rows.update(c, m.id, {"phase": p}))
    await d.kill()
    d = await Daemon.start(host)
    found = {m.id: m for m in await d.all()}
    assert [found[m.id].phase for m in made] == ["failed"] * 5 + ["destroyed"]
    assert not host.leaks(await d.all())
    await d.stop()


async def test_ttl_destroys_also_after_a_restart(tmp_path: Path) -> None:
    clock = FakeClock()
    host = Host(tmp_path, clock)
    d = await Daemon.start(host)
    short = await d.machines.create(TENANT, small(ttl_seconds=100))
    long = await d.machines.create(TENANT, small(ttl_seconds=200))
    kept = await d.machines.create(TENANT, small(ttl_seconds=100))
    asleep = await d.machines.create(TENANT, small(ttl_seconds=100))
    await d.machines.sleep(TENANT, asleep.id)
    await d.machines.patch(TENANT, kept.id, PatchMachine(ttl_seconds=None))
    assert short.expires_at == clock.now() + timedelta(seconds=100)

    async def phase(machine_id: str) -> str:
        return (await d.machines.get(TENANT, machine_id)).phase

    async def destroyed(*ids: str) -> bool:
        return [await phase(i) for i in ids] == ["destroyed"] * len(ids)

    await clock.advance(99)
    await asyncio.sleep(0.02)
    assert await phase(short.id) == "running"
    await clock.advance(2)
    await until(lambda: destroyed(short.id, asleep.id))
    assert [await phase(i) for i in (long.id, kept.id)] == ["running", "running"]
    assert "expired" in [e.event for e in await d.machines.events(TENANT, short.id)]
    await d.stop()
    await clock.advance(100)
    d = await Daemon.start(host)
    await until(lambda: destroyed(long.id))
    assert await phase(kept.id) == "running"
    await clock.advance(3700)
    await d.engine.forget()
    with pytest.raises(NotFoundError):
        await d.machines.get(TENANT, short.id)
    assert [m.id for m in await d.all()] == [kept.id]
    await d.stop()
    await host.close()


async def test_activity_is_written_down_now_and_then(tmp_path: Path) -> None:
    clock = FakeClock()
    host = Host(tmp_path, clock)
    d = await Daemon.start(host)
    m = await d.machines.create(TENANT, small())
    before = (await d.machines.get(TENANT, m.id)).last_activity_at
    await clock.advance(10)
    await d.machines.awake(TENANT, m.id)
    at = clock.now()
    assert (await d.machines.get(TENANT, m.id)).last_activity_at == before
    await clock.advance(7)
    await d.engine.flush_activity()
    assert (await d.machines.get(TENANT, m.id)).last_activity_at == at
    await d.stop()
    await host.close()


async def test_a_left_over_operation_is_settled_without_a_restart(tmp_path: Path) -> None:
    clock = FakeClock()
    host = Host(tmp_path, clock)
    d = await Daemon.start(host)
    m = await d.machines.create(TENANT, small())
    await d.machines.sleep(TENANT, m.id)

    def half_done(connection: sa.Connection) -> Operation:
        rows.update(connection, m.id, {"phase": "waking"})
        return d.engine.journal.open(connection, "wake", m.id, {"fresh_disk": False}, step=1)

    await host.store.write(half_done)
    host.network.slots[m.id] = 3
    await d.engine.settle_left_overs()  # too young: somebody may be at it
    assert len(await host.store.read(operations.open_ones)) == 1
    await clock.advance(31)
    await d.engine.settle_left_overs()
    await d.engine.settled(m.id)
    assert (await d.machines.get(TENANT, m.id)).phase == "sleeping"
    assert not host.network.slots
    assert (await d.machines.wake(TENANT, m.id)).phase == "running"
    await d.stop()
    await host.close()


async def test_what_is_stuck_is_taken_to_its_end_without_a_restart(tmp_path: Path) -> None:
    host = Host(tmp_path, FakeClock())
    d = await Daemon.start(host)
    going, sleeping = [await d.machines.create(TENANT, small()) for _ in range(2)]
    errors = [MachineError("the group is busy") for _ in range(TRIES)]
    host.driver.fail("remove", *errors)
    with pytest.raises(MachineError):
        await d.machines.delete(TENANT, going.id)
    host.driver.fail("remove", *errors)
    with pytest.raises(MachineError):
        await d.machines.sleep(TENANT, sleeping.id)
    host.driver.fail("remove", *errors)  # and once more, when it is tried first
    assert isinstance(host.clock, FakeClock)
    seen = []
    for _ in range(4):
        await host.clock.advance(HOUSEKEEPING_S + 1)
        for _ in range(40):
            await asyncio.sleep(0.005)
        phases = {m.id: m.phase for m in await d.all()}
        seen.append((phases[going.id], phases[sleeping.id]))
    assert "failed" in seen[0]
    assert seen[-1] == ("destroyed", "sleeping")
    assert await d.engine.stuck() == []
    assert not host.leaks(await d.all())
    await d.stop()
    await host.close()
