from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost.drivers.interface import Exit
from roost.engine.machine import Machine
from roost.errors import (
    CapacityError,
    ConflictError,
    InvalidRequestError,
    MachineError,
    NotFoundError,
    RoostError,
)
from roost.services.models import CreateMachine, ForkMachine
from tests.attack.record import case
from tests.unit.engine.kit import OTHER, TENANT, Daemon, daemon, small, until


@pytest.fixture(params=[False, True], ids=["disk", "memory"])
async def d(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Daemon]:
    async with daemon(tmp_path, memory=request.param) as running:
        yield running


def memory(d: Daemon) -> bool:
    return d.host.memory


async def test_children_go_on_from_one_instant_and_the_parent_runs_on(d: Daemon) -> None:
    parent = await d.machines.create(TENANT, small(labels={"a": "b"}, env={"X": "1"}))
    process = d.host.driver.machines[parent.id]
    children = await d.machines.fork(TENANT, parent.id, ForkMachine(count=3, name="child"))
    assert d.host.driver.machines[parent.id] is process
    assert d.host.driver.calls["capture"] == 1
    assert len({m.id for m in children}) == 3
    for child in children:
        assert (child.phase, child.name, child.labels, child.env, child.key) == (
            "running",
            "child",
            {"a": "b"},
            {"X": "1"},
            None,
        )
        made = d.host.driver.machines[child.id]
        assert (made.restored_from is not None) == memory(d)
        assert made.token == d.engine.identity.agent_token(child.id, child.generation)
        assert d.agents.named[child.id]
    assert len({d.agents.named[m.id] for m in children}) == 3
    assert not d.host.storage.kept, "what was kept for the fork goes with it"
    (grandchild,) = await d.machines.fork(TENANT, children[0].id, ForkMachine())
    await d.machines.delete(TENANT, parent.id)
    await d.machines.delete(TENANT, children[0].id)
    assert (await d.machines.get(TENANT, grandchild.id)).phase == "running"
    assert not d.host.leaks(await d.all())


async def test_a_fork_that_ends_takes_no_others_instant(d: Daemon) -> None:
    parent = await d.machines.create(TENANT, small())
    load = d.engine.load

    async def another_ended(machine_id: str) -> Machine:
        await d.engine.collect()
        return await load(machine_id)

    d.engine.load = another_ended  # type: ignore[method-assign]
    assert len(await d.machines.fork(TENANT, parent.id, ForkMachine(count=2))) == 2
    assert not d.host.storage.kept


async def test_a_fork_is_all_or_nothing(d: Daemon) -> None:
    parent = await d.machines.create(TENANT, small())
    d.agents.fail("wait_ready", MachineError("no"))
    with pytest.raises(MachineError):
        await d.machines.fork(TENANT, parent.id, ForkMachine(count=3))
    assert [m.id for m in (await d.machines.list(TENANT)).items] == [parent.id]
    assert not d.host.storage.kept
    assert not d.host.leaks(await d.all())


async def test_no_room_is_told_before_the_parent_is_stopped(d: Daemon) -> None:
    parent = await d.machines.create(TENANT, CreateMachine(memory_mib=500_000))
    with pytest.raises(CapacityError):
        await d.machines.fork(TENANT, parent.id, ForkMachine(count=20))
    assert d.host.driver.calls["capture"] == 0
    for count in (0, 101):
        with pytest.raises(RoostError) as found:
            await d.machines.fork(TENANT, parent.id, ForkMachine(count=count))
        assert found.value.code == "VALIDATION_FAILED"


async def test_a_snapshot_outlives_its_machine_and_makes_others(d: Daemon) -> None:
    m = await d.machines.create(TENANT, small(key="k"))
    made = await d.snapshots.create(TENANT, m.id, "before")
    assert (made.name, made.machine_id, made.memory, made.size_bytes) == (
        "before",
        m.id,
        memory(d),
        7,
    )
    await d.machines.delete(TENANT, m.id)
    for which in (made.id, "before"):
        again = await d.machines.create(TENANT, CreateMachine(snapshot=which, key=f"of-{which}"))
        assert again.phase == "running" and again.memory_mib == m.memory_mib
        assert (d.host.driver.machines[again.id].restored_from is not None) == memory(d)
    with pytest.raises(ConflictError) as found:
        await d.snapshots.create(TENANT, again.id, "before")
    assert found.value.code == "ALREADY_EXISTS"
    assert found.value.details["snapshot_id"] == made.id
    assert [s.id for s in (await d.snapshots.list(TENANT)).items] == [made.id]
    await d.snapshots.delete(TENANT, "before")
    assert not d.host.storage.kept
    with pytest.raises(NotFoundError) as gone:
        await d.machines.create(TENANT, CreateMachine(snapshot=made.id))
    assert gone.value.code == "SNAPSHOT_NOT_FOUND"


