"""Volumes: made, had by machines, kept over sleep and kill, let go of."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import pytest

from roost.clock import FakeClock
from roost.drivers.fake import FakeDriver
from roost.engine import flows
from roost.errors import (
    ConflictError,
    InternalError,
    InvalidRequestError,
    LimitError,
    MachineError,
    NotFoundError,
    RoostError,
    UnsupportedError,
)
from roost.prices import Prices
from roost.services.models import Attach, ForkMachine
from roost.services.usage import Usage
from roost.services.volume_files import TTL_S, VolumeFiles
from roost.store import volumes as rows
from tests.unit.engine.kit import OTHER, TENANT, Daemon, Host, daemon, small, until


def data(path: str = "/data", read_only: bool = False) -> list[Attach]:
    return [Attach("data", path, read_only)]


def mounted(d: Daemon, machine_id: str) -> list[tuple[Path, str, bool]]:
    spec = d.host.driver.machines[machine_id].spec
    return [(each.image, each.path, each.read_only) for each in spec.volumes]


async def holders(d: Daemon, name: str = "data") -> list[str]:
    return [each.machine_id for each in (await d.volumes.get(TENANT, name)).attachments]


async def refused(code: str, work: Any) -> RoostError:
    with pytest.raises(RoostError) as failure:
        await work
    assert failure.value.code == code
    return failure.value


async def test_made_found_listed_deleted(tmp_path: Path) -> None:
    async with daemon(tmp_path, clock=FakeClock()) as d:
        made = await d.volumes.create(TENANT, "data", 3, "key-1")
        assert (made.name, made.size_gib, made.raw_written, made.attachments) == (
            "data",
            3,
            False,
            (),
        )
        assert d.host.storage.volumes == {made.id}
        assert await d.volumes.get(TENANT, made.id) == await d.volumes.get(TENANT, "data") == made
        taken = await refused("ALREADY_EXISTS", d.volumes.create(TENANT, "data", 1))
        assert taken.details == {"volume_id": made.id}
        theirs = await d.volumes.create(OTHER, "data", 1)  # a name is a tenant's own
        await refused("VOLUME_NOT_FOUND", d.volumes.get(TENANT, theirs.id))
        for n in range(4):
            await d.volumes.create(TENANT, f"more{n}", 1)
        first = await d.volumes.list(TENANT, limit=3)
        rest = await d.volumes.list(TENANT, limit=3, cursor=first.next_cursor)
        names = [each.name for each in (*first.items, *rest.items)]
        assert sorted(names) == ["data", "more0", "more1", "more2", "more3"]
        assert rest.next_cursor is None
        await d.volumes.delete(TENANT, "data")
        assert made.id not in d.host.storage.volumes
        await refused("VOLUME_NOT_FOUND", d.volumes.get(TENANT, "data"))
        for name, size in (("", 1), ("a/b", 1), (".a", 1), ("a" * 64, 1), ("a", 0), ("a", 1025)):
            with pytest.raises(InvalidRequestError):
                await d.volumes.create(TENANT, name, size)


async def test_its_size_counts(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        await d.quota(TENANT, storage_gib=25)
        await d.volumes.create(TENANT, "data", 10)
        await d.machines.create(TENANT, small(storage_gib=10))
        with pytest.raises(LimitError) as failure:
            await d.volumes.create(TENANT, "more", 6)
        assert failure.value.details["used"] == 20
        await d.volumes.delete(TENANT, "data")
        await d.volumes.create(TENANT, "more", 6)


async def test_its_storage_is_counted_while_it_is_there(tmp_path: Path) -> None:
    clock = FakeClock()
    async with daemon(tmp_path, clock=clock) as d:
        volume = await d.volumes.create(TENANT, "data", 10, "key-1")
        d.host.storage.sizes[volume.id] = 2 << 30
        await d.engine.meter.round()
        await clock.advance(3600)
        await d.volumes.delete(TENANT, "data")
        await clock.advance(3600)
        report = await Usage(d.store, clock, Prices.read("")).report(TENANT, group_by=("machine",))
        (row,) = report.items
        assert row.group == {"machine_id": volume.id}
        assert float(row.amounts.storage_gib_hours) == 2.0
        assert row.amounts.vcpu_seconds == 0


async def test_what_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        d.host.storage.fail("make_volume", InternalError("no mke2fs"))
        await refused("INTERNAL", d.volumes.create(TENANT, "data", 1))
        assert d.host.storage.volumes == set()
        await d.volumes.create(TENANT, "data", 1)


async def test_one_writes_several_read(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        volume = await d.volumes.create(TENANT, "data", 1)
        writer = await d.machines.create(TENANT, small(volumes=data()))
        assert writer.volumes[0].to_json() == {
            "volume_id": volume.id,
            "name": "data",
            "path": "/data",
            "read_only": False,
        }
        image = d.host.storage.volume(volume.id)
        assert mounted(d, writer.id) == [(image, "/data", False)]
        before = len(await d.all())
        for read_only in (False, True):
            failure = await refused(
                "VOLUME_IN_USE", d.machines.create(TENANT, small(volumes=data("/x", read_only)))
            )
            assert failure.details["machine_ids"] == [writer.id]
        assert len(await d.all()) == before, "nothing was made"
        await refused("VOLUME_IN_USE", d.volumes.delete(TENANT, "data"))
        await d.machines.sleep(TENANT, writer.id)
        await refused("VOLUME_IN_USE", d.machines.create(TENANT, small(volumes=data())))
        await d.machines.wake(TENANT, writer.id)
        assert mounted(d, writer.id) == [(image, "/data", False)]
        await d.machines.delete(TENANT, writer.id)
        readers = [
            await d.machines.create(TENANT, small(volumes=data(f"/r{n}", True))) for n in range(3)
        ]
        assert await holders(d) == [each.id for each in readers]
        await refused("VOLUME_IN_USE", d.machines.create(TENANT, small(volumes=data())))
        for each in readers:
            await d.machines.delete(TENANT, each.id)
        await d.volumes.delete(TENANT, "data")


async def test_what_cannot_be_had(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        await d.volumes.create(TENANT, "data", 1)
        await d.volumes.create(OTHER, "theirs", 1)
        for asked, code in (
            ([Attach("nothing", "/data")], "VOLUME_NOT_FOUND"),
            ([Attach("theirs", "/data")], "VOLUME_NOT_FOUND"),
            ([Attach("data", "/proc")], "VALIDATION_FAILED"),
            ([Attach("data", "/a"), Attach("data", "/b")], "VALIDATION_FAILED"),
        ):
            await refused(code, d.machines.create(TENANT, small(volumes=asked)))
        assert await d.all() == []
        d.host.driver.volumes = False
        await refused("UNSUPPORTED", d.machines.create(TENANT, small(volumes=data())))
        d.host.driver.volumes = True
        assert await d.all() == []


async def test_one_that_failed_has_them_on(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        await d.volumes.create(TENANT, "data", 1)
        d.host.driver.fail("start", InternalError("no luck"))
        failure = await refused("MACHINE_FAILED", d.machines.create(TENANT, small(volumes=data())))
        failed = failure.details["machine_id"]
        assert await holders(d) == [failed], "it can be started again"
        await d.machines.wake(TENANT, failed)
        assert [each[1] for each in mounted(d, failed)] == ["/data"]
        await d.machines.delete(TENANT, failed)
        assert await holders(d) == []


async def test_a_microvms_for_good(tmp_path: Path) -> None:
    """Also where it was refused to be anybody else's in between."""
    guest = FakeDriver(raw_disk=True)
    host = Host(tmp_path, driver=guest)
    d = await Daemon.start(host)
    await d.volumes.create(TENANT, "data", 1)
    reader = await d.machines.create(TENANT, small(volumes=data(read_only=True)))
    assert not (await d.volumes.get(TENANT, "data")).raw_written, "it was only read"
    await d.machines.delete(TENANT, reader.id)
    writer = await d.machines.create(TENANT, small(volumes=data()))
    assert (await d.volumes.get(TENANT, "data")).raw_written
    await d.machines.delete(TENANT, writer.id)
    await d.stop()
    host.driver = FakeDriver()
    d = await Daemon.start(host)
    for read_only in (False, True):
        with pytest.raises(UnsupportedError) as failure:
            await d.machines.create(TENANT, small(volumes=data(read_only=read_only)))
        assert failure.value.details["isolation"] == "microvm"
    await d.stop()
    await host.close()


