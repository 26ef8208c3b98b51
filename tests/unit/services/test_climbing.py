"""A machine goes up the ladder, with everything real but the host."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from roost.drivers.fake import FakeDriver
from roost.drivers.interface import ForkKind, Isolation
from roost.engine.machine import Machine, capabilities_to_json
from roost.engine.roster import Running
from roost.errors import InternalError, MachineError, RoostError
from roost.services.builds import StartBuild
from roost.services.models import ForkMachine
from roost.store import keys, tenants
from roost.store import machines as rows
from tests.unit.engine.kit import OTHER, TENANT, Daemon, Host, small
from tests.unit.services.test_builds import build, ended, log_of
from tests.unit.services.test_promotions import Kit

VM = {
    "isolation": Isolation.MICROVM,
    "own_kernel": True,
    "raw_disk": True,
    "egress_enforced": True,
    "accelerated": True,
}
WORKSPACE = {
    "isolation": Isolation.WORKSPACE,
    "own_network": False,
    "disk_image": False,
    "freeze": False,
    "fork": ForkKind.DISK,
}


class Kill(BaseException):
    """As SIGKILL at that point."""


def host_of(directory: Path, memory: bool = True) -> Host:
    others = {"vm": FakeDriver(memory_snapshot=True, **VM), "ws": FakeDriver(**WORKSPACE)}
    return Host(directory, memory=memory, others=others)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    host = host_of(tmp_path)
    yield host
    await host.close()


@pytest.fixture
async def kit(host: Host) -> AsyncIterator[Kit]:
    d = await Daemon.start(host)
    yield await Kit.start(d)
    await d.stop()


async def climb(kit: Kit, machine: Machine, isolation: str = "microvm", **more: Any) -> Machine:
    return await kit.promotions.climb(TENANT, machine.id, isolation, more.get("driver"))


async def container(kit: Kit, **changes: Any) -> Machine:
    return await kit.d.machines.create(TENANT, small(isolation="container", **changes))


async def told(kit: Kit, machine: Machine) -> list[str]:
    return [each.event for each in await kit.d.machines.events(TENANT, machine.id)]


async def test_one_that_runs_runs_on_up_there_with_all_it_had(kit: Kit) -> None:
    before = await container(kit, key="user-42", name="mine", labels={"a": "b"})
    disk = kit.d.host.storage.disk(before.id)
    port = await kit.ports.create(TENANT, before.id, 8080)
    climbed = await climb(kit, before)
    assert (climbed.phase, climbed.driver) == ("running", "vm")
    assert climbed.isolation["level"] == 3
    same = ("id", "key", "name", "labels", "egress", "image_digest", "template_id")
    assert [getattr(climbed, n) for n in same] == [getattr(before, n) for n in same]
    assert disk.read_text().startswith("image sha256")
    assert (await kit.ports.list(TENANT, climbed.id))[0].id == port.id
    assert kit.d.host.others["vm"].calls["start"] == 1
    assert kit.d.host.others["vm"].calls["restore"] == 0
    assert "promoted" in await told(kit, climbed)
    assert not kit.d.host.leaks(await kit.d.all())
    again = await climb(kit, climbed)
    assert (again.revision, again.generation) == (climbed.revision, climbed.generation)


@pytest.mark.parametrize("tier", ["frozen", "hibernated", "stopped"])
async def test_one_that_sleeps_sleeps_on_and_wakes_up_there(kit: Kit, tier: str) -> None:
    machine = await container(kit)
    await kit.d.machines.sleep(TENANT, machine.id, tier)
    climbed = await climb(kit, machine)
    assert (climbed.phase, climbed.tier, climbed.driver) == ("sleeping", "stopped", "vm")
    assert climbed.memory_image is None
    shut = kit.d.agents.calls["shutdown"]
    assert shut == 1  # its programs were asked to end, however it slept
    woken = await kit.d.machines.wake(TENANT, machine.id)
    assert (woken.phase, woken.driver) == ("running", "vm")
    assert not kit.d.host.leaks(await kit.d.all())


async def test_there_is_no_way_down(kit: Kit) -> None:
    machine = await kit.d.machines.create(TENANT, small(isolation="microvm"))
    for isolation, driver in (("container", None), (None, "fake")):
        with pytest.raises(RoostError) as caught:
            await kit.promotions.climb(TENANT, machine.id, isolation, driver)
        assert caught.value.code == "RUNG_LOWER"
        assert "blocks of its disk" in caught.value.message
    assert (await kit.now(machine)).revision == machine.revision


async def test_what_is_refused_stops_nothing(kit: Kit) -> None:
    machine = await container(kit)
    for isolation, driver, code in (
        ("user", None, "RUNG_UNAVAILABLE"),
        (None, "none", "RUNG_UNAVAILABLE"),
        ("nowhere", None, "VALIDATION_FAILED"),
    ):
        with pytest.raises(RoostError) as caught:
            await kit.promotions.climb(TENANT, machine.id, isolation, driver)
        assert caught.value.code == code
    with pytest.raises(RoostError) as caught:
        await kit.promotions.climb(OTHER, machine.id, "microvm", None)
    assert caught.value.code == "MACHINE_NOT_FOUND"
    assert (await kit.now(machine)).revision == machine.revision


async def test_where_it_cannot_be_stopped_it_runs_on(kit: Kit) -> None:
    machine = await container(kit)
    kit.d.host.others["vm"].fail("prepare", InternalError("no guest"))
    with pytest.raises(RoostError):
        await climb(kit, machine)
    now = await kit.now(machine)
    assert (now.phase, now.driver) == ("running", "fake")


async def test_one_that_would_be_too_large_up_there_is_refused_while_it_runs(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = await container(kit)
    vm = kit.d.host.others["vm"]
    monkeypatch.setattr(vm, "fit", lambda size: replace(size, memory_mib=512))
    await kit.d.quota(TENANT, memory_mib=500)
    with pytest.raises(RoostError) as caught:
        await climb(kit, machine)
    assert (caught.value.code, caught.value.details["asked"]) == ("QUOTA_EXCEEDED", 512)
    now = await kit.now(machine)
    assert (now.phase, now.revision, now.memory_mib) == ("running", machine.revision, 64)
    await kit.d.quota(TENANT, memory_mib=512)
    climbed = await climb(kit, machine)
    assert (climbed.phase, climbed.memory_mib) == ("running", 512)


async def test_the_memory_of_one_that_failed_goes_with_its_promotion(kit: Kit) -> None:
    machine = await container(kit)
    await kit.d.machines.sleep(TENANT, machine.id, "hibernated")
    kit.d.agents.fail("wait_ready", RoostError("no answer", code="MACHINE_FAILED"))
    with pytest.raises(RoostError):
        await kit.d.machines.wake(TENANT, machine.id)
    failed = await kit.now(machine)
    assert failed.phase == "failed" and failed.memory_image is not None and failed.memory_image.used
    assert kit.d.host.storage.memories == {machine.id}
    climbed = await climb(kit, failed)
    assert (climbed.phase, climbed.memory_image) == ("failed", None)
    assert kit.d.host.storage.memories == set()


async def test_memory_that_is_lost_is_not_kept_either(kit: Kit) -> None:
    machine = await container(kit)
    await kit.d.machines.sleep(TENANT, machine.id, "hibernated")
    for method in ("restore", "start"):
        kit.d.host.driver.fail(method, RoostError("it ended", code="MACHINE_FAILED"))
    with pytest.raises(RoostError):
        await kit.d.machines.wake(TENANT, machine.id)
    assert (await kit.now(machine)).memory_image is None
    assert kit.d.host.storage.memories == set()


@pytest.mark.parametrize("code", ["TEMPLATE_NOT_READY", "AGENT_LOST"])
async def test_one_that_boots_for_its_promotion_does_not_run_on_below(kit: Kit, code: str) -> None:
    """Its memory is lost, and what begins in it then does not."""
    machine = await container(kit)
    await kit.d.machines.sleep(TENANT, machine.id, "hibernated")
    await hold(kit.d, TENANT, "microvm")
    kit.d.host.driver.fail("restore", RoostError("it ended", code="MACHINE_FAILED"))

    async def begin(running: Running, booted: bool, interrupt: asyncio.Event) -> None:
        assert booted and running.machine.driver == "fake"
        raise MachineError("its port is closed", code=code)

    kit.d.engine.begin = begin
    if code == "TEMPLATE_NOT_READY":
        climbed = await climb(kit, machine)
        assert (climbed.phase, climbed.tier, climbed.driver) == ("sleeping", "stopped", "vm")
    else:
        with pytest.raises(RoostError) as caught:
            await climb(kit, machine)
        assert caught.value.code == code
        now = await kit.now(machine)
        assert (now.phase, now.tier, now.driver) == ("sleeping", "stopped", "fake")
        climbed = await climb(kit, machine)
        assert climbed.driver == "vm"
    assert kit.d.host.driver.calls["start"] == 2, "it did boot"
    assert climbed.memory_image is None and kit.d.host.storage.memories == set()
    assert not kit.d.host.leaks(await kit.d.all())


async def test_where_it_does_not_start_up_there_it_is_there_and_says_why(kit: Kit) -> None:
    machine = await container(kit)
    kit.d.host.others["vm"].fail("start", RoostError("no room for a guest", code="MACHINE_FAILED"))
    with pytest.raises(RoostError):
        await climb(kit, machine)
    now = await kit.now(machine)
    assert (now.phase, now.retryable, now.driver) == ("failed", True, "vm")
    woken = await kit.d.machines.wake(TENANT, machine.id)
    assert (woken.phase, woken.driver) == ("running", "vm")


async def test_a_snapshot_of_before_is_gone_back_to_without_its_memory(kit: Kit) -> None:
    machine = await container(kit)
    made = await kit.d.snapshots.create(TENANT, machine.id)
    climbed = await climb(kit, machine)
    back = await kit.d.snapshots.rollback(TENANT, climbed.id, made.id)
    assert (back.phase, back.driver) == ("running", "vm")
    assert kit.d.host.others["vm"].calls["restore"] == 0
    assert (await kit.d.snapshots.get(TENANT, made.id)).status == "ready"


async def test_its_forks_stand_where_it_stands(kit: Kit) -> None:
    climbed = await climb(kit, await container(kit))
    (child,) = await kit.d.machines.fork(TENANT, climbed.id, ForkMachine())
    assert child.driver == "vm"


async def a_directory(kit: Kit) -> Machine:
    """One of rung 0, asleep: as another driver would have left it."""
    machine = await container(kit)
    await kit.d.machines.sleep(TENANT, machine.id, "stopped")
    storage = kit.d.host.storage
    await storage.delete_disk(machine.id)
    storage.homes.add(machine.id)
    capabilities = capabilities_to_json(kit.d.host.others["ws"].capabilities())
    values = {"driver": "ws", "isolation": "workspace", "capabilities": capabilities}
    await kit.d.store.write(lambda c: rows.update(c, machine.id, values))
    return await kit.now(machine)


async def test_what_was_in_its_directory_is_on_its_disk_before_anybody_is_told_that_it_runs(
    kit: Kit,
) -> None:
    machine = await a_directory(kit)
    storage = kit.d.host.storage
    climbed = await climb(kit, machine, "container")
    assert (climbed.driver, climbed.brings_tree, climbed.phase) == ("fake", True, "sleeping")
    assert (storage.homes, storage.disks) == (set(), {machine.id})
    kit.d.agents.fail("tar_in", RoostError("the disk is full", code="MACHINE_DISK_FULL"))
    with pytest.raises(RoostError):
        await kit.d.machines.wake(TENANT, machine.id)
    assert (await kit.now(machine)).brings_tree
    assert storage.tree(machine.id).exists()
    synced = kit.d.agents.calls["sync"]
    woken = await kit.d.machines.wake(TENANT, machine.id)
    assert (woken.phase, woken.brings_tree) == ("running", False)
    assert kit.d.agents.calls["sync"] == synced + 1  # before the tar is deleted
    assert kit.d.agents.tars[-1] == ("/root", "0:0", b"what was in the directory")
    assert not storage.tree(machine.id).exists()
    assert not kit.d.host.leaks(await kit.d.all())


async def test_what_waits_to_be_unpacked_is_missing_from_no_fork(kit: Kit) -> None:
    """Until its first start the disk is a template's alone."""
    machine = await a_directory(kit)
    climbed = await climb(kit, machine, "container")
    with pytest.raises(RoostError) as caught:
        await kit.d.machines.fork(TENANT, climbed.id, ForkMachine())
    assert caught.value.code == "INVALID_STATE"
    await kit.d.machines.wake(TENANT, machine.id)
    assert len(await kit.d.machines.fork(TENANT, climbed.id, ForkMachine())) == 1