async def test_anothers_snapshot_is_not_there(d: Daemon) -> None:
    m = await d.machines.create(TENANT, small())
    made = await d.snapshots.create(TENANT, m.id)
    theirs = await d.machines.create(OTHER, small())
    for call in (
        d.snapshots.get(OTHER, made.id),
        d.snapshots.delete(OTHER, made.id),
        d.machines.create(OTHER, CreateMachine(snapshot=made.id)),
        d.snapshots.rollback(OTHER, theirs.id, made.id),
        d.snapshots.create(OTHER, m.id),
        d.machines.fork(OTHER, m.id, ForkMachine()),
    ):
        with pytest.raises(NotFoundError):
            await call


async def test_rollback_brings_disk_and_memory_of_one_instant(d: Daemon) -> None:
    m = await d.machines.create(TENANT, small())
    disk = d.host.storage.disk(m.id)
    made = await d.snapshots.create(TENANT, m.id)
    then = disk.read_text()
    disk.write_text("since")
    back = await d.snapshots.rollback(TENANT, m.id, made.id)
    assert back.phase == "running" and back.generation == m.generation + 1
    assert disk.read_text().startswith(then)
    assert (d.host.driver.machines[m.id].restored_from is not None) == memory(d)
    await d.machines.sleep(TENANT, m.id)
    asleep = await d.snapshots.rollback(TENANT, m.id, made.id)
    assert asleep.phase == "sleeping" and disk.read_text() == then
    if memory(d):
        with pytest.raises(ConflictError) as found:
            await d.snapshots.delete(TENANT, made.id)
        assert found.value.code == "IN_USE"
    await d.machines.wake(TENANT, m.id)
    await d.snapshots.delete(TENANT, made.id)
    other = await d.machines.create(TENANT, small())
    theirs = await d.snapshots.create(TENANT, other.id)
    with pytest.raises(ConflictError):
        await d.snapshots.rollback(TENANT, m.id, theirs.id)
    assert not d.host.leaks(await d.all())


async def test_sleep_keeps_what_the_rung_can(d: Daemon) -> None:
    m = await d.machines.create(TENANT, small())
    await d.machines.sleep(TENANT, m.id)
    assert bool(d.host.storage.memories) == memory(d)
    made = await d.snapshots.create(TENANT, m.id)  # of a machine asleep
    assert made.memory == memory(d)
    await d.machines.wake(TENANT, m.id)
    assert (d.host.driver.machines[m.id].restored_from is not None) == memory(d)
    assert not d.host.storage.memories
    copy = await d.machines.create(TENANT, CreateMachine(snapshot=made.id))
    assert copy.phase == "running"
    await d.machines.sleep(TENANT, m.id, "stopped")
    assert not d.host.storage.memories
    await d.machines.wake(TENANT, m.id)
    assert d.host.driver.machines[m.id].restored_from is None
    if not memory(d):
        with pytest.raises(RoostError) as found:
            await d.machines.sleep(TENANT, m.id, "hibernated")
        assert found.value.code == "UNSUPPORTED"
    assert not d.host.leaks(await d.all())


async def test_memory_that_cannot_be_kept_or_restored_is_told(tmp_path: Path) -> None:
    async with daemon(tmp_path, memory=True) as d:
        m = await d.machines.create(TENANT, small())
        d.host.driver.fail("hibernate", CapacityError("full", code="STORAGE_FULL"))
        await d.machines.sleep(TENANT, m.id)
        assert not d.host.storage.memories
        await d.machines.wake(TENANT, m.id)
        await d.machines.sleep(TENANT, m.id)
        d.host.driver.fail("restore", ConflictError("flipped", code="SNAPSHOT_INVALID"))
        woken = await d.machines.wake(TENANT, m.id)
        assert woken.phase == "running" and woken.memory_image is None
        said = [
            e.message for e in await d.machines.events(TENANT, m.id) if e.event == "memory_lost"
        ]
        assert len(said) == 2 and "full" in said[0] and "flipped" in said[1]
        assert not d.host.leaks(await d.all())


async def test_memory_is_never_used_twice(tmp_path: Path) -> None:
    """The machine runs on from it, dies, and must start from its disk."""
    async with daemon(tmp_path, memory=True) as d:
        m = await d.machines.create(TENANT, small())
        await d.machines.sleep(TENANT, m.id)
        d.agents.fail("wait_ready", MachineError("silent"))
        with pytest.raises(MachineError):
            await d.machines.wake(TENANT, m.id)
        woken = await d.machines.wake(TENANT, m.id)
        assert d.host.driver.calls["restore"] == 1
        assert d.host.driver.machines[woken.id].restored_from is None
        (told,) = [
            e.message for e in await d.machines.events(TENANT, m.id) if e.event == "memory_lost"
        ]
        assert "a start before this one" in told
        d.host.driver.die(m.id, Exit("killed"))
        await until(lambda: d.engine.roster.peek(m.id) is None)
        await d.machines.wake(TENANT, m.id)
        assert d.host.driver.calls["restore"] == 1


