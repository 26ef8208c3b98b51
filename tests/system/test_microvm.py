"""Machines with a kernel of their own, through the daemon: where they differ from containers, and what ends them.

One machine is made and put to work; most tests fork it, which takes a second where a boot takes many.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from roost import Machine, NotFoundError, RoostError, Snapshot
from roost.agent.client import AgentClient
from roost.drivers.qemu.qmp import Qmp
from roost.guest import FIRST_TOKEN, Guests
from roost.host.cgroups import Cgroups, Limits
from roost.network.addresses import instance_tag
from tests.attack.record import case
from tests.system.internet import INTERNET, RESOLVER, Internet

from . import clocks
from .conftest import Daemon
from .test_instant import pool_with

pytestmark = pytest.mark.system
PATIENCE_S = 60.0
# 64 MiB that nothing can guess and a process that counts, both in memory alone.
WORK = """
head -c 64M /dev/urandom > /dev/shm/random
(i=0; while :; do i=$((i+1)); echo $i >/dev/shm/.new; mv /dev/shm/.new /dev/shm/count; sleep 0.05; done) \
  >/dev/null 2>&1 </dev/null &
until test -e /dev/shm/count; do sleep 0.1; done
echo kept > /root/note
sync
md5sum < /dev/shm/random
"""
# Takes memory piece by piece once its input ends.
GROWS = "import sys, time; sys.stdin.read(); kept = [bytearray(b'x' * 2**20) for _ in range(64)]; time.sleep(60)"
IDENTITY = "cat /etc/machine-id /etc/hostname; hostname; cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | od -An -tx1"


def create(**options: Any) -> Machine:
    return Machine.create(**{"driver": "qemu", "memory_mib": 256, **options})


def fork(m: Machine) -> Machine:
    child = m.fork()
    assert isinstance(child, Machine)
    return child


def run(m: Machine, command: str) -> str:
    done = m.exec(command, timeout=PATIENCE_S)
    assert done.ok, (command, done)
    return done.stdout.strip()


def count(m: Machine) -> int:
    return int(run(m, "cat /dev/shm/count"))


def until(what: Callable[[], bool], within_s: float = PATIENCE_S) -> float:
    """How long it took, in seconds."""
    begun = time.monotonic()
    while not what():
        assert time.monotonic() - begun < within_s, "it does not come"
        time.sleep(0.05)
    return time.monotonic() - begun


def counts_on(m: Machine, at: int) -> None:
    until(lambda: count(m) > at)


def anonymous(pid: int) -> int:
    """Bytes of a process that come from no file: what its group can give back only by ending it."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def boots(m: Machine) -> str:
    return run(m, "cat /proc/sys/kernel/random/boot_id")


def said(m: Machine, event: str) -> list[str]:
    return [str(each["message"]) for each in m.logs() if each["event"] == event]


def reason(m: Machine) -> str:
    return str(m.to_json()["status"]["reason"])


def row(daemon: Daemon, machine_id: str) -> dict[str, Any]:
    with sqlite3.connect(daemon.data_dir / "roost.db") as db:
        db.row_factory = sqlite3.Row
        return dict(db.execute("select * from machines where id = ?", (machine_id,)).fetchone())


def vmm(daemon: Daemon, m: Machine) -> int:
    return int(json.loads(row(daemon, m.id)["handle"])["pid"])


async def status(daemon: Daemon, m: Machine) -> str:
    """What its VMM says."""
    qmp = await Qmp.connect(daemon.run_dir / "machines/qemu" / m.id / "qmp", 10)
    try:
        return str((await qmp.execute("query-status"))["status"])
    finally:
        await qmp.close()


def break_it(m: Machine, key: str) -> None:
    """By the kernel's own lever; the call that pulls it gets no answer."""
    with contextlib.suppress(RoostError):
        m.exec(f"sync; echo 1 >/proc/sys/kernel/sysrq; echo {key} >/proc/sysrq-trigger", timeout=20)


