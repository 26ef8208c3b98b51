"""One instant of a running machine kept: what goes on from it, what it costs, and what happens when it cannot be."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from roost.drivers import urpc
from roost.drivers.container import ContainerDriver
from roost.drivers.interface import Capture
from roost.egress.policy import Policy
from roost.errors import ConflictError, RoostError, UnsupportedError
from roost.host import loop, mounts, syscalls
from roost.storage import mounting
from tests.attack.record import case

from .conftest import Machine, World

pytestmark = pytest.mark.system

# Counts into a file it holds open for appending, and tells its count and a sum of its 64 MiB when asked.
_COUNTER = r"""
open my $r, "<", "/dev/urandom"; my $data = ""; while (length $data < 64 << 20) { sysread $r, $data, 1 << 20, length $data }
open my $log, ">>", "/root/log"; my $n = 0;
while (1) {
  $n++; syswrite $log, "$n\n";
  if (-e "/root/ask") {
    unlink "/root/ask"; open my $a, ">", "/root/answer.new";
    print $a "$n ", unpack("%32N*", $data), "\n"; close $a; rename "/root/answer.new", "/root/answer";
  }
  select undef, undef, undef, 0.02;
}
"""


async def _start_counter(machine: Machine) -> None:
    code, text = await machine.run(
        f"rm -f /root/answer; (LC_ALL=C exec perl -e '{_COUNTER}' >/root/out 2>&1 </dev/null) & "
        "while [ ! -s /root/log ]; do sleep 0.05; [ ! -s /root/out ] || { cat /root/out; exit 1; }; done",
        60,
    )
    assert code == 0, text


async def _ask(machine: Machine) -> tuple[int, int]:
    """Its count and the sum of its data."""
    code, text = await machine.run(
        "rm -f /root/answer; touch /root/ask; while [ ! -e /root/answer ]; do sleep 0.02; done; "
        "cat /root/answer",
        30,
    )
    assert code == 0, text
    count, total = text.split()
    return int(count), int(total)


async def _log(machine: Machine) -> list[int]:
    code, text = await machine.run("cat /root/log", 30)
    assert code == 0, text
    return [int(line) for line in text.split()]


async def _grown(machine: Machine, beyond: int) -> list[int]:
    async with asyncio.timeout(30):
        while len(log := await _log(machine)) <= beyond:
            await asyncio.sleep(0.05)
    return log


def _contiguous(numbers: list[int]) -> bool:
    return numbers == list(range(1, len(numbers) + 1))


async def _drop(kept: tuple[Capture, Path]) -> None:
    shutil.rmtree(kept[0].directory)
    kept[1].unlink()


@pytest.fixture
async def gvisor(world: World) -> ContainerDriver:
    driver = world.driver("gvisor")
    probe = await driver.probe()
    if not probe.available:
        pytest.skip(probe.reason or "not available")
    return driver


async def test_memory_goes_on_in_parent_and_children_apart(
    world: World, gvisor: ContainerDriver
) -> None:
    parent = await world.start(gvisor)
    await _start_counter(parent)
    before, total = await _ask(parent)
    kept = await world.capture(parent)
    assert kept[0].memory
    assert kept[0].paused_ms > 0
    json.dumps(kept[0].manifest)
    assert (await _ask(parent))[1] == total
    children = await asyncio.gather(
        *(world.child(kept, parent, agent_token="n" * 32) for _ in range(2))
    )
    first = await asyncio.gather(*(_ask(child) for child in children))
    assert {data for _, data in first} == {total}
    assert all(count >= before for count, _ in first)
    assert all(not child.handle.identity_on_disk for child in children)
    await children[0].run("echo mine >/root/own; sync")
    assert (await children[1].run("ls /root/own"))[0] != 0
    assert (await parent.run("ls /root/own"))[0] != 0
    # To another generation.
    again = await world.capture(children[0])
    grandchild = await world.child(again, children[0])
    count, data = await _ask(grandchild)
    assert data == total
    assert count > first[0][0]
    assert await grandchild.run("cat /root/own") == (0, "mine\n")
    # The file that was open for appending is whole in all of them, and grows in each by itself.
    for machine in (parent, *children, grandchild):
        log = await _log(machine)
        assert _contiguous(log), log[-5:]
        await _grown(machine, len(log))
    waiting = asyncio.create_task(gvisor.wait(grandchild.handle))
    os.kill(grandchild.handle.pid, signal.SIGKILL)
    assert (await asyncio.wait_for(waiting, 15)).reason == "killed"
    await _drop(kept)
    await _drop(again)


async def test_asleep_on_disk_and_woken_in_the_same_slot(
    world: World, gvisor: ContainerDriver
) -> None:
    machine = await world.start(gvisor)
    await _start_counter(machine)
    count, total = await _ask(machine)
    await world.hang_up(machine)
    waiting = asyncio.create_task(gvisor.wait(machine.handle))
    into = world.storage.pool.tmp / "asleep"
    into.mkdir()
    capture = await gvisor.hibernate(machine.handle, into)
    assert (await asyncio.wait_for(waiting, 15)).reason == "killed"
    assert await gvisor.list_ids() == set()
    assert not loop.devices_of(machine.disk)
    _whole(machine.disk)
    slot = await world.network.reattach(machine.id, machine.slot.index, Policy())
    woken = await world.boot(gvisor, replace(machine.spec, slot=slot), capture)
    later, data = await _ask(woken)
    assert data == total
    assert later >= count
    await _runs_on(woken)
    shutil.rmtree(into)


async def test_a_restored_agent_answers_however_much_was_closed_before(
    world: World, gvisor: ContainerDriver
) -> None:
    """gVisor reports to a restored epoll instance what was taken out of it before the save (agent/src/epoll.rs)."""
    machine = await world.start(gvisor)
    for turn in range(4):
        ran = await asyncio.gather(*(machine.run("echo hi") for _ in range(16)))
        assert ran == [(0, "hi\n")] * 16
        await world.hang_up(machine)
        into = world.storage.pool.tmp / f"turn{turn}"
        into.mkdir()
        capture = await gvisor.hibernate(machine.handle, into)
        slot = await world.network.reattach(machine.id, machine.slot.index, Policy())
        machine = await world.boot(gvisor, replace(machine.spec, slot=slot), capture)
        assert await machine.run("echo on") == (0, "on\n")
        shutil.rmtree(into)


@case("F5", rung="gvisor")
async def test_a_damaged_image_is_refused_before_it_runs(
    world: World, gvisor: ContainerDriver
) -> None:
    parent = await world.start(gvisor)
    await parent.run("echo kept >/root/f; sync")
    kept = await world.capture(parent)
    capture = kept[0]
    before = await gvisor.list_ids()

    async def refused(capture: Capture, why: str) -> None:
        with pytest.raises(ConflictError) as caught:
            await world.child((capture, kept[1]), parent)
        assert caught.value.code == "SNAPSHOT_INVALID"
        assert why in caught.value.message, caught.value.message
        assert await gvisor.list_ids() == before
        last = f"test{world.made}"
        await world.network.release(last)
        await world.storage.delete(last)

    for path in sorted(capture.directory.iterdir()):
        with path.open("r+b") as file:
            middle = path.stat().st_size // 2
            file.seek(middle)
            was = file.read(1)
            file.seek(middle)
            file.write(bytes([was[0] ^ 1]))
            file.flush()
            await refused(capture, "damaged")
            file.seek(middle)
            file.write(was)
        data = path.read_bytes()
        path.write_bytes(data[:-1])
        await refused(capture, "bytes instead of")
        path.unlink()
        await refused(capture, "cannot be read")
        path.write_bytes(data)
    host = capture.manifest["host"]
    for change, why in (
        ({"runsc": "20990101.0"}, "20990101.0"),
        ({"flags": []}, "options"),
        ({"cpu": [*host["cpu"], "wings"]}, "wings"),
    ):
        manifest = {**capture.manifest, "host": {**host, **change}}
        await refused(replace(capture, manifest=manifest), why)
    await refused(replace(capture, manifest={}), "")
    fresh = await world.child((replace(capture, memory=False), kept[1]), parent)
    assert await fresh.run("cat /root/f") == (0, "kept\n")
    restored = await world.child(kept, parent)
    assert await restored.run("cat /root/f") == (0, "kept\n")
    await _drop(kept)


@case("F4", rung="gvisor")
async def test_no_space_for_it_leaves_the_parent_running(
    world: World, gvisor: ContainerDriver, tmp_path: Path
) -> None:
    parent = await world.start(gvisor)
    await _start_counter(parent)
    await world.hang_up(parent)
    into = tmp_path / "small"
    into.mkdir()
    syscalls.mount("tmpfs", into, "tmpfs", 0, "size=8m")
    try:
        disk = world.storage.pool.tmp / "none.ext4"
        with pytest.raises(RoostError) as caught:
            await gvisor.capture(parent.handle, into, disk)
        assert caught.value.code == "STORAGE_FULL"
        assert list(into.iterdir()) == []
        assert not disk.exists()
        await _runs_on(parent)
        await world.hang_up(parent)
        with pytest.raises(RoostError) as caught:
            await gvisor.hibernate(parent.handle, into)
        assert caught.value.code == "STORAGE_FULL"
        assert list(into.iterdir()) == []
        await _runs_on(parent)
    finally:
        mounts.unmount(into)
    kept = await world.capture(parent)  # a save that failed spoils no later one
    child = await world.child(kept, parent)
    await _runs_on(child)
    await _drop(kept)


async def _runs_on(machine: Machine) -> None:
    """It counts, it writes, its disk takes writes."""
    await _ask(machine)
    assert _contiguous(await _grown(machine, len(await _log(machine))))
    assert (await machine.run("echo x >/root/x; sync"))[0] == 0


@pytest.mark.parametrize("after_s", [0.005, 0.03, 0.06, 0.1, 0.15])
async def test_a_machine_that_ends_meanwhile(
    world: World, driver: ContainerDriver, after_s: float
) -> None:
    parent = await world.start(driver)
    await world.hang_up(parent)
    into = world.storage.pool.tmp / f"gone{world.made}"
    into.mkdir()
    disk = into.with_suffix(".ext4")
    task = asyncio.create_task(driver.capture(parent.handle, into, disk))
    await asyncio.sleep(after_s)
    os.kill(parent.handle.pid, signal.SIGKILL)
    await asyncio.wait([task], timeout=20)
    if failure := task.exception():
        assert isinstance(failure, RoostError)
        assert failure.code == "MACHINE_FAILED", failure.message
        assert list(into.iterdir()) == []
        assert not disk.exists()
    await asyncio.wait_for(driver.remove(parent.id), 15)
    assert not loop.devices_of(parent.disk)
    shutil.rmtree(into)
    disk.unlink(missing_ok=True)


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.06, 0.12, 0.16, 0.2])
async def test_a_cancelled_capture_leaves_it_running(
    world: World, driver: ContainerDriver, after_s: float
) -> None:
    parent = await world.start(driver)
    await _start_counter(parent)
    await world.hang_up(parent)
    into = world.storage.pool.tmp / f"cut{world.made}"
    into.mkdir()
    disk = into.with_suffix(".ext4")
    work = [driver.capture(parent.handle, into, disk)]
    if driver.capabilities().memory_snapshot:
        work.append(driver.hibernate(parent.handle, into))
    for one in work:
        await world.hang_up(parent)
        task = asyncio.create_task(one)
        await asyncio.sleep(after_s)
        task.cancel()
        await asyncio.wait([task])
        if one in work[1:] and await driver.kept(into):  # its memory was whole before, so it ends
            assert parent.id not in await driver.list_ids()
            shutil.rmtree(into)
            return
        if not task.cancelled():  # it was done before
            assert one is work[0]
            await _drop((task.result(), disk))
            into.mkdir()
        assert list(into.iterdir()) == []
        assert not disk.exists()
        await _runs_on(parent)
    into.rmdir()


async def test_what_a_dead_daemon_left_standing_goes_on(
    world: World, driver: ContainerDriver
) -> None:
    parent = await world.start(driver)
    await _start_counter(parent)
    for standing, adopted in ((False, True), (True, True), (True, False)):
        await world.hang_up(parent)
        (driver._directory(parent.id) / "held").touch()
        if standing:
            driver._stop(parent.id)
            mounting.freeze(parent.disk)
        # The daemon ends here.
        later = world.driver(driver.name)
        if adopted:
            assert await later.adopt(parent.handle)
            await _runs_on(parent)
        else:
            await asyncio.wait_for(later.remove(parent.id), 15)
            assert not loop.devices_of(parent.disk)


async def test_what_is_held_once_or_never_stopped_is_not_resumed_twice(
    world: World, gvisor: ContainerDriver
) -> None:
    """A Resume too many ends a sandbox of the release whose control socket is spoken to."""
    machine = await world.start(gvisor)
    for standing in (True, False, True):
        await world.hang_up(machine)
        (gvisor._directory(machine.id) / "held").touch()
        if standing:
            gvisor._stop(machine.id)
        assert await world.driver("gvisor").adopt(machine.handle)
        assert not (gvisor._directory(machine.id) / "held").exists()
        assert await machine.run("echo on") == (0, "on\n")


async def test_a_release_that_was_not_tried_gets_the_program(
    world: World, gvisor: ContainerDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("its control socket was used")

    monkeypatch.setattr(urpc, "RELEASES", frozenset({"another"}))
    monkeypatch.setattr(urpc, "_call", never)
    machine = await world.start(gvisor)
    await _start_counter(machine)
    kept = await world.capture(machine)
    await _runs_on(machine)
    await _runs_on(await world.child(kept, machine))
    await world.hang_up(machine)
    gvisor._stop(machine.id)
    (gvisor._directory(machine.id) / "held").touch()
    assert await world.driver("gvisor").adopt(machine.handle)
    await _runs_on(machine)
    await _drop(kept)


async def test_the_tried_release_is_the_one_in_use(gvisor: ContainerDriver) -> None:
    """With another one captures work, but pause three times as long: try its control socket, then add it."""
    assert (await gvisor.probe()).version in urpc.RELEASES


async def test_a_capture_for_a_fork_is_known_by_its_files(
    world: World, gvisor: ContainerDriver
) -> None:
    parent = await world.start(gvisor)
    await _start_counter(parent)
    _, total = await _ask(parent)
    await world.hang_up(parent)
    into = world.storage.pool.tmp / "fork"
    into.mkdir()
    disk = into.with_suffix(".ext4")
    capture = await gvisor.capture(parent.handle, into, disk, durable=False)
    capture = replace(capture, manifest=json.loads(json.dumps(capture.manifest)))
    child = await world.child((capture, disk), parent)
    assert (await _ask(child))[1] == total
    with (into / "pages.img").open("r+b") as file:
        was = file.read(1)
        file.seek(0)
        file.write(was)
    with pytest.raises(ConflictError) as caught:
        await world.child((capture, disk), parent)
    assert caught.value.code == "SNAPSHOT_INVALID"
    last = f"test{world.made}"
    await world.network.release(last)
    await world.storage.delete(last)
    await _drop((capture, disk))


async def test_a_caller_that_keeps_its_connection_is_told(
    world: World, gvisor: ContainerDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.drivers.gvisor._SETTLE_TIMEOUT_S", 0.2)
    parent = await world.start(gvisor)
    await _start_counter(parent)
    into = world.storage.pool.tmp / "kept"
    into.mkdir()
    with pytest.raises(RoostError) as caught:
        await gvisor.capture(parent.handle, into, into.with_suffix(".ext4"))
    assert caught.value.code == "TIMEOUT"
    await _runs_on(parent)
    into.rmdir()


async def test_a_file_that_is_open_but_has_no_name_cannot_be_saved(
    world: World, gvisor: ContainerDriver
) -> None:
    parent = await world.start(gvisor)
    await _start_counter(parent)
    holding = (
        "exec 5<>/root/gone; rm /root/gone; : >/root/held; "
        "while [ ! -e /root/go ]; do sleep 0.05; done; exec 5>&-; : >/root/over"
    )
    held = "until [ -e /root/held ]; do sleep 0.05; done"
    await parent.run(f"({holding}) >/dev/null 2>&1 </dev/null & {held}")
    with pytest.raises(RoostError) as caught:
        await world.capture(parent)
    assert caught.value.code == "MACHINE_FAILED"
    assert "gone" in caught.value.message, caught.value.message
    await _runs_on(parent)
    await parent.run("touch /root/go; until [ -e /root/over ]; do sleep 0.05; done")
    kept = await world.capture(parent)
    await _runs_on(await world.child(kept, parent))
    await _drop(kept)


@case("F3")
@pytest.mark.parametrize("name", ["user", "runc", "gvisor"])
async def test_it_is_on_the_disk_before_it_is_told(
    world: World, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after the answer finds all of it: each file was synced after it was written last, and the
    directories that name them after that."""
    synced: dict[tuple[int, int], int] = {}
    plain = os.fsync

    def fsync(fd: int) -> None:
        plain(fd)
        found = os.fstat(fd)
        synced[found.st_dev, found.st_ino] = time.time_ns()

    monkeypatch.setattr(os, "fsync", fsync)
    driver = world.driver(name)
    parent = await world.start(driver)
    kept = await world.capture(parent)
    capture, disk = kept
    files = [*capture.directory.iterdir()]
    for path in (disk, disk.parent, *files, *([capture.directory] if files else [])):
        found = path.stat()
        assert synced.get((found.st_dev, found.st_ino), 0) >= found.st_mtime_ns, path
    await _drop(kept)


async def test_runc_keeps_the_disk_alone(world: World) -> None:
    driver = world.driver("runc")
    parent = await world.start(driver)
    await _start_counter(parent)
    kept = await world.capture(parent)
    capture, disk = kept
    assert not capture.memory
    assert capture.manifest["files"] == {}
    _whole(disk)
    child = await world.child(kept, parent)
    assert _contiguous(await _log(child))
    assert (await child.run("ls /proc/*/exe | grep perl"))[0] != 0
    await _runs_on(parent)
    for refusal in (driver.restore(parent.spec, capture), driver.hibernate(parent.handle, disk)):
        with pytest.raises(UnsupportedError):
            await refusal
    await _drop(kept)


def _whole(disk: Path) -> None:
    done = subprocess.run(["e2fsck", "-fn", disk], capture_output=True, text=True, check=False)
    assert "error" not in done.stdout.lower(), done.stdout
    assert done.returncode == 0, done.stdout
