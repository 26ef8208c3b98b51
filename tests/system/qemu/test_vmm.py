"""One VMM and its children: memory of one instant, the jail, ends of every kind, bad snapshots."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from roost.drivers.interface import Capture, Root
from roost.drivers.qemu import QemuDriver
from roost.drivers.qemu import capture as captures
from roost.errors import MachineError
from roost.host import files

from .conftest import Lab, Saved

pytestmark = pytest.mark.system


async def child(lab: Lab, saved: Saved, machine_id: str):  # type: ignore[no-untyped-def]
    return await lab.begin(await lab.spec(machine_id, saved.disk), saved.capture)


def test_a_capture_stops_its_machine_shortly(saved: Saved) -> None:
    print("pauses in ms:", [round(p, 1) for p in sorted(saved.pauses_ms)])
    assert statistics.median(saved.pauses_ms) <= 50
    assert max(saved.pauses_ms) <= 500  # a busy host; the bench has the bound


async def test_children_go_on_each_by_itself(lab: Lab, saved: Saved) -> None:
    one = await child(lab, saved, "one")
    first = await one.counter()
    await asyncio.sleep(2)
    two = await child(lab, saved, "two")
    assert await one.run("cksum /dev/shm/random") == saved.checksum
    assert await two.run("cksum /dev/shm/random") == saved.checksum
    # The second began where the capture was, not where its sibling is.
    a, b = await one.counter(), await two.counter()
    assert first < a
    await one.run("echo one >/dev/shm/mark; echo one >/root/mark; sync")
    assert await two.run("cat /dev/shm/mark /root/mark 2>/dev/null; echo none") == "none"
    await asyncio.sleep(1)
    assert await one.counter() > a
    assert await two.counter() > b


async def test_hibernation_writes_what_changed_and_the_chain_holds(lab: Lab, saved: Saved) -> None:
    vm = await child(lab, saved, "one")
    at = 0
    directory = lab.storage.pool.variants
    for number in range(3):
        count = await vm.counter()
        assert count >= at
        await vm.run(f"echo {number} >>/dev/shm/chain; echo {number} >>/root/chain")
        into = directory / f"hib{number}"
        capture = await lab.driver.hibernate(vm.handle, into)
        assert capture.manifest["memory_bytes"] < 64 << 20
        await vm.client.close()
        await lab.driver.remove("one")
        vm = await lab.begin(vm.spec, capture)
        at = count
        assert await vm.run("cksum /dev/shm/random") == saved.checksum
        assert await vm.run("cat /dev/shm/chain") == "\n".join(map(str, range(number + 1)))
        assert await vm.run("cat /root/chain") == "\n".join(map(str, range(number + 1)))


async def test_without_its_snapshot_file_it_is_saved_whole(lab: Lab, saved: Saved) -> None:
    directory = lab.storage.pool.variants / "other"
    shutil.copytree(saved.capture.directory, directory)
    capture = Capture(directory, saved.capture.manifest, 0)
    vm = await lab.begin(await lab.spec("one", saved.disk), capture)
    shutil.rmtree(directory)
    slept = await lab.driver.hibernate(vm.handle, directory)
    assert slept.manifest["memory_bytes"] > 64 << 20
    await vm.client.close()
    await lab.driver.remove("one")
    vm = await lab.begin(vm.spec, slept)
    assert await vm.run("cksum /dev/shm/random") == saved.checksum


async def test_freeze_stops_it_and_thaw_goes_on(lab: Lab, saved: Saved) -> None:
    vm = await child(lab, saved, "one")
    await lab.driver.freeze(vm.handle)
    before = (await lab.driver.usage(vm.handle)).cpu_usage_us
    await asyncio.sleep(1)
    assert (await lab.driver.usage(vm.handle)).cpu_usage_us - before < 100_000
    await lab.driver.thaw(vm.handle)
    at = await vm.counter()
    await asyncio.sleep(1)
    assert await vm.counter() > at


async def test_the_jail(lab: Lab, saved: Saved) -> None:
    vm = await child(lab, saved, "one")
    proc = Path(f"/proc/{vm.handle.pid}")
    status = dict(
        line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line
    )
    uids = set(status["Uid"].split())
    assert len(uids) == 1
    assert int(uids.pop()) >= 0x70000000
    assert status["Groups"].strip() == ""
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2"
    for name in ("mnt", "pid", "ipc", "uts", "net"):
        assert os.readlink(proc / "ns" / name) != os.readlink(f"/proc/self/ns/{name}")
    assert vm.spec.slot is not None
    assert os.stat(proc / "ns/net").st_ino == os.stat(vm.spec.slot.netns).st_ino
    mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
    assert {m[4] for m in mounts} == {"/", "/memory"}
    assert all({"ro", "nosuid", "nodev"} <= set(m[5].split(",")) for m in mounts)
    assert sorted(p.name for p in (proc / "root").iterdir()) == [
        "firmware", "guest", "lib", "lib64", "manifest.json", "memory", "vmm",
    ]  # fmt: skip
    written = set()
    for fd in (proc / "fd").iterdir():
        flags = int((proc / "fdinfo" / fd.name).read_text().split("flags:\t")[1].split()[0], 8)
        target = os.readlink(fd)
        if flags & os.O_ACCMODE != os.O_RDONLY and target.startswith("/"):
            written.add(target)
    # Its disk, its log, its tap; nothing else that it could write has a name.
    log = str(lab.driver._place("one").log)
    assert written <= {str(vm.spec.root.image), log, "/dev/net/tun"}
    groups = (proc / "cgroup").read_text()
    assert "/qemu-one" in groups


async def test_a_later_daemon_adopts_it(lab: Lab, saved: Saved) -> None:
    vm = await child(lab, saved, "one")
    frozen = await child(lab, saved, "two")
    await lab.driver.freeze(frozen.handle)
    # A daemon that died in the middle of a capture leaves its machine stopped.
    await lab.driver._live["one"].qmp.execute("stop")
    for each in (vm, frozen):
        await each.client.close()
        await lab.driver._live.pop(each.spec.machine_id).close()
    lab.driver = QemuDriver(lab.driver.settings, lab.driver.guests)
    await lab.driver.probe()
    for each in (vm, frozen):
        assert await lab.driver.adopt(each.handle)
        assert not await lab.driver.adopt(replace(each.handle, pid_start_ticks=1))
        await lab.driver.use_token(each.handle, lab.driver.guests.first_token)
        each.client = type(each.client)(each.handle.agent_target, lab.driver.guests.first_token)
    await vm.client.wait_ready(60)
    at = await vm.counter()
    await asyncio.sleep(1)
    assert await vm.counter() > at
    status = await lab.driver._live["two"].qmp.execute("query-status")
    assert status["status"] == "paused"
    await lab.driver.thaw(frozen.handle)
    await frozen.client.wait_ready(60)


async def test_ends_of_every_kind(lab: Lab, saved: Saved) -> None:
    killed, panicked, rebooted = [
        await child(lab, saved, name) for name in ("killed", "panicked", "rebooted")
    ]
    os.kill(killed.handle.pid, signal.SIGKILL)
    async with asyncio.timeout(2):
        assert (await lab.driver.wait(killed.handle)).reason == "killed"
    for vm, key in ((panicked, "c"), (rebooted, "b")):
        with pytest.raises(MachineError):
            await vm.run(f"echo 1 >/proc/sys/kernel/sysrq; echo {key} >/proc/sysrq-trigger")
    async with asyncio.timeout(30):
        end = await lab.driver.wait(panicked.handle)
        assert end.reason == "panicked"
        assert "sysrq" in end.console
        assert (await lab.driver.wait(rebooted.handle)).reason == "rebooted"


async def test_bad_snapshots_are_refused_before_anything_starts(lab: Lab, saved: Saved) -> None:
    spec = await lab.spec("one", saved.disk)
    directory = lab.storage.pool.variants / "bad"

    async def refused(what: str, capture: Capture, spec=spec) -> None:  # type: ignore[no-untyped-def]
        with pytest.raises(MachineError) as caught:
            await lab.driver.restore(spec, capture)
        assert caught.value.code == "SNAPSHOT_INVALID", what
        assert await lab.driver.list_ids() == set()

    def fresh() -> Capture:
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(saved.capture.directory, directory)
        os.chmod(directory / "memory", 0o600)
        return replace(saved.capture, directory=directory)

    bigger = replace(spec, size=replace(spec.size, memory_mib=spec.size.memory_mib * 2))
    await refused("another size", saved.capture, bigger)
    capture = fresh()
    os.truncate(directory / "memory", 1 << 20)
    await refused("truncated", capture)
    capture = fresh()
    with (directory / "memory").open("r+b") as file:
        file.seek(-40, os.SEEK_END)
        file.write(b"\xff")
    await refused("flipped", capture)
    capture = fresh()
    (directory / "manifest.json").unlink()
    await refused("no manifest", capture)
    capture = fresh()
    (directory / "memory").unlink()
    await refused("no memory", capture)
    for name, value in (("vmm_version", "10.0.3"), ("guest", "other"), ("runtime", "0" * 64)):
        capture = fresh()
        manifest = files.read_json(directory / "manifest.json")
        assert manifest is not None
        files.write_json(directory / "manifest.json", {**manifest, name: value}, durable=False)
        await refused(name, capture)
    vm = await lab.begin(spec, saved.capture)
    assert await vm.counter() > 0


async def test_a_failed_capture_leaves_a_running_machine_and_nothing_else(
    lab: Lab, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = await child(lab, saved, "one")
    into = lab.storage.pool.variants / "failed"
    with pytest.raises(OSError):
        await lab.driver.capture(vm.handle, into, Path("/nonexistent/disk"))
    assert not into.exists()
    # Cancelled at many moments.
    for delay in (0.0, 0.01, 0.05, 0.1, 0.2):
        task = asyncio.create_task(
            lab.driver.capture(vm.handle, into, lab.storage.pool.variants / "failed.ext4")
        )
        await asyncio.sleep(delay)
        task.cancel()
        done = (await asyncio.gather(task, return_exceptions=True))[0]
        if isinstance(done, Capture):
            shutil.rmtree(into)
            (lab.storage.pool.variants / "failed.ext4").unlink()
        assert not into.exists()
        assert not (lab.storage.pool.variants / "failed.ext4").exists()
        status = await lab.driver._live["one"].qmp.execute("query-status")
        assert status["status"] == "running"

    # Hibernation that fails resumes it.
    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(captures, "_write_delta", broken)
    with pytest.raises(OSError):
        await lab.driver.hibernate(vm.handle, into)
    at = await vm.counter()
    await asyncio.sleep(1)
    assert await vm.counter() > at


async def test_a_boot_that_cannot_be_is_reported(lab: Lab) -> None:
    spec = await lab.spec("one")
    assert spec.root.image is not None
    spec.root.image.write_bytes(b"no file system" * 1000)
    handle = await lab.driver.start(replace(spec, root=Root(image=spec.root.image)))
    async with asyncio.timeout(100):
        end = await lab.driver.wait(handle)
    assert end.reason == "panicked"