@pytest.fixture(scope="module")
def machine(daemon: Daemon, guests: Guests) -> Iterator[Machine]:
    with create() as m:
        yield m


@pytest.fixture(scope="module")
def checksum(machine: Machine) -> str:
    return run(machine, WORK)


def test_it_is_what_it_says(machine: Machine) -> None:
    assert run(machine, "echo hello; id -un").split() == ["hello", "root"]
    isolation = machine.isolation
    assert (isolation["level"], isolation["driver"]) == (3, "qemu")
    assert run(machine, "uname -r") != platform.release()
    assert "cloud-amd64" in run(machine, "cat /proc/version")
    assert machine.memory_mib == 256
    assert 200 << 10 < int(run(machine, "awk '/MemTotal/{print $2}' /proc/meminfo")) < 256 << 10
    assert run(machine, "nproc") == "1"
    run(machine, "modprobe overlay && grep -qw overlay /proc/filesystems")
    usage = machine.usage()
    assert usage["memory_bytes"] > 16 << 20 and usage["disk_total_bytes"] > 1 << 30


# A container of Debian's runc, as a container engine makes one: on an overlay of this machine's own files, with a
# network of its own that reaches the machine over a bridge.
CONTAINER = {
    "ociVersion": "1.0.2",
    "root": {"path": "root"},
    "hostname": "inner",
    "process": {
        "cwd": "/",
        "args": ["/bin/sh", "-c", "hostname; echo $$; cat /note /proc/1/comm; python3 /ask.py"],
        "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        "user": {"uid": 0, "gid": 0},
        "noNewPrivileges": True,
    },
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
    "linux": {
        "namespaces": [
            *({"type": kind} for kind in ("pid", "mount", "uts", "ipc", "cgroup")),
            {"type": "network", "path": "/run/netns/inner"},
        ],
        "resources": {"memory": {"limit": 64 << 20}, "pids": {"limit": 32}},
    },
}
BRIDGE = """
set -e
modprobe -a overlay bridge veth
ip netns add inner
ip link add br0 type bridge; ip addr add 10.9.0.1/24 dev br0; ip link set br0 up
ip link add outer type veth peer name eth0 netns inner; ip link set outer master br0 up
ip -n inner addr add 10.9.0.2/24 dev eth0; ip -n inner link set eth0 up
mkdir -p /run/c/root /run/c/data; mount -t tmpfs tmpfs /run/c/data; cd /run/c; mkdir data/upper data/work
mount -t overlay overlay -o lowerdir=/,upperdir=data/upper,workdir=data/work root
echo above > root/note; rm root/etc/hostname
cp ask.py root/ask.py
ip link set outer up
python3 serve.py >/dev/null 2>&1 </dev/null &
until test -e serves; do sleep 0.1; done
"""
ASK = """
import socket
print(socket.create_connection(("10.9.0.1", 8000), 20).makefile().read().strip())
"""
SERVE = """
import socket
server = socket.create_server(("10.9.0.1", 8000))
open("/run/c/serves", "w").close()
peer, address = server.accept()
peer.sendall(f"hello {address[0]}".encode())
"""


def test_containers_run_inside(machine: Machine) -> None:
    runc = shutil.which("runc")
    if runc is None:
        pytest.skip("needs runc (scripts/up installs it)")
    with fork(machine) as m:
        listed = subprocess.run(["ldd", runc], capture_output=True, text=True, check=True).stdout
        for path in {runc, *(word for word in listed.split() if word.startswith("/"))}:
            if path == runc or not m.exec(["test", "-e", path]).ok:
                m.files.write(path, Path(path).read_bytes(), mode=0o755)
        m.files.write("/run/c/ask.py", ASK)
        m.files.write("/run/c/serve.py", SERVE)
        m.files.write("/run/c/config.json", json.dumps(CONTAINER))
        run(m, BRIDGE)
        said = run(m, "cd /run/c && runc run inner").splitlines()
        assert said == ["inner", "1", "above", "sh", "hello 10.9.0.2"]
        assert run(m, "cat /etc/hostname; ls /note 2>/dev/null || true") == m.id


