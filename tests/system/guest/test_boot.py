"""The guest boots any root image, serves the contract on its port, renews itself and ends clean."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from roost.agent.client import AgentClient
from roost.agent.v1 import agent_pb2 as pb
from roost.errors import RoostError
from roost.guest import FIRST_TOKEN, Guest, Guests
from roost.guest.package import digest
from tests.system.conftest import DATA_DIR
from tests.system.guest.conftest import Machine, quiet

pytestmark = pytest.mark.system

Make = Callable[[], Machine]


def clean(disk: Path) -> str:
    """What e2fsck says of a disk that needs nothing done; fails the test on one that does."""
    done = subprocess.run(["e2fsck", "-f", "-n", disk], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    header = subprocess.run(["dumpe2fs", "-h", disk], capture_output=True, text=True).stdout
    assert "needs_recovery" not in header
    return done.stdout


async def test_it_serves_the_contract_on_a_kernel_of_its_own(machines: Make, guest: Guest) -> None:
    machine = machines()
    await machine.start()
    hello = machine.client.hello
    assert hello is not None
    assert hello.pid1
    assert hello.kernel == guest.kernel_version

    assert await machine.ok("id -un; pwd") == "root\n/root"
    assert await machine.ok("sudo id -un", user="user") == "root"
    assert "10.0.2.15/24" in await machine.ok("ip -o -4 addr show eth0")
    assert "default via 10.0.2.2" in await machine.ok("ip route")
    assert "nameserver 10.0.2.3" in await machine.ok("cat /etc/resolv.conf")
    assert "LOOPBACK,UP" in await machine.ok("ip -o link show lo")
    await machine.ok("test -c /dev/ptmx && touch /dev/shm/x /run/x && test -e /dev/fd/0")
    assert int(await machine.ok("ulimit -n")) >= 65536

    async def data() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b"roost" * 50_000

    header = pb.WriteFileHeader(path=b"/workspace/big")
    info = await machine.client.write_file(header, data())
    assert info.size == 1_000_000
    assert await machine.ok("wc -c < /workspace/big") == "1000000"

    # It ends what takes all memory before nothing else gets anywhere.
    assert await machine.ok("cat /sys/kernel/mm/lru_gen/min_ttl_ms") == "1000"
    assert int(await machine.ok("cat /sys/kernel/mm/lru_gen/enabled"), 16) & 1

    # No word of the agent's that other users inside could read would open anything.
    assert "token" not in await machine.ok("cat /proc/cmdline", user="user")
    code, _ = await machine.run("cat /dev/vport*", user="user")
    assert code != 0


async def test_modules_load_and_containers_run_inside(machines: Make) -> None:
    machine = machines()
    await machine.start()
    await machine.ok("modprobe overlay && modprobe bridge && modprobe veth && modprobe fuse")
    loaded = (await machine.ok("cut -d' ' -f1 /proc/modules")).split()
    assert {"overlay", "bridge", "veth"} <= set(loaded)
    controllers = (await machine.ok("cat /sys/fs/cgroup/cgroup.subtree_control")).split()
    assert {"cpu", "memory", "io", "pids"} <= set(controllers)
    await machine.ok(
        "set -e; mkdir -p /tmp/o/l /tmp/o/u /tmp/o/w /tmp/o/m; echo lower >/tmp/o/l/f;"
        "mount -t overlay overlay -o lowerdir=/tmp/o/l,upperdir=/tmp/o/u,workdir=/tmp/o/w /tmp/o/m;"
        "echo upper >/tmp/o/m/f; grep -q lower /tmp/o/l/f; grep -q upper /tmp/o/u/f; umount /tmp/o/m"
    )
    # The root's programs, seen through an overlay, as a container of Debian's runc.
    said = await machine.ok(
        "set -e; mkdir -p /tmp/c/u /tmp/c/w /tmp/c/rootfs; cd /tmp/c;"
        "mount -t tmpfs tmpfs /tmp/c/u; mkdir u/u u/w;"
        "mount -t overlay overlay -o lowerdir=/,upperdir=u/u,workdir=u/w rootfs;"
        'runc spec; sed -i \'s/"terminal": true/"terminal": false/; s/"sh"/"\\/bin\\/hostname"/\' config.json;'
        'sed -i \'s/"hostname": "runc"/"hostname": "inner"/\' config.json;'
        "runc run box </dev/null"
    )
    assert said.splitlines()[-1] == "inner"


async def test_identity_entropy_and_clock_are_its_own(machines: Make) -> None:
    machine = machines()
    await machine.start()
    assert {"machine_id", "hostname", "token"} <= set(machine.renewed.renewed)
    assert await machine.ok("hostname") == "box"
    assert await machine.ok("sudo hostname", user="user") == "box"  # sudo looks its own name up
    assert len(await machine.ok("cat /etc/machine-id")) == 32
    asked = time.time()
    assert asked - 1 < float(await machine.ok("date +%s.%N")) < time.time() + 1

    random = "cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | od -An -tx1"
    before = await machine.ok(random)
    assert (await machine.client.reseed(secrets.token_bytes(64))).kernel_reseeded
    assert await machine.ok(random) != before

    ahead = time.time_ns() + 3600 * 10**9
    assert (await machine.client.set_clock(ahead)).changed
    assert abs(int(await machine.ok("date +%s")) - ahead // 10**9) < 10

    # Another dial, with the new token; the one that every guest begins with is worth nothing now.
    again = AgentClient(machine.dialler.target, machine.token)
    try:
        await again.wait_ready(10)
    finally:
        await again.close()
    machine.dialler.use_token(FIRST_TOKEN)
    late = AgentClient(machine.dialler.target, FIRST_TOKEN)
    try:
        with pytest.raises(RoostError):
            await late.wait_ready(3)
    finally:
        await late.close()


async def test_a_port_that_nobody_holds_costs_nothing_and_answers_at_once(machines: Make) -> None:
    machine = machines()
    await machine.start()
    took = []
    for _ in range(3):
        await machine.client.close()
        await asyncio.sleep(1)
        before = machine.cpu_s()
        await asyncio.sleep(5)
        assert machine.cpu_s() - before < 1  # a busy loop takes five
        begun = time.monotonic()
        machine.client = AgentClient(machine.dialler.target, machine.token)
        await machine.client.wait_ready(10)
        took.append(time.monotonic() - begun)
        assert await machine.ok("echo here") == "here"
    assert min(took) < 1.5  # without waiting for the doubtful look at the port


async def test_a_shutdown_leaves_a_clean_disk_that_boots_again(machines: Make) -> None:
    machine = machines()
    await machine.start()
    script = (
        "trap '' HUP; trap 'echo bye >/workspace/last; exit 0' TERM;"
        "echo >/run/armed; while :; do sleep 0.1; done"
    )
    request = pb.StartRequest(execution_id="lives", argv=["/bin/bash", "-c", script])
    await machine.client.start(request)
    await machine.ok("echo kept >/workspace/kept; until test -e /run/armed; do sleep 0.1; done")
    await machine.client.shutdown(5.0)
    assert await machine.gone() == 0
    assert "panic" not in machine.console
    clean(machine.disk)
    await machine.close()

    await machine.start()
    assert await machine.ok("cat /workspace/kept /workspace/last") == "kept\nbye"


async def test_a_reboot_from_inside_ends_the_monitor(machines: Make) -> None:
    machine = machines()
    await machine.start()
    with pytest.raises(RoostError):
        await machine.run("sync; echo b >/proc/sysrq-trigger; sleep 30")
    await machine.gone()


async def test_a_boot_without_a_root_disk_says_why_and_ends(machines: Make) -> None:
    machine = machines()
    machine.disk.write_bytes(b"\0" * (1 << 20))
    starting = asyncio.create_task(machine.start())
    while not hasattr(machine, "process"):
        await asyncio.sleep(0.01)
    await machine.gone(60)
    assert "roost-agent: the guest failed" in machine.console
    assert "root disk /dev/vda" in machine.console
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)


async def test_another_agent_is_another_guest_of_the_same_kernel(
    guest: Guest, tmp_path: Path
) -> None:
    (tmp_path / "guest").mkdir()
    shutil.copytree(DATA_DIR / "guest/package", tmp_path / "guest/package")
    agent = tmp_path / "agent"
    agent.write_bytes(b"\x7fELF other")
    guests = Guests(tmp_path, agent)
    assert guests.kept() is None
    other = await guests.ensure(quiet)
    assert guests.kept() == other
    assert other.digest != guest.digest
    assert other.kernel_version == guest.kernel_version
    assert await Guests(tmp_path, agent).ensure(quiet) == other
    # The same inputs made the same bytes, in a shared page cache as on the disk.
    assert digest(other.kernel) == digest(guest.kernel)
    assert digest(other.initrd) != digest(guest.initrd)
    guests.sweep(set())
    assert guests.get(other.digest) is None
    assert not list((tmp_path / "guest").glob("[0-9a-f]*"))