async def test_one_whose_disk_was_never_made_gets_it_up_there(kit: Kit) -> None:
    kit.d.host.driver.fail("start", RoostError("no room", code="MACHINE_FAILED"))
    with pytest.raises(RoostError) as caught:
        await container(kit)
    machine_id = caught.value.details["machine_id"]
    failed = await kit.d.machines.get(TENANT, machine_id)
    assert (failed.phase, failed.disk_ready, failed.retryable) == ("failed", False, True)
    climbed = await climb(kit, failed)
    assert (climbed.driver, climbed.disk_ready) == ("vm", False)
    assert (await kit.d.machines.wake(TENANT, machine_id)).phase == "running"
    assert kit.d.host.storage.disks == {machine_id}


async def test_a_directory_that_cannot_be_packed_stays_one(kit: Kit) -> None:
    machine = await a_directory(kit)
    storage = kit.d.host.storage
    for method in ("pack_tree", "clone"):
        storage.fail(method, RoostError("no space", code="STORAGE_FULL"))
        with pytest.raises(RoostError):
            await climb(kit, machine, "container")
        now = await kit.now(machine)
        assert (now.driver, now.phase, now.brings_tree) == ("ws", "sleeping", False)
        assert (storage.homes, storage.disks) == ({machine.id}, set())
        assert not storage.tree(machine.id).exists()
    await kit.d.machines.delete(TENANT, machine.id)
    assert storage.homes == set()