async def test_what_is_made_from_one_with_volumes_has_no_memory(tmp_path: Path) -> None:
    async with daemon(tmp_path, memory=True) as d:
        await d.volumes.create(TENANT, "data", 1)
        await d.volumes.create(TENANT, "books", 1)
        both = [*data(), Attach("books", "/books", True)]
        parent = await d.machines.create(TENANT, small(volumes=both))
        d.agents.calls.clear()
        children = await d.machines.fork(TENANT, parent.id, ForkMachine(count=2))
        assert d.agents.calls["sync"] == 1
        for child in children:
            assert [each.name for each in child.volumes] == ["books"]
            assert d.host.driver.machines[child.id].restored_from is None
        assert len(await holders(d, "books")) == 3
        told = await d.machines.fork(TENANT, parent.id, ForkMachine(volumes=()))
        assert told[0].volumes == ()
        await refused(
            "VOLUME_IN_USE", d.machines.fork(TENANT, parent.id, ForkMachine(volumes=data()))
        )
        snapshot = await d.snapshots.create(TENANT, parent.id, "then")
        assert not snapshot.memory
        await d.machines.sleep(TENANT, parent.id)
        asleep = await d.snapshots.create(TENANT, parent.id, "asleep")
        assert not asleep.memory
        # Its own sleep keeps memory: nobody else had its volumes meanwhile.
        assert (await d.machines.get(TENANT, parent.id)).tier == "hibernated"
        await d.machines.wake(TENANT, parent.id)
        there = d.host.driver.machines[parent.id]
        assert there.restored_from is not None
        assert len(there.spec.volumes) == 2
        back = await d.snapshots.rollback(TENANT, parent.id, "then")
        assert (back.phase, len(back.volumes)) == ("running", 2)