async def test_a_failed_capture_keeps_nothing(d: Daemon) -> None:
    m = await d.machines.create(TENANT, small())
    for where in (d.host.driver, d.host.storage):
        what = "capture" if where is d.host.driver else "seal_snapshot"
        where.fail(what, CapacityError("full", code="STORAGE_FULL"))
        with pytest.raises(CapacityError):
            await d.snapshots.create(TENANT, m.id, "x")
        assert not d.host.storage.kept
        assert (await d.machines.get(TENANT, m.id)).phase == "running"
    assert (await d.snapshots.create(TENANT, m.id, "x")).name == "x"


async def test_one_that_cannot_be_loaded_is_quarantined_by_name(tmp_path: Path) -> None:
    """The machine that found out starts from the disk and says so; nobody else tries."""
    async with daemon(tmp_path, memory=True) as d:
        m = await d.machines.create(TENANT, small())
        made = await d.snapshots.create(TENANT, m.id, "s")
        d.host.driver.fail("restore", ConflictError("flipped", code="SNAPSHOT_INVALID"))
        first = await d.machines.create(TENANT, CreateMachine(snapshot="s"))
        assert first.phase == "running"
        assert d.host.driver.machines[first.id].restored_from is None
        now = await d.snapshots.get(TENANT, made.id)
        assert now.status == "quarantined" and "flipped" in (now.reason or "")
        assert [s.status for s in (await d.snapshots.list(TENANT)).items] == ["quarantined"]
        for call in (
            d.machines.create(TENANT, CreateMachine(snapshot="s")),
            d.snapshots.rollback(TENANT, m.id, "s"),
        ):
            with pytest.raises(ConflictError) as found:
                await call
            assert found.value.code == "SNAPSHOT_INVALID"
            assert made.id in found.value.message and "flipped" in found.value.message
        assert d.host.driver.calls["restore"] == 1
        other = await d.machines.create(TENANT, CreateMachine(snapshot="s", memory=False))
        assert other.phase == "running" and d.host.driver.calls["restore"] == 1
        with pytest.raises(RoostError) as bad:
            await d.machines.create(TENANT, small(memory=False))
        assert bad.value.code == "VALIDATION_FAILED"
        await d.snapshots.delete(TENANT, "s")
        assert not d.host.storage.kept


async def test_one_is_quarantined_also_where_its_disk_does_not_start(tmp_path: Path) -> None:
    async with daemon(tmp_path, memory=True) as d:
        m = await d.machines.create(TENANT, small())
        await d.snapshots.create(TENANT, m.id, "s")
        d.host.driver.fail("restore", ConflictError("flipped", code="SNAPSHOT_INVALID"))
        d.host.driver.fail("start", MachineError("nor this"))
        with pytest.raises(MachineError):
            await d.machines.create(TENANT, CreateMachine(snapshot="s"))
        assert (await d.snapshots.get(TENANT, "s")).status == "quarantined"


async def test_a_fork_has_a_key_where_it_is_one(d: Daemon) -> None:
    parent = await d.machines.create(TENANT, small(key="one"))
    (child,) = await d.machines.fork(TENANT, parent.id, ForkMachine(key="two"))
    assert child.key == "two" and (await d.machines.named(TENANT, "two")).id == child.id
    before = d.host.driver.calls["capture"]
    for taken in ("one", "two"):
        with pytest.raises(ConflictError) as caught:
            await d.machines.fork(TENANT, parent.id, ForkMachine(key=taken))
        assert caught.value.code == "ALREADY_EXISTS"
    assert d.host.driver.calls["capture"] == before, "it is not stopped for nothing"
    for wrong in (ForkMachine(2, key="three"), ForkMachine(key="not a key")):
        with pytest.raises(InvalidRequestError):
            await d.machines.fork(TENANT, parent.id, wrong)
    asked = [ForkMachine(key="both") for _ in range(2)]
    made = await asyncio.gather(
        *(d.machines.fork(TENANT, parent.id, each) for each in asked), return_exceptions=True
    )
    assert sorted(type(each).__name__ for each in made) == ["ConflictError", "list"]
    assert len((await d.machines.list(TENANT)).items) == 3


@case("F11")
async def test_memory_with_another_releases_agent_is_refused_and_the_disk_is_not(
    tmp_path: Path,
) -> None:
    """Its agent goes on in it, and speaks the contract it was started with."""
    another = MachineError("it speaks 2", code="MACHINE_FAILED", details={"contract": 2})
    async with daemon(tmp_path, memory=True) as d:
        m = await d.machines.create(TENANT, small())
        made = await d.snapshots.create(TENANT, m.id, "old")
        d.agents.fail("wait_ready", another)
        with pytest.raises(MachineError, match="it speaks 2"):
            await d.machines.create(TENANT, CreateMachine(snapshot=made.id))
        copy = await d.machines.create(TENANT, CreateMachine(snapshot=made.id, memory=False))
        assert d.host.driver.machines[copy.id].restored_from is None
        await d.machines.sleep(TENANT, m.id)
        d.agents.fail("wait_ready", another)
        with pytest.raises(MachineError, match="it speaks 2"):
            await d.machines.wake(TENANT, m.id)
        assert (await d.machines.wake(TENANT, m.id)).phase == "running"
        assert d.host.driver.machines[m.id].restored_from is None
        assert not d.host.leaks(await d.all())