POINTS = ["do:hush", "did:remove", "did:release", "do:disk", "did:disk", "end", "ended"]


@pytest.mark.parametrize("directory", [False, True])
@pytest.mark.parametrize("point", POINTS)
async def test_a_daemon_killed_on_the_way_finds_it_whole_on_one_of_the_two(
    tmp_path: Path, point: str, directory: bool
) -> None:
    armed: list[str] = []
    fired: list[str] = []

    def hook(kind: str, at: str) -> None:
        if armed and kind in ("sleep", "climb") and at == point:
            fired.append(f"{kind} {at}")
            armed.clear()
            raise Kill

    host = host_of(tmp_path)
    d = await Daemon.start(host, hook=hook)
    kit = await Kit.start(d)
    machine = await a_directory(kit) if directory else await container(kit)
    armed.append(point)
    onto = "container" if directory else "microvm"
    with contextlib.suppress(Kill, RoostError):
        await kit.promotions.climb(TENANT, machine.id, onto, None)
    await d.kill()
    d = await Daemon.start(host, build=False)
    kit = await Kit.start(d)
    now = await kit.now(machine)
    assert now.driver in (machine.driver, "fake" if directory else "vm")
    storage = host.storage
    on_disk = now.driver != "ws"
    assert storage.disks == ({machine.id} if on_disk else set())
    assert storage.tree(machine.id).exists() == now.brings_tree == (directory and on_disk)
    if on_disk:
        woken = await d.machines.wake(TENANT, machine.id)
        assert woken.phase == "running"
    else:
        assert storage.homes == {machine.id}
        await kit.promotions.climb(TENANT, machine.id, onto, None)
    assert not [leak for leak in host.leaks(await d.all()) if "disk" not in leak]
    assert not await d.open_operations()
    await d.stop()
    await host.close()
    assert fired or (directory and point in ("do:hush", "did:remove", "did:release"))