async def test_memory_of_another_machine_is_not_gone_on_from(tmp_path: Path) -> None:
    async with daemon(tmp_path, memory=True) as d:
        await d.volumes.create(TENANT, "data", 1)
        parent = await d.machines.create(TENANT, small())
        snapshot = await d.snapshots.create(TENANT, parent.id, "then")
        assert snapshot.memory
        made = await d.machines.create(TENANT, small(snapshot="then", volumes=data()))
        assert d.host.driver.machines[made.id].restored_from is None
        plain = await d.machines.create(TENANT, small(snapshot="then"))
        assert d.host.driver.machines[plain.id].restored_from is not None


async def test_children_that_boot_find_what_their_parent_wrote(tmp_path: Path) -> None:
    """Its disk alone, without what only its memory knows, would be as after a power cut."""
    async with daemon(tmp_path, memory=True) as d:
        await d.volumes.create(TENANT, "data", 1)
        parent = await d.machines.create(TENANT, small())
        d.agents.calls.clear()
        (child,) = await d.machines.fork(TENANT, parent.id, ForkMachine(volumes=data()))
        assert d.agents.calls["sync"] == 1
        assert d.host.driver.machines[child.id].restored_from is None
        (plain,) = await d.machines.fork(TENANT, parent.id, ForkMachine())
        assert d.agents.calls["sync"] == 1
        assert d.host.driver.machines[plain.id].restored_from is not None


