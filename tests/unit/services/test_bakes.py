"""Machines that go on from one that was started once: made once, for what it depends on, and seen by nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from roost.clock import FakeClock
from roost.drivers.fake import FakeDriver
from roost.drivers.interface import Size
from roost.engine.reservations import HostSize
from roost.errors import CapacityError, ConflictError, MachineError, NotFoundError, RoostError
from roost.services import bakes
from roost.services.models import CreateMachine
from roost.store import snapshots
from tests.unit.engine.kit import OTHER, TENANT, Daemon, Host, daemon, small, until


def baking(**changes: Any) -> FakeDriver:
    return FakeDriver(memory_snapshot=True, bakes=True, first_token="known to all", **changes)


@pytest.fixture
async def d(tmp_path: Path) -> AsyncIterator[Daemon]:
    day = 86400.0  # weeks pass here: not a minute at a time
    async with daemon(
        tmp_path, clock=FakeClock(), driver=baking(), usage_interval_s=day, operation_timeout_s=60.0
    ) as running:
        yield running


async def kept(d: Daemon) -> list[Any]:
    """Rows of bakes."""

    def fn(connection: Any) -> list[Any]:
        found = snapshots.page(connection, bakes.NOBODY, machine_id=None, limit=100, after=None)
        return list(found)

    return await d.store.read(fn)


async def test_it_is_made_once_and_machines_go_on_from_its_memory(d: Daemon) -> None:
    """``FakeDriver.restore`` itself checks that disk and token are of the instant captured."""
    driver = d.host.driver
    made = await asyncio.gather(*(d.machines.create(TENANT, small()) for _ in range(5)))
    other = await d.machines.create(OTHER, small())
    (row,) = await kept(d)
    assert (driver.calls["start"], driver.calls["capture"], driver.calls["restore"]) == (1, 1, 6)
    assert set(driver.machines) == {m.id for m in (*made, other)}, "the one baked is gone"
    assert d.host.storage.disks == set(driver.machines)
    assert d.host.storage.kept == {row["id"]}
    tokens = set()
    for m in (*made, other):
        running = driver.machines[m.id]
        assert running.restored_from == d.host.storage.snapshot(row["id"]).memory
        token = d.engine.identity.agent_token(m.id, m.generation)
        assert running.token == running.used_token == token
        tokens.add(token)
        assert d.agents.named[m.id], "a machine id of its own"
        (renewal,) = [request for machine_id, request in d.agents.renewals if machine_id == m.id]
        assert renewal.hostname == m.hostname
        assert renewal.renew_ssh_host_keys
        # It is no machine's child, and waits for no snapshot once it runs.
        assert m.memory_image is None
    assert len(tokens) == 6
    assert d.agents.calls["reseed"] == 7, "each with entropy of its own"
    assert not d.host.leaks(await d.all() + (await d.machines.list(OTHER)).items)


async def test_what_it_depends_on_makes_another(d: Daemon) -> None:
    driver = d.host.driver
    await d.machines.create(TENANT, small())

    async def made_anew(request: CreateMachine) -> bool:
        before = driver.calls["capture"]
        m = await d.machines.create(TENANT, request)
        assert driver.machines[m.id].restored_from is not None
        return driver.calls["capture"] > before

    # The share of a CPU, the name and the rest are the machine's alone.
    assert not await made_anew(small(vcpu=1.0, name="x", env={"A": "1"}, labels={"a": "b"}))
    assert await made_anew(small(vcpu=1.5))
    assert not await made_anew(small(vcpu=2.0))
    assert await made_anew(small(memory_mib=128))
    assert await made_anew(small(storage_gib=20))
    driver.depends = {"guest": "newer"}
    assert await made_anew(small())
    driver.files = {"/etc/ca": b"newer"}
    assert await made_anew(small())
    assert d.agents.written == {"/etc/ca": b"newer"}
    d.host.recipes.digest, d.host.recipes.letter = "sha256:r2", "b"
    await d.templates.build("base")
    assert await made_anew(small())
    assert not await made_anew(small())
    rows = await kept(d)
    assert len({row["name"] for row in rows}) == len(rows) == 7


async def test_it_is_prepared_before_it_is_named(d: Daemon) -> None:
    """What it depends on is only known then."""
    d.host.driver.fail("prepare", CapacityError("no mirror", code="STORAGE_FULL"))
    with pytest.raises(CapacityError):
        await d.machines.create(TENANT, small())
    assert not d.host.driver.calls["start"]
    assert (await d.machines.list(TENANT)).items == []
    await d.machines.create(TENANT, small())


async def test_memory_that_cannot_be_loaded_is_told_and_baked_anew(d: Daemon) -> None:
    driver = d.host.driver
    await d.machines.create(TENANT, small())
    (bad,) = await kept(d)
    driver.fail("restore", ConflictError("flipped", code="SNAPSHOT_INVALID"))
    m = await d.machines.create(TENANT, small())
    assert m.phase == "running"
    assert driver.machines[m.id].restored_from is None
    assert driver.machines[m.id].token == d.engine.identity.agent_token(m.id, m.generation)
    assert d.agents.named[m.id]
    (said,) = [e for e in await d.machines.events(TENANT, m.id) if e.event == "memory_lost"]
    assert "SNAPSHOT_INVALID: flipped" in said.message
    assert driver.calls["capture"] == 1

    again = await d.machines.create(TENANT, small())
    assert driver.calls["capture"] == 2
    (good,) = await kept(d)
    assert good["id"] != bad["id"] and good["name"] == bad["name"]
    assert driver.machines[again.id].restored_from == d.host.storage.snapshot(good["id"]).memory
    assert d.host.storage.kept == {good["id"]}
    assert not [e for e in await d.machines.events(TENANT, again.id) if e.event == "memory_lost"]


async def test_a_machine_that_only_could_not_be_started_does_not_cost_the_bake(d: Daemon) -> None:
    driver = d.host.driver
    await d.machines.create(TENANT, small())
    driver.fail("restore", MachineError("the VMM ended at once", code="MACHINE_FAILED"))
    m = await d.machines.create(TENANT, small())
    assert driver.machines[m.id].restored_from is None
    assert "memory_lost" in [e.event for e in await d.machines.events(TENANT, m.id)]
    again = await d.machines.create(TENANT, small())
    assert driver.machines[again.id].restored_from is not None
    assert driver.calls["capture"] == 1


@pytest.mark.parametrize("where", ["warm-up", "start", "agent", "capture"])
async def test_a_bake_that_fails_fails_those_who_wait_and_leaves_nothing(
    d: Daemon, where: str
) -> None:
    match where:
        case "warm-up":
            d.agents.exit_codes = [3]
        case "start":
            d.host.driver.fail("start", MachineError("no kernel", code="MACHINE_FAILED"))
        case "agent":
            d.agents.fail("wait_ready", MachineError("silent", code="MACHINE_FAILED"))
        case "capture":
            d.host.driver.fail("capture", CapacityError("full", code="STORAGE_FULL"))
    heard = await asyncio.gather(
        *(d.machines.create(TENANT, small(key=f"k{n}")) for n in range(3)), return_exceptions=True
    )
    for error in heard:
        assert isinstance(error, RoostError)
        assert error.code == ("STORAGE_FULL" if where == "capture" else "MACHINE_FAILED")
        assert "machine_id" not in error.details, "there is none to look at"
    if where == "warm-up":
        assert "'true' ended with 3: what it complains of" in str(heard[0])
    assert (await d.all(), await kept(d)) == ([], [])
    assert not d.host.driver.machines and not d.host.storage.kept
    assert not d.host.storage.disks and not d.host.network.slots
    m = await d.machines.create(TENANT, small(key="k0"))
    assert m.phase == "running" and len(await kept(d)) == 1


async def test_what_the_template_warms_up_runs_before_the_capture(d: Daemon) -> None:
    commands = ["pip download x", "python3 -c ''"]
    d.host.recipes.recipe = lambda name: SimpleNamespace(  # type: ignore[method-assign]
        name=name,
        digest=f"sha256:{commands[0]}",
        config={"warmup": list(commands)},
        dockerfile=None,
        parents=(),
    )
    await d.templates.build("base")
    await d.machines.create(TENANT, small())
    assert [argv[-1] for _, argv in d.agents.ran] == commands
    assert len({machine_id for machine_id, _ in d.agents.ran}) == 1
    d.host.driver.calls.clear()
    commands.reverse()
    await d.templates.build("base")
    await d.machines.create(TENANT, small())
    assert d.host.driver.calls["capture"] == 1, "another warm-up, another bake"


async def test_those_who_wait_may_go_away(d: Daemon) -> None:
    gate = d.host.driver.hang("start")
    first = asyncio.ensure_future(d.machines.create(TENANT, small()))
    second = asyncio.ensure_future(d.machines.create(TENANT, small()))
    await until(lambda: d.host.driver.calls["start"])
    first.cancel()
    gate.set()
    assert (await second).phase == "running"
    assert d.host.driver.calls["capture"] == 1
    assert len((await d.machines.list(TENANT)).items) == 1


async def test_who_does_not_wait_is_answered_before_it_is_made(d: Daemon) -> None:
    driver = d.host.driver
    gate = driver.hang("start")
    m = await d.machines.create(TENANT, small(), wait=False)
    assert m.phase == "accepted"
    await until(lambda: driver.calls["start"])
    # Others wait for the same, and who deletes one does not wait for it.
    other = await d.machines.create(TENANT, small(), wait=False)
    unwanted = await d.machines.create(TENANT, small(), wait=False)
    assert (await d.machines.delete(TENANT, unwanted.id)).phase == "destroyed"
    assert (await d.machines.get(TENANT, m.id)).phase == "accepted"
    gate.set()
    for each in (m, other):
        assert (await d.engine.settled(each.id)).phase == "running"
        assert driver.machines[each.id].restored_from is not None
    assert driver.calls["capture"] == 1
    assert set(driver.machines) == {m.id, other.id}
    assert not d.host.leaks(await d.all())


async def test_who_does_not_wait_finds_a_failed_machine_where_it_cannot_be_made(d: Daemon) -> None:
    d.host.driver.fail("start", MachineError("no kernel", code="MACHINE_FAILED"))
    m = await d.machines.create(TENANT, small(), wait=False)
    with pytest.raises(RoostError):
        await d.engine.settled(m.id)
    failed = await d.machines.get(TENANT, m.id)
    assert (failed.phase, failed.retryable) == ("failed", True)
    assert "no kernel" in (failed.reason or "")
    assert not d.host.leaks(await d.all())
    assert (await d.machines.wake(TENANT, m.id)).phase == "running"
    assert d.host.driver.machines[m.id].restored_from is not None, "from a bake"


async def test_it_fits_where_the_machine_that_waits_for_it_does(tmp_path: Path) -> None:
    room = {"memory_overcommit": 1.0}
    async with daemon(tmp_path, clock=FakeClock(), driver=baking(), **room) as d:
        d.host.size = HostSize(4.0, small().memory_mib + 1)
        m = await d.machines.create(TENANT, small(), wait=False)
        assert (await d.engine.settled(m.id)).phase == "running"


async def test_a_daemon_that_is_killed_while_one_waits_says_so(tmp_path: Path) -> None:
    host = Host(tmp_path, FakeClock(), driver=baking())
    try:
        d = await Daemon.start(host)
        host.driver.hang("start")
        m = await d.machines.create(TENANT, small(), wait=False)
        await until(lambda: host.driver.calls["start"])
        await d.kill()
        host.driver.script.hangs.clear()
        d = await Daemon.start(host)
        failed = await d.machines.get(TENANT, m.id)
        assert (failed.phase, failed.retryable) == ("failed", True)
        assert failed.reason
        assert not host.leaks(await d.all())
        assert not host.driver.machines
        assert (await d.machines.wake(TENANT, m.id)).phase == "running"
        assert host.driver.machines[m.id].restored_from is not None
        await d.stop()
    finally:
        await host.close()


async def test_no_tenant_sees_it(d: Daemon) -> None:
    gate = d.host.driver.hang("capture")
    creating = asyncio.ensure_future(d.machines.create(TENANT, small()))
    await until(lambda: d.host.driver.calls["capture"])
    (baked,) = d.host.driver.machines
    for tenant in (TENANT, OTHER):
        assert (await d.machines.list(tenant)).items == []
        for call in (d.machines.get, d.machines.awake, d.machines.delete, d.machines.events):
            with pytest.raises(NotFoundError):
                await call(tenant, baked)
    gate.set()
    await creating
    (row,) = await kept(d)
    for tenant in (TENANT, OTHER):
        assert (await d.snapshots.list(tenant)).items == []
        for which in (row["id"], row["name"]):
            with pytest.raises(NotFoundError):
                await d.snapshots.get(tenant, which)
            with pytest.raises(NotFoundError):
                await d.snapshots.delete(tenant, which)
            with pytest.raises(NotFoundError):
                await d.machines.create(tenant, CreateMachine(snapshot=which))


async def test_it_goes_once_nothing_was_made_from_it_for_long(d: Daemon) -> None:
    clock = d.host.clock
    assert isinstance(clock, FakeClock)
    week = bakes.KEEP.total_seconds()
    m = await d.machines.create(TENANT, small())
    await d.machines.create(TENANT, small(memory_mib=128))
    await clock.advance(week - 60)
    await d.bakes.collect()
    assert len(await kept(d)) == 2
    await d.machines.create(TENANT, small())
    await clock.advance(120)
    await d.bakes.collect()
    (row,) = await kept(d)
    assert row["machine"]["memory_mib"] == 64
    assert d.host.storage.kept == {row["id"]}
    await clock.advance(week)
    await d.bakes.collect()
    assert (await kept(d), d.host.storage.kept) == ([], set())
    assert (await d.machines.get(TENANT, m.id)).phase == "running"
    await d.machines.create(TENANT, small())
    assert len(await kept(d)) == 1


async def test_one_that_a_machine_is_being_made_from_stays(d: Daemon) -> None:
    clock = d.host.clock
    assert isinstance(clock, FakeClock)
    await d.machines.create(TENANT, small())
    template = await d.templates.resolve(TENANT, "base")
    async with d.bakes.source(template, "fake", Size(0.1, 64, 10), {}):
        assert len(await kept(d)) == 1, "the same"
        await clock.advance(bakes.KEEP.total_seconds() + 60)
        await d.bakes.collect()
        assert len(await kept(d)) == 1
    gate = d.host.driver.hang("restore")
    creating = asyncio.ensure_future(d.machines.create(TENANT, small()))
    await until(lambda: d.host.driver.calls["restore"] == 2)
    await clock.advance(bakes.KEEP.total_seconds() + 60)
    await d.bakes.collect()
    assert len(await kept(d)) == 1
    gate.set()
    assert d.host.driver.machines[(await creating).id].restored_from is not None


async def test_a_later_daemon_uses_it_and_ends_what_was_being_baked(tmp_path: Path) -> None:
    host = Host(tmp_path, FakeClock(), driver=baking())
    d = await Daemon.start(host)
    try:
        m = await d.machines.create(TENANT, small())
        gate = host.driver.hang("capture")
        baking_on = asyncio.ensure_future(d.machines.create(TENANT, small(memory_mib=128)))
        await until(lambda: host.driver.calls["capture"] == 2)
        await d.kill()
        await asyncio.gather(baking_on, return_exceptions=True)
        gate.set()
        host.driver.script.hangs.clear()

        assert isinstance(host.clock, FakeClock)
        await host.clock.advance(1)
        d = await Daemon.start(host)
        assert set(host.driver.machines) == {m.id}, "the one that was being baked is gone"
        assert host.storage.disks == {m.id}
        again = await d.machines.create(TENANT, small())
        await d.machines.create(TENANT, small(memory_mib=128))
        assert host.driver.calls["capture"] == 3
        assert host.driver.machines[again.id].restored_from is not None
        await d.bakes.collect()
        assert len(host.driver.machines) == 3 and len(await kept(d)) == 2
        await d.stop()
    finally:
        await host.close()