def test_an_emulated_cpu_is_not_taken_unasked(machine: Machine) -> None:
    if machine.isolation["accelerated"]:
        pytest.skip("KVM works here")
    with Machine.create(memory_mib=256) as other:
        assert other.isolation["driver"] != "qemu"


@case(51, rung="qemu")
def test_siblings_are_strangers(daemon: Daemon, machine: Machine) -> None:
    with create() as one, create() as other:
        own = [run(m, IDENTITY).split() for m in (machine, one, other)]
        # machine-id, /etc/hostname, hostname, a UUID of the kernel's, bytes of /dev/urandom
        assert all(name == file for _, file, name, *_ in own), own
        for what in (slice(0, 1), slice(1, 2), slice(3, 4), slice(4, None)):
            assert len({tuple(fields[what]) for fields in own}) == 3, own
        # The agent that was captured knew a token that everybody knows: not any more.
        target = json.loads(row(daemon, one.id)["handle"])["agent_target"]

        async def dial() -> None:
            client = AgentClient(target, FIRST_TOKEN)
            try:
                with pytest.raises(RoostError):
                    await client.wait_ready(3)
            finally:
                await client.close()

        asyncio.run(dial())
        assert run(one, "echo here") == "here"


def test_the_network_is_the_slots(
    daemon: Daemon,
    machine: Machine,
    internet: Internet,
) -> None:
    machine.files.write(
        "/root/ask.py",
        "import socket\n"
        f"tcp = socket.create_connection(('{INTERNET}', 80), 20)\n"
        "print(tcp.makefile().read().strip())\n"
        "udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "udp.settimeout(20)\n"
        f"udp.sendto(b'q', ('{RESOLVER}', 53))\n"
        "print(udp.recv(512).decode())\n",
    )
    said = run(machine, "python3 /root/ask.py").splitlines()
    assert said == ["greeting to 172.30.255.1", "answer to 172.30.255.1"]
    listed = subprocess.run(
        ["nsenter", f"--net=/proc/{vmm(daemon, machine)}/ns/net", "ip", "-j", "link"],
        capture_output=True,
        check=True,
    ).stdout
    links = {link["ifname"]: link["mtu"] for link in json.loads(listed)}
    assert int(run(machine, "cat /sys/class/net/eth0/mtu")) == links["eth0"]


def test_a_fork_goes_on_in_both(machine: Machine, checksum: str) -> None:
    at = count(machine)
    with fork(machine) as child:
        assert count(child) >= at
        assert run(child, "md5sum < /dev/shm/random") == checksum
        assert run(child, "hostname") != run(machine, "hostname")
        run(child, "echo child > /dev/shm/mark; echo child > /root/note; echo 0 > /dev/shm/random")
        assert run(machine, "cat /dev/shm/mark 2>/dev/null || cat /root/note") == "kept"
        counts_on(child, count(child))
        counts_on(machine, count(machine))
        with fork(child) as grandchild:
            child.destroy()
            assert run(grandchild, "cat /dev/shm/mark /root/note").split() == ["child", "child"]
            counts_on(grandchild, count(grandchild))
    assert run(machine, "md5sum < /dev/shm/random") == checksum


@case(52, rung="qemu")
def test_sleep_keeps_memory_and_the_clock_is_right_afterwards(
    machine: Machine, checksum: str
) -> None:
    boot = boots(machine)
    for tier in ("hibernated", None):
        at = count(machine)
        machine.sleep(tier=tier)
        assert machine.refresh().phase == "sleeping"
        time.sleep(2)  # that its own clock has not seen
        assert clocks.is_right(machine)
        assert at <= count(machine)
        counts_on(machine, count(machine))
    assert boots(machine) == boot
    assert run(machine, "md5sum < /dev/shm/random") == checksum
    assert not said(machine, "memory_lost")