# --- who may stand where ---------------------------------------------------------------------------


async def hold(d: Daemon, tenant: str, isolation: str | None) -> None:
    await d.store.write(lambda c: tenants.update(c, tenant, {"isolation": isolation}))


@contextlib.contextmanager
def meanwhile(d: Daemon, done: Coroutine[Any, Any, None]) -> Iterator[None]:
    """That is done between the choice of a driver and its first machine."""
    driver = d.host.driver
    prepare = driver.prepare

    async def prepared() -> None:
        await prepare()
        driver.prepare = prepare  # type: ignore[method-assign]
        await done

    driver.prepare = prepared  # type: ignore[method-assign]
    yield
    assert driver.prepare == prepare


async def test_a_tenant_held_to_more_gets_no_less_and_wakes_none_below(kit: Kit) -> None:
    d = kit.d
    machine = await container(kit)
    await d.machines.sleep(TENANT, machine.id)
    await hold(d, TENANT, "microvm")
    assert (await d.machines.create(TENANT, small())).driver == "vm"
    for asked in ({"isolation": "container"}, {"driver": "fake"}):
        with pytest.raises(RoostError) as caught:
            await d.machines.create(TENANT, small(**asked))
        assert caught.value.code == "RUNG_REFUSED"
    with pytest.raises(RoostError) as caught:
        await d.machines.wake(TENANT, machine.id)
    assert caught.value.code == "RUNG_REFUSED"
    assert "promote" in caught.value.message
    # The one way on, however it slept.
    await climb(kit, machine)
    assert (await d.machines.wake(TENANT, machine.id)).driver == "vm"


