"""One VMM and its children: memory of one instant, the jail, ends of every kind, bad snapshots."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import statistics
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from roost.agent.client import AgentClient
from roost.agent.v1 import agent_pb2 as pb
from roost.drivers import saved as saved_memory
from roost.drivers.interface import Capture, StartSpec
from roost.drivers.qemu import QemuDriver
from roost.drivers.qemu import capture as captures
from roost.drivers.qemu.mappedram import SnapshotInvalid
from roost.drivers.qemu.qmp import Qmp
from roost.errors import MachineError
from roost.host import files
from tests.attack.record import case
from tests.system.internet import INTERNET, RESOLVER

from .conftest import TOKEN, Lab, Saved, Vm, copied

pytestmark = pytest.mark.system
CHANGED = 32 << 20  # bytes that these tests do not write; what is not zero of a machine is more


async def child(lab: Lab, saved: Saved, machine_id: str) -> Vm:
    return await lab.begin(await lab.spec(machine_id, saved.disk), saved.capture)


def test_a_capture_stops_its_machine_shortly(saved: Saved) -> None:
    print("pauses in ms:", [round(p, 1) for p in sorted(saved.pauses_ms)])
    assert statistics.median(saved.pauses_ms) <= 50
    assert max(saved.pauses_ms) <= 500  # a busy host; the bench has the bound


async def test_children_go_on_each_by_itself(lab: Lab, saved: Saved) -> None:
    one = await child(lab, saved, "one")
    first = await one.counter()
    two = await child(lab, saved, "two")
    assert await one.run("cksum /dev/shm/random") == saved.checksum
    assert await two.run("cksum /dev/shm/random") == saved.checksum
    # The second began where the capture was, not where its sibling is.
    assert first < await one.counter()
    await one.run("echo one >/dev/shm/mark; echo one >/root/mark; sync")
    assert await two.run("cat /dev/shm/mark /root/mark 2>/dev/null; echo none") == "none"
    await one.counts_on()
    await two.counts_on()


async def test_hibernation_writes_what_changed_and_the_chain_holds(
    lab: Lab, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_whole(monkeypatch)
    vm = await child(lab, saved, "one")
    for number in range(3):
        count = await vm.counter()
        await vm.run(f"echo {number} >>/dev/shm/chain; echo {number} >>/root/chain")
        capture = await lab.driver.hibernate(vm.handle, lab.directory())
        assert await lab.driver.list_ids() == set(), "it has ended on return"
        assert capture.manifest["memory_bytes"] < CHANGED
        vm = await lab.again(vm, capture)
        assert await vm.counter() >= count
        assert await vm.run("cksum /dev/shm/random") == saved.checksum
        assert await vm.run("cat /dev/shm/chain") == "\n".join(map(str, range(number + 1)))
        assert await vm.run("cat /root/chain") == "\n".join(map(str, range(number + 1)))
    await vm.counts_on()


def forbid_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole(*_: object) -> None:
        raise AssertionError("it was saved whole")

    monkeypatch.setattr(captures, "whole", whole)


@case("F6", rung="qemu")
async def test_the_file_it_came_from_may_be_deleted_or_replaced_meanwhile(
    lab: Lab, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_whole(monkeypatch)
    kept = copied(saved.capture, lab.directory())
    vm = await lab.begin(await lab.spec("one", saved.disk), kept)
    shutil.rmtree(kept.directory)
    await vm.run("echo changed >/dev/shm/mark")
    # Its new memory goes where the old one was, as a machine's sleeps do.
    kept.directory.mkdir()
    slept = await lab.driver.hibernate(vm.handle, kept.directory)
    assert slept.manifest["memory_bytes"] < CHANGED
    assert (slept.directory / "memory").stat().st_blocks * 512 > CHANGED, "a reflink of all of it"
    vm = await lab.again(vm, slept)
    assert await vm.run("cksum /dev/shm/random; cat /dev/shm/mark") == f"{saved.checksum}\nchanged"
    # And what was put in its place by others is not what it goes on from.
    kept = copied(saved.capture, lab.directory())
    os.replace(kept.directory / "memory", slept.directory / "memory")
    again = await lab.driver.hibernate(vm.handle, lab.directory())
    vm = await lab.again(vm, again)
    assert await vm.run("cksum /dev/shm/random; cat /dev/shm/mark") == f"{saved.checksum}\nchanged"
    await vm.counts_on()


async def test_one_whose_memory_is_not_what_its_record_says_is_saved_whole(
    lab: Lab, saved: Saved
) -> None:
    vm = await child(lab, saved, "one")
    record = lab.driver._place("one").directory / "machine.json"
    files.write_json(record, {**(files.read_json(record) or {}), "snapshot": [1, 2]}, durable=False)
    slept = await lab.driver.hibernate(vm.handle, lab.directory())
    assert slept.manifest["memory_bytes"] > CHANGED
    assert {p.name for p in slept.directory.iterdir()} == {"memory", "manifest.json"}
    vm = await lab.again(vm, slept)
    assert await vm.run("cksum /dev/shm/random") == saved.checksum
    await vm.counts_on()


async def test_its_network_is_its_slots(lab: Lab, saved: Saved) -> None:
    vm = await child(lab, saved, "one")
    slot = vm.spec.slot
    assert slot is not None
    greeting = f"exec 3<>/dev/tcp/{INTERNET}/80; timeout 20 cat <&3"
    assert await vm.run(greeting) == "greeting to 172.30.255.1"
    answer = (
        f"exec 3<>/dev/udp/{RESOLVER}/53; echo q >&3; timeout 20 dd bs=512 count=1 <&3 2>/dev/null"
    )
    assert await vm.run(answer) == "answer to 172.30.255.1"
    assert f"nameserver {slot.gateway}" in await vm.run("cat /etc/resolv.conf")
    told = subprocess.run(
        ["ip", "-n", slot.netns.name, "-j", "link", "show", slot.interface],
        capture_output=True,
        check=True,
    )
    mtu = json.loads(told.stdout)[0]["mtu"]
    assert mtu != 1500, "a guest that was not told would have that"
    assert int(await vm.run("cat /sys/class/net/eth0/mtu")) == mtu


async def test_freeze_stops_it_and_thaw_goes_on(lab: Lab, saved: Saved) -> None:
    vm = await child(lab, saved, "one")
    assert not await lab.driver.frozen(vm.handle)
    for _ in range(2):
        await lab.driver.freeze(vm.handle)
        assert await lab.driver.frozen(vm.handle)

    async def used() -> int:
        before = (await lab.driver.usage(vm.handle)).cpu_usage_us
        await asyncio.sleep(1)
        return (await lab.driver.usage(vm.handle)).cpu_usage_us - before

    async with asyncio.timeout(30):  # the monitor's own threads come to rest
        while await used() > 100_000:
            pass
    for _ in range(2):
        await lab.driver.thaw(vm.handle)
        assert not await lab.driver.frozen(vm.handle)
    await vm.counts_on()
    killed = await child(lab, saved, "two")
    for each in (vm, killed):
        await lab.driver.freeze(each.handle)
    waiting = asyncio.create_task(lab.driver.wait(killed.handle))
    os.kill(killed.handle.pid, signal.SIGKILL)
    assert (await asyncio.wait_for(waiting, 10)).reason == "killed"
    await asyncio.wait_for(lab.driver.remove("one"), 10)  # a frozen one goes as well


async def test_its_disk_is_as_fast_as_the_operator_allows(lab: Lab, saved: Saved) -> None:
    """A snapshot that was made without a limit goes on under one."""
    lab.driver.settings = lab.driver.settings.model_copy(update={"vm_disk_mib_per_s": 2})
    slow = await child(lab, saved, "slow")
    begun = time.monotonic()
    said = await slow.run("dd if=/dev/zero of=/root/file bs=64k count=160 oflag=direct 2>&1")
    assert "10485760 bytes" in said
    assert (
        time.monotonic() - begun > 3.5
    )  # 10 MiB at 2 MiB/s, of which it may take one second ahead
    await slow.counts_on()


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
    assert {m[4] for m in mounts} == {"/", "/guest", "/memory"}
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
    lab.driver = QemuDriver(lab.driver.settings)
    await lab.driver.probe()
    for each in (vm, frozen):
        assert await lab.driver.adopt(each.handle)
        assert not await lab.driver.adopt(replace(each.handle, pid_start_ticks=1))
        lab.driver.use_token(each.handle, TOKEN)
        each.client = AgentClient(each.handle.agent_target, TOKEN)
    await vm.client.wait_ready(60)
    await vm.counts_on()
    assert await lab.driver.frozen(frozen.handle)
    assert not await lab.driver.frozen(vm.handle)
    status = await lab.driver._live["two"].qmp.execute("query-status")
    assert status["status"] == "paused"
    await lab.driver.thaw(frozen.handle)
    await frozen.client.wait_ready(60)


async def test_ends_of_every_kind(lab: Lab, saved: Saved) -> None:
    killed, panicked, rebooted, exited = [
        await child(lab, saved, name) for name in ("killed", "panicked", "rebooted", "exited")
    ]
    os.kill(killed.handle.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        assert (await lab.driver.wait(killed.handle)).reason == "killed"
    for vm, key in ((panicked, "c"), (rebooted, "b")):
        with pytest.raises(MachineError):
            await vm.run(f"echo 1 >/proc/sys/kernel/sysrq; echo {key} >/proc/sysrq-trigger")
    await exited.client.shutdown(1.0)
    async with asyncio.timeout(60):
        end = await lab.driver.wait(panicked.handle)
        assert end.reason == "panicked"
        assert "sysrq" in end.console
        assert (await lab.driver.wait(rebooted.handle)).reason == "rebooted"
        end = await lab.driver.wait(exited.handle)
        assert (end.reason, end.exit_code) == ("exited", 0)


async def test_a_later_daemon_learns_how_a_machine_ended_meanwhile(lab: Lab, saved: Saved) -> None:
    ends = {"b": "rebooted", "c": "panicked", "o": "exited"}
    for key in ends:
        vm = await child(lab, saved, key)
        shell = f"echo 1 >/proc/sys/kernel/sysrq; sleep 1; echo {key} >/proc/sysrq-trigger"
        argv = ["/bin/bash", "-c", shell]
        await vm.client.start(pb.StartRequest(execution_id=key, argv=argv))
        await vm.client.close()
        await lab.driver._live.pop(key).close()
    for key in ends:
        async with asyncio.timeout(60):
            while True:
                qmp = await Qmp.connect(lab.driver._place(key).qmp, 10)
                status = (await qmp.execute("query-status"))["status"]
                await qmp.close()
                if status == "shutdown":
                    break
                await asyncio.sleep(0.1)
    lab.driver = QemuDriver(lab.driver.settings)
    await lab.driver.probe()
    for key, reason in ends.items():
        handle = lab.vms[key].handle
        assert await lab.driver.adopt(handle)
        async with asyncio.timeout(10):
            end = await lab.driver.wait(handle)
        assert end.reason == reason, end
        assert end.console


@case("F5", rung="qemu")
async def test_bad_snapshots_are_refused_before_anything_starts(lab: Lab, saved: Saved) -> None:
    spec = await lab.spec("one", saved.disk)
    directory = lab.directory()

    async def refused(what: str, capture: Capture, spec: StartSpec = spec) -> None:
        with pytest.raises(SnapshotInvalid) as caught:
            await lab.driver.restore(spec, capture)
        assert caught.value.code == "SNAPSHOT_INVALID", what
        assert await lab.driver.list_ids() == set()

    def fresh() -> Capture:
        shutil.rmtree(directory)
        directory.mkdir()
        return copied(saved.capture, directory)

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
    for name, value in (
        ("vmm_version", "10.0.3"),
        ("guest", "other"),
        ("runtime", "0" * 64),
        ("tsc_khz", 1000),
    ):
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
    into = lab.directory()
    disk = into.with_suffix(".ext4")

    async def nothing_but_the_machine() -> None:
        assert list(into.iterdir()) == []
        assert not disk.exists()
        status = await lab.driver._live["one"].qmp.execute("query-status")
        assert status["status"] == "running"

    with pytest.raises(OSError):
        await lab.driver.capture(vm.handle, into, Path("/nonexistent/disk"))
    await nothing_but_the_machine()
    # Cancelled at many moments.
    for delay in (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4):
        task = asyncio.create_task(lab.driver.capture(vm.handle, into, disk))
        await asyncio.sleep(delay)
        task.cancel()
        done = (await asyncio.gather(task, return_exceptions=True))[0]
        if isinstance(done, Capture):
            saved_memory.clear(into)
            disk.unlink()
        await nothing_but_the_machine()

    # Hibernation that fails, as a change and then as a whole, resumes it.
    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(captures, "_write_delta", broken)
        patch.setattr(captures, "_seal_whole", broken)
        with pytest.raises(OSError):
            await lab.driver.hibernate(vm.handle, into)
    await nothing_but_the_machine()
    await vm.counts_on()


@case("F3", rung="qemu")
async def test_it_is_on_the_disk_before_it_is_told(
    lab: Lab, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file synced after it was written last, the directories that name them, the manifest last."""
    synced: dict[tuple[int, int], int] = {}
    plain = os.fsync

    def fsync(fd: int) -> None:
        plain(fd)
        found = os.fstat(fd)
        synced[found.st_dev, found.st_ino] = time.time_ns()

    monkeypatch.setattr(os, "fsync", fsync)
    vm = await child(lab, saved, "one")
    into = lab.directory()
    disk = into.with_suffix(".ext4")
    await lab.driver.capture(vm.handle, into, disk)
    at = {}
    for path in (disk, disk.parent, into, *into.iterdir()):
        found = path.stat()
        at[path.name] = synced.get((found.st_dev, found.st_ino), 0)
        assert at[path.name] >= found.st_mtime_ns, path
    assert at["memory"] < at["manifest.json"]
    saved_memory.clear(into)
    disk.unlink()