@pytest.mark.parametrize("read_only", [False, True])
async def test_one_that_is_stopped_unmounts_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_only: bool
) -> None:
    """It may be destroyed while it sleeps, and its volumes be read next."""
    monkeypatch.setattr(flows, "SETTLE_S", 0.05)
    async with daemon(tmp_path, driver=FakeDriver(raw_disk=True)) as d:
        await d.volumes.create(TENANT, "data", 1)
        m = await d.machines.create(TENANT, small(volumes=data(read_only=read_only)))
        calls: list[str] = []
        wait, remove = d.host.driver.wait, d.host.driver.remove

        async def waits(handle: Any) -> Any:
            calls.append("wait")
            return await wait(handle)

        async def removes(machine_id: str) -> None:
            calls.append("remove")
            await remove(machine_id)

        monkeypatch.setattr(d.host.driver, "wait", waits)
        monkeypatch.setattr(d.host.driver, "remove", removes)
        await d.machines.sleep(TENANT, m.id, "stopped")
        assert calls == (["remove"] if read_only else ["wait", "remove"])


async def test_memory_that_was_given_up_is_not_kept_when_the_step_is_repeated(
    tmp_path: Path,
) -> None:
    """Its programs were told to end by then."""
    async with daemon(tmp_path, memory=True) as d:
        m = await d.machines.create(TENANT, small())
        d.host.driver.fail("hibernate", MachineError("too slow", code="TIMEOUT"))
        d.agents.fail("shutdown", RuntimeError("and the step took too long"))
        now = await d.machines.sleep(TENANT, m.id)
        assert (now.phase, now.tier) == ("sleeping", "stopped")
        assert d.host.driver.calls["hibernate"] == 1


async def test_several_children_write_no_volume(tmp_path: Path) -> None:
    """Not the first of them either, which would make it a microVM's for good before the second is refused."""
    host = Host(tmp_path, driver=FakeDriver(raw_disk=True))
    d = await Daemon.start(host)
    await d.volumes.create(TENANT, "data", 1)
    parent = await d.machines.create(TENANT, small())
    fork = d.machines.fork(TENANT, parent.id, ForkMachine(count=2, volumes=data()))
    await refused("VALIDATION_FAILED", fork)
    assert not (await d.volumes.get(TENANT, "data")).raw_written
    both = ForkMachine(count=2, volumes=data(read_only=True))
    assert len(await d.machines.fork(TENANT, parent.id, both)) == 2
    await d.stop()
    await host.close()