async def test_who_is_held_to_more_builds_there_and_keeps_no_machine_below(kit: Kit) -> None:
    d = kit.d
    assert (await build(d, "FROM base\nRUN a\n")).driver == "fake"
    asked = StartBuild(tags=("mine",), dockerfile="FROM base\nRUN exit 1\n", keep_failed=True)
    with meanwhile(d, hold(d, TENANT, "microvm")):
        failed = await ended(d, (await d.builds.start(TENANT, asked))[0].id)
    assert (failed.status, failed.machine_id) == ("failed", None)
    assert any("not kept" in str(event) for event in await log_of(d, failed.id))
    with pytest.raises(RoostError) as caught:
        await d.builds.start(TENANT, dataclasses.replace(asked, driver="fake"))
    assert caught.value.code == "RUNG_REFUSED"
    kept = await build(d, "FROM base\nRUN exit 1\n", keep_failed=True)
    assert kept.driver == "vm"
    assert kept.machine_id is not None
    assert (await d.machines.get(TENANT, kept.machine_id)).driver == "vm"


async def test_who_is_held_to_more_while_a_machine_is_made_ready_gets_none_below(kit: Kit) -> None:
    """What was chosen before a bake is asked for again where its place is taken."""
    d = kit.d
    with meanwhile(d, hold(d, TENANT, "microvm")), pytest.raises(RoostError) as caught:
        await d.machines.create(TENANT, small(isolation="container"))
    assert caught.value.code == "RUNG_REFUSED"
    assert not d.host.driver.machines


async def test_managed_keeps_tenants_off_rungs_that_are_no_boundary(tmp_path: Path) -> None:
    user = FakeDriver(isolation=Isolation.USER)
    host = Host(tmp_path, others={"user": user})
    d = await Daemon.start(host, profile="managed")
    assert (await d.machines.create(TENANT, small())).driver == "fake"
    for asked in ({"isolation": "user"}, {"driver": "user"}):
        with pytest.raises(RoostError) as caught:
            await d.machines.create(TENANT, small(**asked))
        assert caught.value.code == "RUNG_REFUSED"
    await d.store.write(lambda c: keys.put_tenant(c, "default", host.clock.now()))
    own = await d.machines.create("default", small(isolation="user"))
    assert own.isolation["level"] == 1
    with pytest.raises(RoostError) as caught:
        await d.machines.create("default", small(isolation="user", unrestricted=True))
    assert caught.value.code == "RUNG_REFUSED"
    made = await d.machines.create(TENANT, small(unrestricted=True))
    assert made.unrestricted
    await d.stop()
    await host.close()


async def test_one_made_unrestricted_below_sleeps_on_when_the_profile_becomes_managed(
    tmp_path: Path,
) -> None:
    host = Host(tmp_path, others={"user": FakeDriver(isolation=Isolation.USER)})
    d = await Daemon.start(host)
    await d.store.write(lambda c: keys.put_tenant(c, "default", host.clock.now()))
    machine = await d.machines.create("default", small(isolation="user", unrestricted=True))
    plain = await d.machines.create("default", small(isolation="user"))
    for each in (machine, plain):
        await d.machines.sleep("default", each.id)
    await d.stop()
    d = await Daemon.start(host, profile="managed")
    with pytest.raises(RoostError) as caught:
        await d.machines.wake("default", machine.id)
    assert caught.value.code == "RUNG_REFUSED"
    assert "promote" in caught.value.message
    assert (await d.machines.wake("default", plain.id)).phase == "running"
    await d.stop()
    await host.close()


async def test_unrestricted_is_asked_for_recorded_and_handed_down(kit: Kit) -> None:
    plain = await container(kit)
    assert not plain.unrestricted
    assert "unrestricted" not in await told(kit, plain)
    machine = await container(kit, unrestricted=True)
    assert "unrestricted" in await told(kit, machine)
    assert kit.d.host.driver.machines[machine.id].spec.unrestricted
    (child,) = await kit.d.machines.fork(TENANT, machine.id, ForkMachine())
    assert child.unrestricted
    assert "unrestricted" in await told(kit, child)