def test_a_later_daemon_adopts_it(daemon: Daemon, machine: Machine, checksum: str) -> None:
    boot, pid, at = boots(machine), vmm(daemon, machine), count(machine)
    daemon.restart(signal.SIGKILL)
    assert machine.refresh().phase == "running"
    counts_on(machine, at)
    assert (boots(machine), vmm(daemon, machine)) == (boot, pid)
    with fork(machine) as child:
        assert run(child, "md5sum < /dev/shm/random") == checksum


def test_a_later_daemon_learns_how_one_ended_meanwhile(daemon: Daemon, machine: Machine) -> None:
    with fork(machine) as down, fork(machine) as again:
        boot = boots(again)
        for m, key in ((down, "o"), (again, "b")):
            m.start(f"echo 1 >/proc/sys/kernel/sysrq; sleep 15; echo {key} >/proc/sysrq-trigger")
        daemon.stop(signal.SIGKILL)
        for m in (down, again):
            until(lambda m=m: asyncio.run(status(daemon, m)) == "shutdown")
        daemon.start()
        until(lambda: down.refresh().phase == "sleeping")
        assert reason(down) == "shut down"
        until(lambda: "it rebooted itself" in said(again, "sleeping"))
        until(lambda: again.refresh().phase == "running")
        assert boots(again) != boot


def test_snapshots_keep_memory_of_machines_awake_and_asleep(
    machine: Machine, checksum: str
) -> None:
    with contextlib.suppress(NotFoundError):
        Snapshot.get("instant").delete()
    with fork(machine) as m:
        at, boot = count(m), boots(m)
        made = [m.snapshot("instant")]
        assert made[0].memory
        run(m, "echo later > /dev/shm/mark; echo later > /root/note")
        m.rollback("instant")
        assert run(m, "cat /dev/shm/mark 2>/dev/null; cat /root/note") == "kept"
        assert boots(m) == boot and count(m) >= at
        counts_on(m, count(m))
        m.sleep()
        made.append(m.snapshot())
        assert made[1].memory
        try:
            for snapshot in made:
                with Machine.create(snapshot=snapshot) as other:
                    assert not said(other, "memory_lost")
                    assert run(other, "cat /dev/shm/mark 2>/dev/null; cat /root/note") == "kept"
                    assert run(other, "md5sum < /dev/shm/random") == checksum
                    assert boots(other) == boot and other.id != m.id
                    counts_on(other, count(other))
        finally:
            for snapshot in made:
                snapshot.delete()


@case("F5", rung="qemu")
def test_memory_that_was_damaged_is_not_gone_on_from(daemon: Daemon, machine: Machine) -> None:
    with fork(machine) as m:
        boot = boots(m)
        snapshot = m.snapshot()
        try:
            kept = daemon.data_dir / "pool/snapshots" / snapshot.id / "memory/memory"
            os.truncate(kept, kept.stat().st_size - 4096)
            with Machine.create(snapshot=snapshot) as other:
                (why,) = said(other, "memory_lost")
                assert "SNAPSHOT_INVALID" in why and "was cut" in why
                assert run(other, "cat /root/note; ls /dev/shm") == "kept"
                assert boots(other) != boot
        finally:
            snapshot.delete()
        m.sleep()
        _flip(daemon.data_dir / "pool/memory" / m.id / "memory")
        m.wake()
        (why,) = said(m, "memory_lost")
        assert "SNAPSHOT_INVALID" in why and "altered" in why
        assert run(m, "cat /root/note; ls /dev/shm") == "kept"
        assert run(m, "hostname") == run(m, "cat /etc/hostname")


def _flip(path: Path) -> None:
    """A byte of the devices' state, at the end."""
    with path.open("r+b") as file:
        file.seek(-40, os.SEEK_END)
        byte = file.read(1)
        file.seek(-40, os.SEEK_END)
        file.write(bytes([byte[0] ^ 0xFF]))


