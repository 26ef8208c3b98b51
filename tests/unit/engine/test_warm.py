"""Machines made ahead: handed out whole, to one, and never in the way."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError

from roost.drivers.interface import Size
from roost.engine.reservations import HostSize
from roost.errors import CapacityError, ConflictError, LimitError, MachineError, NotFoundError
from roost.services import warm
from roost.services.bakes import NOBODYS

from .kit import OTHER, TENANT, Daemon, daemon, small, until


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "REFILL_AFTER_S", 0.0)


async def stocked(d: Daemon, count: int = 2) -> set[str]:
    """Ids of the warm ones, once there are so many."""
    await until(lambda: d.warm.count >= count)
    return {each for shelf in d.warm._shelves.values() for each in shelf.ready}


async def test_one_is_handed_out_and_another_made(tmp_path: Path) -> None:
    async with daemon(tmp_path, warm_machines=2) as d:
        first = await d.machines.create(TENANT, small())
        ready = await stocked(d)
        assert first.id not in ready
        starts = d.host.driver.calls["start"]
        made = await d.machines.create(
            TENANT,
            small(name="mine", key="k", labels={"a": "b"}, env={"E": "1"}, ttl_seconds=600),
        )
        assert made.id in ready
        assert d.host.driver.calls["start"] == starts
        assert (made.phase, made.name, made.key, dict(made.labels)) == (
            "running", "mine", "k", {"a": "b"},
        )  # fmt: skip
        assert dict(made.env) == {"E": "1"}
        assert made.created_at > first.created_at
        assert made.expires_at is not None
        assert d.agents.hostnames[made.id] == "mine"
        events = [e.event for e in await d.machines.events(TENANT, made.id)]
        assert sorted(events) == ["accepted", "running"]
        live = await d.machines.awake(TENANT, made.id)
        assert live.machine.tenant_id == TENANT
        assert live.machine.env == {"E": "1"}
        # It is its owner's in every way: it sleeps, wakes with a token of its own, and goes.
        await d.machines.sleep(TENANT, made.id)
        assert (await d.machines.wake(TENANT, made.id)).phase == "running"
        assert (await d.machines.delete(TENANT, made.id)).phase == "destroyed"
        assert made.id not in await stocked(d)


async def test_nobody_sees_those_that_are_ready(tmp_path: Path) -> None:
    async with daemon(tmp_path, warm_machines=1) as d:
        first = await d.machines.create(TENANT, small())
        (ready,) = await stocked(d, 1)
        for tenant in (TENANT, OTHER):
            with pytest.raises(NotFoundError):
                await d.machines.get(tenant, ready)
            with pytest.raises(NotFoundError):
                await d.machines.awake(tenant, ready)
        assert [m.id for m in (await d.machines.list(TENANT)).items] == [first.id]
        made = await d.machines.create(OTHER, small())
        assert made.id == ready
        with pytest.raises(NotFoundError):
            await d.machines.get(TENANT, ready)


async def test_each_goes_to_one(tmp_path: Path) -> None:
    async with daemon(tmp_path, warm_machines=3) as d:
        await d.machines.create(TENANT, small())
        await stocked(d, 3)
        made = await asyncio.gather(*(d.machines.create(TENANT, small()) for _ in range(8)))
        assert len({m.id for m in made}) == 8
        assert {m.phase for m in made} == {"running"}


async def test_another_kind_is_made_anew(tmp_path: Path) -> None:
    async with daemon(tmp_path, warm_machines=1) as d:
        await d.machines.create(TENANT, small())
        ready = await stocked(d, 1)
        other = await d.machines.create(TENANT, small(memory_mib=128))
        assert other.id not in ready
        assert other.memory_mib == 128
        await stocked(d, 2)
        # A third kind pushes out the one that was asked for longest ago.
        await d.machines.create(TENANT, small(memory_mib=256))
        await until(lambda: not ready & set(d.host.driver.machines))
        assert len(d.warm._shelves) == warm.KINDS


async def test_where_a_machine_cannot_be_renamed_a_name_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with daemon(tmp_path, warm_machines=1) as d:
        monkeypatch.setattr(d.host.driver, "renames", False)
        await d.machines.create(TENANT, small())
        ready = await stocked(d, 1)
        assert (await d.machines.create(TENANT, small(name="n"))).id not in ready
        assert (await d.machines.create(TENANT, small(key="k"))).id in ready


async def test_a_key_in_use_is_said(tmp_path: Path) -> None:
    """And costs no warm machine."""
    async with daemon(tmp_path, warm_machines=1) as d:
        first = await d.machines.create(TENANT, small(key="k"))
        ready = await stocked(d, 1)
        with pytest.raises(ConflictError) as caught:
            await d.machines.create(TENANT, small(key="k"))
        assert caught.value.code == "ALREADY_EXISTS"
        assert caught.value.details["machine_id"] == first.id
        assert len((await d.machines.list(TENANT)).items) == 1
        assert await stocked(d, 1) == ready and ready <= set(d.host.driver.machines)


async def test_one_that_is_lost_is_made_anew(tmp_path: Path) -> None:
    """Also where nobody asks any more: whoever took it had a key that another got in the same moment."""
    async with daemon(tmp_path, warm_machines=1) as d:
        await d.machines.create(TENANT, small(key="k"))
        ready = await stocked(d, 1)
        (shelf,) = d.warm._shelves.values()
        with pytest.raises(IntegrityError):
            await d.warm.take({**shelf.values, **NOBODYS, "tenant_id": TENANT, "key": "k"})
        assert not ready & await stocked(d, 1)


async def test_the_quota_holds(tmp_path: Path) -> None:
    async with daemon(tmp_path, warm_machines=1) as d:
        await d.quota(TENANT, machines=1)
        await d.machines.create(TENANT, small())
        await stocked(d, 1)
        with pytest.raises(LimitError):
            await d.machines.create(TENANT, small())


@pytest.mark.parametrize("how", ["dead", "deaf"])
async def test_one_that_was_lost_is_passed_over(tmp_path: Path, how: str) -> None:
    async with daemon(tmp_path, warm_machines=1) as d:
        await d.machines.create(TENANT, small())
        (ready,) = await stocked(d, 1)
        if how == "dead":
            d.host.driver.die(ready)
            await until(lambda: d.engine.roster.peek(ready) is None)
        else:
            d.agents.fail("renew_identity", MachineError("gone", code="AGENT_LOST"))
        made = await d.machines.create(TENANT, small(name="n"))
        assert made.id != ready
        assert made.phase == "running"
        await until(lambda: ready not in d.host.driver.machines)


async def test_they_make_room(tmp_path: Path) -> None:
    async with daemon(tmp_path, warm_machines=2, memory_overcommit=1.0) as d:
        d.host.size = HostSize(4.0, 300, None)
        await d.machines.create(TENANT, small())
        ready = await stocked(d)
        big = await d.machines.create(TENANT, small(memory_mib=200))
        assert big.phase == "running"
        assert not ready & set(d.host.driver.machines)


async def test_they_stay_where_ending_them_would_not_do(tmp_path: Path) -> None:
    async with daemon(tmp_path, warm_machines=2, memory_overcommit=1.0) as d:
        d.host.size = HostSize(4.0, 300, None)
        first = await d.machines.create(TENANT, small())
        ready = await stocked(d)
        with pytest.raises(CapacityError):
            await d.machines.create(TENANT, small(memory_mib=300 - first.memory_mib + 1))
        assert ready <= set(d.host.driver.machines)
        assert await stocked(d) == ready


async def test_they_make_room_for_one_that_wakes(tmp_path: Path) -> None:
    async with daemon(tmp_path, warm_machines=2, memory_overcommit=1.0) as d:
        asleep = await d.machines.create(TENANT, small())
        await d.machines.sleep(TENANT, asleep.id)
        ready = await stocked(d)
        d.host.size = HostSize(4.0, 130, None)  # of which the warm ones hold 128
        live = await d.machines.awake(TENANT, asleep.id)
        assert live.machine.phase == "running"
        assert not ready & set(d.host.driver.machines)


async def test_all_who_need_room_at_once_get_it(tmp_path: Path) -> None:
    async with daemon(tmp_path, warm_machines=2, memory_overcommit=1.0) as d:
        await d.machines.create(TENANT, small())
        await stocked(d)
        d.host.size = HostSize(4.0, 64 + 200, None)
        made = await asyncio.gather(
            *(d.machines.create(TENANT, small(memory_mib=100)) for _ in range(2))
        )
        assert {m.phase for m in made} == {"running"}


async def test_one_that_cannot_be_renewed_keeps_nobodys_key(tmp_path: Path) -> None:
    async with daemon(tmp_path, warm_machines=1) as d:
        await d.machines.create(TENANT, small())
        (ready,) = await stocked(d, 1)
        d.agents.fail("renew_identity", MachineError("gone", code="AGENT_LOST"))
        made = await d.machines.create(TENANT, small(name="n", key="k"))
        assert (made.key, made.phase) == ("k", "running")
        assert made.id != ready


async def test_what_fails_after_its_row_is_written_is_not_made_twice(tmp_path: Path) -> None:
    async with daemon(tmp_path, warm_machines=1) as d:
        await d.machines.create(TENANT, small())
        await stocked(d, 1)
        d.host.storage.fail("clone", CapacityError("full", code="STORAGE_FULL"))
        with pytest.raises(CapacityError) as caught:
            await d.machines.create(TENANT, small(memory_mib=128, key="k"))
        assert caught.value.code == "STORAGE_FULL"
        assert len((await d.machines.list(TENANT)).items) == 2


async def test_a_daemon_that_stops_ends_them(tmp_path: Path) -> None:
    async with daemon(tmp_path, warm_machines=1) as d:
        first = await d.machines.create(TENANT, small())
        await stocked(d, 1)
        await d.stop()
        assert set(d.host.driver.machines) == {first.id}


async def test_a_restart_after_a_crash_ends_them(tmp_path: Path) -> None:
    async with daemon(tmp_path, warm_machines=1) as d:
        first = await d.machines.create(TENANT, small())
        (ready,) = await stocked(d, 1)
        await d.kill()
        again = await Daemon.start(d.host)
        try:
            assert set(d.host.driver.machines) == {first.id}
            assert ready not in d.host.storage.disks
        finally:
            await again.stop()


def test_a_kind_is_driver_image_and_size() -> None:
    values = {
        "driver": "d", "template_id": "t", "image_digest": "i",
        "vcpu": 1.0, "memory_mib": 64, "storage_gib": 1, "name": "x",
    }  # fmt: skip
    assert warm.Kind.of(values) == warm.Kind("d", "t", "i", Size(1.0, 64, 1))


async def test_one_that_waited_long_is_not_idle_when_it_is_handed_out(tmp_path: Path) -> None:
    async with daemon(tmp_path, warm_machines=1) as d:
        await d.machines.create(TENANT, small())
        ready = await stocked(d, 1)
        await asyncio.sleep(1.1)
        made = await d.machines.create(TENANT, small(autosleep_seconds=1))
        assert made.id in ready
        idle = d.engine.roster.idle_for(made.id)
        assert idle is not None
        assert idle < 1
