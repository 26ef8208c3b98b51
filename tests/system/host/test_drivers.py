"""Machines of the real runtimes, driver alone: life, death, adoption, limits, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from roost.drivers.container import ContainerDriver
from roost.drivers.interface import Exit, Root, Size
from roost.egress.policy import Policy
from roost.errors import InternalError, MachineError, RoostError, UnsupportedError
from roost.host import loop, mounts, processes
from roost.storage import disks
from tests.attack.record import case

from .conftest import World

pytestmark = pytest.mark.system


@pytest.fixture(params=["runc", "gvisor", "user"])
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _footprint(world: World) -> dict[str, object]:
    """Everything of this instance that the host can tell."""
    run_dir, data_dir = str(world.settings.run_dir), str(world.settings.data_dir)
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes()
        except OSError:
            continue
        if run_dir.encode() in text:
            commands.append(path.parent.name)
    groups = world.driver("runc").cgroups
    return {
        "mounts": sorted(
            m.target for m in mounts.table() if m.target.startswith((run_dir, data_dir))
        ),
        "loops": sorted(b for _, b in loop.attached() if b.startswith(data_dir)),
        "groups": sorted(groups.names()),
        "processes": sorted(commands),
        "directories": sorted(p.name for p in world.settings.run_dir.glob("machines/*/*")),
        "zombies": [p for p in _children() if processes.start_ticks(p) is None],
    }


async def _at_rest(world: World) -> dict[str, object]:
    """The footprint once it holds still: what earlier machines left goes a moment after they do, as the kernel
    lets go of a mount and of its loop device when it gets to it."""
    was = _footprint(world)
    async with asyncio.timeout(30):
        while True:
            await asyncio.sleep(0.3)
            now = _footprint(world)
            if now == was:
                return now
            was = now


async def _back_to(world: World, before: dict[str, object]) -> None:
    """But for what earlier machines left to be reaped, which goes at any time."""
    reaped = {**before, "zombies": []}

    def now() -> dict[str, object]:
        found = _footprint(world)
        return {**found, "zombies": [p for p in found["zombies"] if p not in before["zombies"]]}  # type: ignore[attr-defined,operator]

    deadline = time.monotonic() + 60
    while (found := now()) != reaped and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    assert found == reaped


def _children() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found += [int(p) for p in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


async def test_a_machine_starts_runs_and_leaves_nothing(
    world: World, driver: ContainerDriver
) -> None:
    warm = await world.start(driver)
    await world.destroy(warm)
    before = await _at_rest(world)
    machine = await world.start(driver)
    assert await driver.list_ids() == {machine.id}
    code, text = await machine.run(
        "id -u; cat /etc/hostname /etc/resolv.conf; echo kept >~/f; sync"
    )
    assert code == 0, text
    uid = 1000 if driver.name == "user" else 0
    assert text.startswith(f"{uid}\nbox{world.made}\nnameserver 10.0.0.1")
    usage = await driver.usage(machine.handle)
    assert usage.cpu_usage_us > 0
    assert usage.memory_bytes > 0
    assert usage.memory_limit_bytes is not None
    assert usage.memory_limit_bytes >= 256 << 20
    await asyncio.wait_for(driver.remove(machine.id), 10)
    await driver.remove(machine.id)
    assert await driver.list_ids() == set()
    with pytest.raises(RoostError):
        await driver.usage(machine.handle)
    await world.destroy(machine)
    await _back_to(world, before)


async def test_nothing_tells_of_the_host_or_of_other_machines(
    world: World, driver: ContainerDriver
) -> None:
    machine = await world.start(driver)
    _, text = await machine.run(
        "cat /sys/block/loop*/loop/backing_file /sys/devices/virtual/block/*/loop/backing_file "
        "/proc/diskstats /proc/partitions /proc/slabinfo /proc/vmallocinfo 2>/dev/null; "
        "cat /proc/kpagecount /proc/kpagecgroup 2>/dev/null; cat /proc/self/cgroup"
    )
    lines = text.splitlines()
    assert lines, "its own cgroups at least"
    assert all(line.endswith(":/") for line in lines), text[:1000]


async def test_the_disk_outlives_the_machine(world: World, driver: ContainerDriver) -> None:
    machine = await world.start(driver)
    await machine.run("echo kept >~/f")
    await machine.client.close()
    await driver.remove(machine.id)
    slot = await world.network.reattach(machine.id, machine.slot.index, Policy())
    again = await world.boot(driver, replace(machine.spec, slot=slot))
    assert await again.run("cat ~/f") == (0, "kept\n")
    assert again.handle != machine.handle


async def test_another_driver_object_adopts_it(world: World, driver: ContainerDriver) -> None:
    machine = await world.start(driver)
    later = world.driver(driver.name)
    assert await later.adopt(machine.handle)
    assert await later.list_ids() == {machine.id}
    assert (await later.usage(machine.handle)).pids > 0
    for change in (
        {"pid_start_ticks": machine.handle.pid_start_ticks + 1},
        {"boot_id": "another"},
        {"pid": os.getpid()},
        {"driver": "other"},
    ):
        assert not await world.driver(driver.name).adopt(replace(machine.handle, **change))
    waiting = asyncio.create_task(later.wait(machine.handle))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await later.remove(machine.id)
    assert (await asyncio.wait_for(waiting, 15)).reason == "killed"
    assert not await world.driver(driver.name).adopt(machine.handle)


async def test_waiting_ends_when_the_machine_dies(world: World, driver: ContainerDriver) -> None:
    machine = await world.start(driver)
    waiting = asyncio.create_task(driver.wait(machine.handle))
    await asyncio.sleep(0.05)
    os.kill(machine.handle.pid, signal.SIGKILL)
    assert await asyncio.wait_for(waiting, 15) == Exit("killed")
    assert await driver.list_ids() == {machine.id}, "debris is found until it is removed"
    assert not await world.driver(driver.name).adopt(machine.handle)
    unknown = await world.driver(driver.name).wait(machine.handle)
    assert unknown.reason == "unknown"


@case(2)
async def test_too_much_memory_ends_it_or_a_process_of_it(
    world: World, driver: ContainerDriver
) -> None:
    machine = await world.start(driver, size=Size(1, 64, 1))
    waiting = asyncio.create_task(driver.wait(machine.handle))
    with pytest.MonkeyPatch.context():
        try:
            code, _ = await machine.run("x=$(dd if=/dev/zero bs=1M count=600 | cat -v)", 30)
        except RoostError:
            code = -1
    assert code != 0
    if driver.name == "gvisor":
        assert (await asyncio.wait_for(waiting, 20)).reason == "oom"
    else:
        waiting.cancel()
    await driver.remove(machine.id)
    assert await driver.list_ids() == set()


async def test_frozen_it_stands_still_and_thawed_it_goes_on(
    world: World, driver: ContainerDriver
) -> None:
    machine = await world.start(driver)
    assert not await driver.frozen(machine.handle)
    for _ in range(2):
        await driver.freeze(machine.handle)
        assert await driver.frozen(machine.handle)
    before = (await driver.usage(machine.handle)).cpu_usage_us
    call = asyncio.create_task(machine.run("echo awake"))
    await asyncio.sleep(0.3)
    assert not call.done()
    assert (await driver.usage(machine.handle)).cpu_usage_us - before < 20_000
    for _ in range(2):
        await driver.thaw(machine.handle)
        assert not await driver.frozen(machine.handle)
    assert await asyncio.wait_for(call, 10) == (0, "awake\n")
    await driver.freeze(machine.handle)
    await asyncio.wait_for(driver.remove(machine.id), 10)  # a frozen one goes as well
    for refused in (driver.freeze, driver.thaw):
        with pytest.raises(MachineError) as caught:
            await refused(machine.handle)
        assert caught.value.code == "MACHINE_FAILED"


async def test_a_later_daemon_knows_what_is_frozen(world: World, driver: ContainerDriver) -> None:
    frozen, interrupted = [await world.start(driver) for _ in range(2)]
    await driver.freeze(frozen.handle)
    # A daemon that died while it ended an execution leaves this, and nobody asked for it.
    driver.cgroups.freeze(driver._group(interrupted.id), True)
    for machine in (frozen, interrupted):
        await world.hang_up(machine)
    later = world.driver(driver.name)
    for machine in (frozen, interrupted):
        assert await later.adopt(machine.handle)
    assert await later.frozen(frozen.handle)
    assert later.cgroups.frozen(driver._group(frozen.id))
    assert not await later.frozen(interrupted.handle)
    assert await interrupted.run("echo on") == (0, "on\n")
    await later.thaw(frozen.handle)
    assert await frozen.run("echo on") == (0, "on\n")
    # One that died between the mark and the deed.
    (driver._directory(frozen.id) / "frozen").touch()
    last = world.driver(driver.name)
    assert await last.adopt(frozen.handle)
    assert last.cgroups.frozen(driver._group(frozen.id))
    await asyncio.wait_for(world.driver(driver.name).remove(frozen.id), 10)


async def test_a_frozen_machine_that_is_killed_ends(world: World, driver: ContainerDriver) -> None:
    machine = await world.start(driver)
    waiting = asyncio.create_task(driver.wait(machine.handle))
    await driver.freeze(machine.handle)
    await asyncio.sleep(1.5)
    assert not waiting.done()
    os.kill(machine.handle.pid, signal.SIGKILL)
    assert await asyncio.wait_for(waiting, 30) == Exit("killed")


async def test_one_that_does_not_freeze_runs_on(
    world: World, driver: ContainerDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = await world.start(driver)
    monkeypatch.setattr(driver.cgroups, "frozen", lambda name: False)  # as it looks on a slow host
    freeze = driver.cgroups.freeze
    monkeypatch.setattr(driver.cgroups, "freeze", lambda name, on: freeze(name, on, 0.05))
    with pytest.raises(MachineError) as caught:
        await driver.freeze(machine.handle)
    assert caught.value.code == "TIMEOUT"
    assert not await driver.frozen(machine.handle)
    assert await machine.run("echo on") == (0, "on\n")


async def test_a_frozen_machine_is_not_captured(
    world: World, driver: ContainerDriver, tmp_path: Path
) -> None:
    machine = await world.start(driver)
    await world.hang_up(machine)
    await driver.freeze(machine.handle)
    into = tmp_path / "kept"
    into.mkdir()
    work = [driver.capture(machine.handle, into, world.storage.pool.tmp / "kept.ext4")]
    if driver.capabilities().memory_snapshot:
        work.append(driver.hibernate(machine.handle, into))
    for one in work:
        with pytest.raises(InternalError):
            await asyncio.wait_for(one, 15)
    assert await driver.frozen(machine.handle)
    assert driver.cgroups.frozen(driver._group(machine.id))


@case(8)
async def test_what_stops_its_supervisor_is_ended_from_the_host(
    world: World, driver: ContainerDriver
) -> None:
    machine = await world.start(driver)
    if driver.name == "gvisor":
        with pytest.raises(UnsupportedError):
            await driver.end_tree(machine.handle, 2)
        pytest.skip("the host does not see its processes")
    stopped = machine.run("kill -STOP $PPID; sleep 60 & (sleep 60 &); wait", timeout_s=60.0)
    call = asyncio.create_task(stopped)
    await asyncio.sleep(2)
    (said,) = await machine.client.list_executions()
    assert not call.done()
    assert not await driver.end_tree(machine.handle, 1)  # never the first
    assert not await driver.end_tree(machine.handle, 9999)
    await driver.freeze(machine.handle)
    assert not await driver.end_tree(machine.handle, 9999)
    assert driver.cgroups.frozen(driver._group(machine.id)), "it was before"
    await driver.thaw(machine.handle)
    assert await driver.end_tree(machine.handle, said.supervisor_pid)
    await asyncio.wait_for(call, 15)
    assert (await driver.usage(machine.handle)).pids < 30
    async with asyncio.timeout(20):  # what was ended is reaped in its own time
        while "sleep" in (await machine.run("for p in /proc/[0-9]*; do echo $(<$p/comm); done"))[1]:
            await asyncio.sleep(0.1)


async def test_the_disk_freezes_for_a_whole_copy(world: World, driver: ContainerDriver) -> None:
    machine = await world.start(driver)
    await machine.run("echo one >~/f")
    await driver.freeze_disk(machine.handle)
    await driver.freeze_disk(machine.handle)
    writing = asyncio.create_task(machine.run("echo two >~/f; sync"))
    await asyncio.sleep(0.2)
    assert not writing.done()
    await driver.thaw_disk(machine.handle)
    await driver.thaw_disk(machine.handle)
    assert (await asyncio.wait_for(writing, 10))[0] == 0


async def test_limits_change_while_it_runs(world: World, driver: ContainerDriver) -> None:
    machine = await world.start(driver)
    before = (await driver.usage(machine.handle)).memory_limit_bytes
    await driver.resize(machine.handle, Size(0.5, 512, 1))
    after = (await driver.usage(machine.handle)).memory_limit_bytes
    assert before is not None
    assert after is not None
    assert after - before >= 256 << 20


def _swap(driver: ContainerDriver, machine_id: str) -> int | None:
    """The bound beside that of memory; None where the kernel does not count swap."""
    v2 = driver.cgroups.v2
    name = "memory.swap.max" if v2 else "memory.memsw.limit_in_bytes"
    file = driver.cgroups._file("memory", driver._group(machine_id), name)
    return int(file.read_text().replace("max", "-1")) if file.exists() else None


async def test_it_takes_no_more_swap_than_it_has_memory(
    world: World, driver: ContainerDriver
) -> None:
    machine = await world.start(driver)
    if _swap(driver, machine.id) is None:
        pytest.skip("this kernel does not count swap")
    for size in (None, Size(1, 512, 1), Size(1, 320, 1)):
        if size is not None:
            await driver.resize(machine.handle, size)
        limit = (await driver.usage(machine.handle)).memory_limit_bytes
        assert _swap(driver, machine.id) == limit


@case(3)
async def test_the_image_is_a_hard_limit(world: World, driver: ContainerDriver) -> None:
    machine = await world.start(driver)
    code, text = await machine.run("dd if=/dev/zero of=$HOME/big bs=1M count=2000", 60)
    assert code != 0
    assert "No space left" in text
    await machine.run("rm ~/big")
    assert (await machine.run("echo fine >~/f; cat ~/f")) == (0, "fine\n")


@case(39)
async def test_a_machine_reaches_nothing_of_the_hosts(
    world: World, driver: ContainerDriver
) -> None:
    machine = await world.start(driver)
    base = world.settings.data_dir.parent
    assert list(base.iterdir()), "it is on the host"
    for shell in (
        f"ls {base}",
        "echo 1 >/proc/sysrq-trigger",
        "echo x >/proc/sys/kernel/core_pattern",
        "echo x >/sys/kernel/uevent_helper",
        "cat /proc/kcore",
        "cat /dev/mem",
        "cat /dev/kvm",
        "cat /dev/loop0",
        f"ls /proc/1/root/.roost/../../..{base}",
    ):
        code, text = await machine.run(shell)
        assert code != 0, (shell, text)
    _, text = await machine.run("cat /proc/1/environ /proc/self/environ; ls /proc/self/fd")
    assert str(base) not in text


@case(22)
async def test_links_planted_by_the_guest_lead_nowhere(
    world: World, driver: ContainerDriver
) -> None:
    if driver.name == "user":
        pytest.skip("nobody in the machine writes its system: test_user.py")
    canary = world.settings.data_dir.parent / "canary"
    canary.mkdir(exist_ok=True)
    (canary / "agent").write_text("untouched")
    machine = await world.start(driver)
    code, text = await machine.run(
        f"mv /.roost /.old; ln -s {canary} /.roost; rm -f /etc/resolv.conf /etc/hosts /etc/hostname; "
        f"ln -s {canary}/agent /etc/resolv.conf; ln -s /../../../../../../..{canary}/agent /etc/hosts; "
        f"mkdir /etc/hostname; sync"
    )
    assert code == 0, text
    await machine.client.close()
    await driver.remove(machine.id)
    slot = await world.network.reattach(machine.id, machine.slot.index, Policy())
    again = await world.boot(driver, replace(machine.spec, slot=slot))
    code, text = await again.run("cat /etc/resolv.conf /etc/hostname; ls /.roost")
    assert (code, text.splitlines()[0]) == (0, "nameserver 10.0.0.1")
    assert "agent" in text
    assert [p.name for p in canary.iterdir()] == ["agent"]
    assert (canary / "agent").read_text() == "untouched"


async def test_a_disk_a_virtual_machine_wrote_is_not_mounted(
    world: World, driver: ContainerDriver
) -> None:
    machine_id = "raw1"
    slot = await world.network.take(machine_id, Policy())
    disk = await world.storage.clone(world.image, machine_id, 1)
    disks.mark_used(disk, raw_written=True)
    spec = _spec_like(world, machine_id, slot, disk)
    with pytest.raises(UnsupportedError):
        await driver.start(spec)
    disk.with_suffix(".json").unlink()
    with pytest.raises(RoostError):
        await driver.start(spec)
    assert await driver.list_ids() == set()
    await world.network.release(machine_id)
    await world.storage.delete(machine_id)


async def test_a_start_that_fails_leaves_nothing_and_says_why(
    world: World, driver: ContainerDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await _at_rest(world)
    real = driver._command
    monkeypatch.setattr(driver, "_command", lambda d, i: [*real(d, i)[:-1], "--no-such-flag", i])
    with pytest.raises(MachineError) as caught:
        await world.start(driver)
    assert "no-such-flag" in caught.value.message
    monkeypatch.setattr(driver, "_command", lambda d, i: ["sleep", "60"])
    monkeypatch.setattr(driver.settings, "operation_timeout_s", 0.3)
    with pytest.raises(MachineError) as caught:
        await world.start(driver)
    assert caught.value.code == "TIMEOUT"
    for name in list(world.network._used):
        await world.network.release(name)
        await world.storage.delete(name)
    await _back_to(world, before)


async def test_a_cancelled_start_is_taken_back(world: World, driver: ContainerDriver) -> None:
    task = asyncio.create_task(world.start(driver))
    await asyncio.sleep(0.03)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await driver.list_ids() == set()
    for name in list(world.network._used):
        await world.network.release(name)
        await world.storage.delete(name)


@case("F9")
async def test_many_come_and_go(world: World, driver: ContainerDriver) -> None:
    warm = await world.start(driver)
    await world.destroy(warm)
    before, fds = await _at_rest(world), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        machines = await asyncio.gather(
            *(world.start(driver, size=Size(1, 128, 1)) for _ in range(4))
        )
        assert [await m.run("echo $((6*7))") for m in machines] == [(0, "42\n")] * 4
        await asyncio.gather(*(world.destroy(m) for m in machines))
    await asyncio.sleep(0.2)
    await _back_to(world, before)
    assert len(os.listdir("/proc/self/fd")) <= fds + 4


def _spec_like(world: World, machine_id: str, slot: object, disk: Path):  # type: ignore[no-untyped-def]
    from roost.drivers.interface import StartSpec

    return StartSpec(machine_id, "box", Size(1, 256, 1), Root(image=disk), slot, "t" * 32, "0" * 32)  # type: ignore[arg-type]