async def test_what_was_written_is_there_before_the_machine_is_gone(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        await d.volumes.create(TENANT, "data", 1)
        writer = await d.machines.create(TENANT, small(volumes=data()))
        await d.machines.delete(TENANT, writer.id)
        assert d.agents.calls["shutdown"] == 1
        reader = await d.machines.create(TENANT, small(volumes=data(read_only=True)))
        await d.machines.delete(TENANT, reader.id)
        assert d.agents.calls["shutdown"] == 1, "it wrote nothing"


@pytest.mark.parametrize("point", ["before", "while", "after"])
async def test_a_kill_while_one_is_made(tmp_path: Path, point: str) -> None:
    host = Host(tmp_path)
    d = await Daemon.start(host)
    volume_id = "v" * 26

    def row(status: str) -> dict[str, Any]:
        return {
            "id": volume_id,
            "tenant_id": TENANT,
            "name": "data",
            "size_gib": 1,
            "status": status,
            "raw_written": False,
            "created_by": None,
            "created_at": host.clock.now(),
        }

    await d.store.write(lambda c: rows.insert(c, row("creating" if point != "after" else "ready")))
    if point != "before":
        host.storage.volumes.add(volume_id)
    await d.kill()
    d = await Daemon.start(host)
    there = point == "after"
    assert (host.storage.volumes == {volume_id}) is there
    found: Sequence[Any] = (await d.volumes.list(TENANT)).items
    assert (len(found) == 1) is there
    if not there:
        await d.volumes.create(TENANT, "data", 1)  # its name is free
    await d.stop()
    await host.close()


async def test_a_kill_while_one_is_deleted(tmp_path: Path) -> None:
    host = Host(tmp_path)
    d = await Daemon.start(host)
    volume = await d.volumes.create(TENANT, "data", 1)
    host.storage.fail("delete_volume", OSError("killed"))
    with pytest.raises(OSError, match="killed"):
        await d.volumes.delete(TENANT, "data")
    with pytest.raises(NotFoundError):
        await d.volumes.get(TENANT, "data")
    with pytest.raises(NotFoundError):
        await d.machines.create(TENANT, small(volumes=data()))
    await d.kill()
    assert host.storage.volumes == {volume.id}
    d = await Daemon.start(host)
    assert host.storage.volumes == set()
    await d.volumes.create(TENANT, "data", 1)
    await d.stop()
    await host.close()


async def test_whoever_is_made_for_its_files_stays_while_they_come(tmp_path: Path) -> None:
    clock = FakeClock()
    rung = FakeDriver(own_network=True, egress_enforced=True)
    async with daemon(tmp_path, clock=clock, driver=rung) as d:
        await d.volumes.create(TENANT, "data", 1)
        files = VolumeFiles(d.machines, d.volumes)
        reached = await files.reach(TENANT, "data")

        async def slow() -> AsyncGenerator[bytes, None]:
            for _ in range(8):
                await clock.advance(40)
                await asyncio.sleep(0.05)  # what is overdue by now goes
                yield b"x"

        data = [each async for each in files.during(TENANT, reached, slow())]
        assert len(data) == 8
        assert (await d.machines.get(TENANT, reached.machine_id)).phase == "running"
        await clock.advance(TTL_S + 1)

        async def gone() -> bool:
            return await holders(d) == []

        await until(gone)


async def test_who_asked_may_go_away(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        for ask, there in (
            (lambda: d.volumes.create(TENANT, "data", 1), 1),
            (lambda: d.volumes.delete(TENANT, "data"), 0),
        ):
            hold, held = threading.Event(), threading.Event()

            def wait(_: Any, hold: threading.Event = hold, held: threading.Event = held) -> None:
                held.set()
                hold.wait(5)

            before = asyncio.ensure_future(d.store.write(wait))
            await asyncio.to_thread(held.wait, 5)
            asked = asyncio.ensure_future(ask())
            while not d.store.queued:
                await asyncio.sleep(0.001)
            asked.cancel()
            hold.set()
            await before

            async def settled(there: int = there) -> bool:
                states = await d.store.read(rows.states)
                ready = [*states.values()] == ["ready"] * there
                return ready and len(d.host.storage.volumes) == there

            await until(settled)


async def test_a_deletion_that_broke_off_is_begun_again(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        await d.volumes.create(TENANT, "data", 1)
        d.host.storage.fail("delete_volume", OSError("no luck"))
        with pytest.raises(OSError, match="no luck"):
            await d.volumes.delete(TENANT, "data")
        await d.volumes.delete(TENANT, "data")
        assert d.host.storage.volumes == set()
        await d.volumes.create(TENANT, "data", 1)  # its name is free


async def test_a_disk_of_no_row_is_swept(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.storage.volumes.add("stray")
    d = await Daemon.start(host)
    assert host.storage.volumes == set()
    await d.stop()
    await host.close()


async def test_another_daemon_finds_them_as_they_were(tmp_path: Path) -> None:
    host = Host(tmp_path)
    d = await Daemon.start(host)
    await d.volumes.create(TENANT, "data", 1)
    writer = await d.machines.create(TENANT, small(volumes=data()))
    await d.kill()
    d = await Daemon.start(host)
    assert await holders(d) == [writer.id]
    assert [each.path for each in (await d.machines.get(TENANT, writer.id)).volumes] == ["/data"]
    with pytest.raises(ConflictError):
        await d.machines.create(TENANT, small(volumes=data()))
    await d.machines.delete(TENANT, writer.id)
    assert await holders(d) == []
    assert not host.leaks(await d.all())
    await d.stop()
    await host.close()