@case("F2", rung="qemu")
def test_a_killed_vmm_is_a_failure_and_the_disk_is_good(daemon: Daemon, machine: Machine) -> None:
    with fork(machine) as m:
        m.files.write("/root/written", "on disk", sync=True)
        os.kill(vmm(daemon, m), signal.SIGKILL)
        until(lambda: m.refresh().phase == "failed")
        assert reason(m) == "crashed"
        assert "(killed)" in said(m, "failed")[0]
        with pytest.raises(RoostError) as caught:
            m.exec("true")
        assert caught.value.code == "MACHINE_FAILED"
        m.wake()
        assert m.files.read("/root/written") == b"on disk"
        assert run(m, "cat /root/note; ls /dev/shm") == "kept"


def test_a_vmm_out_of_memory_is_a_failure_and_the_disk_is_good(
    daemon: Daemon, machine: Machine, checksum: str
) -> None:
    with fork(machine) as m:
        m.files.write("/root/written", "on disk", sync=True)
        groups = Cgroups(f"roost-{instance_tag(daemon.run_dir)}")
        group, pid, at = f"qemu-{m.id}", vmm(daemon, m), count(machine)
        # A guest has less memory than its VMM may use. As if that had grown by itself: something small in its
        # group takes what is left. The guest would not do: short of memory it reads its own pages from the file
        # they came from again and again, and hardly comes to touch others.
        groups.set_limits(group, Limits(1, anonymous(pid) + (24 << 20), 200))
        with subprocess.Popen([sys.executable, "-c", GROWS], stdin=subprocess.PIPE) as other:
            try:
                groups.add(group, other.pid)
                assert other.stdin is not None
                other.stdin.close()
                until(lambda: not Path(f"/proc/{pid}/exe").exists())
            finally:
                other.kill()
        until(lambda: m.refresh().phase == "failed")
        assert reason(m) == "oom"
        assert "out of memory" in said(m, "failed")[0]
        assert m.to_json()["status"]["retryable"]
        counts_on(machine, at)  # no neighbour has to do with it
        m.wake()
        assert m.files.read("/root/written") == b"on disk"
        assert run(m, "cat /root/note; ls /dev/shm") == "kept"
    assert run(machine, "md5sum < /dev/shm/random") == checksum


def test_one_whose_disk_finds_no_space_waits_and_goes_on(daemon: Daemon, machine: Machine) -> None:
    with fork(machine) as m:
        boot = boots(m)
        with pool_with(daemon, free=4 << 20):
            written = m.start("head -c 24M /dev/urandom | tee /root/more | md5sum; sync")
            until(lambda: f"{m.id} waits: no space" in daemon.tail())
        assert written.wait(timeout=PATIENCE_S).exit_code == 0
        run(m, "echo 3 > /proc/sys/vm/drop_caches")
        assert run(m, "md5sum < /root/more") == written.output().stdout.strip()
        assert boots(m) == boot


def test_one_that_reboots_comes_back_by_itself(machine: Machine) -> None:
    with fork(machine) as m:
        name, boot = run(m, "hostname; cat /etc/machine-id"), boots(m)
        break_it(m, "b")
        until(lambda: "it rebooted itself" in said(m, "sleeping"))
        until(lambda: m.refresh().phase == "running")
        assert boots(m) != boot
        assert run(m, "hostname; cat /etc/machine-id") == name
        assert run(m, "cat /root/note; ls /dev/shm") == "kept"
        assert clocks.is_right(m)


def test_one_that_shuts_down_sleeps_until_it_is_called(machine: Machine) -> None:
    with fork(machine) as m:
        break_it(m, "o")
        until(lambda: m.refresh().phase == "sleeping")
        assert reason(m) == "shut down"


def test_one_whose_kernel_panics_fails_with_its_last_words(machine: Machine) -> None:
    with fork(machine) as m:
        break_it(m, "c")
        until(lambda: m.refresh().phase == "failed")
        assert reason(m) == "panicked"
        (words,) = said(m, "failed")
        assert words.startswith("its kernel panicked; its console said last: ")