async def test_a_cancelled_capture_ends_with_its_thread(
    lab: Lab, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread has the file's descriptor: closed under it, it would write to whatever is opened next."""
    vm = await child(lab, saved, "one")
    for function, capture in (
        ("_seal_whole", lambda into: lab.driver.capture(vm.handle, into, into.with_suffix(".x"))),
        ("_write_delta", lambda into: lab.driver.hibernate(vm.handle, into)),
    ):
        real = getattr(captures, function)
        begun, go_on = threading.Event(), threading.Event()

        def slow(*args: object, real=real, begun=begun, go_on=go_on) -> object:  # type: ignore[no-untyped-def]
            begun.set()
            go_on.wait(30)
            return real(*args)

        into = lab.directory()
        with monkeypatch.context() as patch:
            patch.setattr(captures, function, slow)
            task = asyncio.create_task(capture(into))
            assert await asyncio.to_thread(begun.wait, 30)
            task.cancel()
            await asyncio.wait([task], timeout=0.5)
            assert not task.done()
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert list(into.iterdir()) == []
        assert not into.with_suffix(".x").exists()
        await vm.counts_on()


async def test_a_boot_that_cannot_be_is_told_with_what_the_console_said(lab: Lab) -> None:
    spec = await lab.spec("one")
    assert spec.root.image is not None
    spec.root.image.write_bytes(b"no file system" * 1000)
    with pytest.raises(MachineError) as caught:
        await lab.driver.start(spec)
    assert caught.value.code == "MACHINE_FAILED"
    assert "root disk" in caught.value.details["console"]
    assert await lab.driver.list_ids() == set()
    # One that is stuck, as far as anybody waits for it.
    lab.driver.settings = lab.driver.settings.model_copy(update={"operation_timeout_s": 0.6})
    with pytest.raises(MachineError, match=r"within 0\.3 s, in 2 tries"):
        await lab.driver.start(spec)
    assert await lab.driver.list_ids() == set()
