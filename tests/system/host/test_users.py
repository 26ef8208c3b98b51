"""Whose processes and files a machine's are on the host: those of a block of numbers that is nobody else's."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from roost.drivers.container import ContainerDriver
from roost.egress.policy import Policy
from roost.host import apart, idmaps, netns, processes
from roost.network import plumbing
from roost.network.addresses import Plan
from roost.storage import mounting

from .conftest import Machine, World

pytestmark = pytest.mark.system

_USERS = 65536
# As many inotify instances as it gets: told, and held.
_ALL = "$n = 0; $n++ while syscall(294, 0) >= 0 && $n < 5000;"
_COUNT = f"LC_ALL=C perl -e '{_ALL} print $n'"
_HOLD = (
    f"LC_ALL=C perl -e '{_ALL} open F, q(>/root/n); print F $n; close F; sleep 60' >/dev/null 2>&1 & "
    "until test -s /root/n; do sleep 0.1; done; cat /root/n"
)
_SETCAP = (
    'LC_ALL=C perl -e \'$p="/root/ping"; $n="security.capability"; $v=pack("V5", 0x02000001, 0x2000, 0, 0, 0); '
    "exit(syscall(188, $p, $n, $v, 20, 0) < 0)'"
)


@pytest.fixture
async def runc(world: World) -> ContainerDriver:
    driver = world.driver("runc")
    probe = await driver.probe()
    if not probe.available:
        pytest.skip(probe.reason or "not available")
    return driver


def _members(machine: Machine) -> list[int]:
    groups = machine.driver.cgroups
    return sorted(groups.procs(f"{machine.driver.name}-{machine.id}"))


def _status(pid: int, name: str) -> list[str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1:] for line in lines if line.startswith(f"{name}:"))


def _on_disk(disk: Path, look: Callable[[Path], None]) -> None:
    """With the numbers that lie there, when nobody has it."""
    target = disk.parent
    with mounting.attached(disk) as attached:

        def mounted() -> None:
            mounting.mount(attached, target)
            look(target)

        apart.run(mounted)
    mounting.wait_free(disk)


async def test_its_users_are_nobody_on_the_host(world: World, runc: ContainerDriver) -> None:
    one, other = await world.start(runc), await world.start(runc)
    blocks = []
    for machine in (one, other):
        assert machine.slot.users is not None
        first = machine.slot.users.first
        members = _members(machine)
        assert machine.handle.pid in members
        for pid in members:
            numbers = {int(n) for name in ("Uid", "Gid") for n in _status(pid, name)}
            assert all(first <= n < first + _USERS for n in numbers), (pid, numbers)
            assert Path(f"/proc/{pid}/uid_map").read_text().split() == [
                "0",
                str(first),
                str(_USERS),
            ]
        blocks.append(range(first, first + _USERS))
        assert await machine.run("id -u; id -g; cat /proc/self/uid_map") == (
            0,
            f"0\n0\n         0 {first:>10} {_USERS:>10}\n",
        )
    assert not set(blocks[0]) & set(blocks[1])
    with open(one.slot.netns) as network:
        users = idmaps.owner_of(network.fileno())
    assert users is not None
    try:
        assert idmaps.maker_of(users) == blocks[0].start
        inside = os.stat(f"/proc/{one.handle.pid}/ns/user").st_ino
        assert os.fstat(users).st_ino == inside
    finally:
        os.close(users)


@pytest.mark.parametrize("name", ["user", "runc"])
async def test_nothing_runs_under_its_numbers_when_they_are_free_again(
    world: World, name: str
) -> None:
    """Not even what left the machine's group, as nothing in it can. Who only has one of its numbers is left alone, and
    keeps the block from being given out."""
    driver = world.driver(name)
    if not (await driver.probe()).available:
        pytest.skip("not available")
    machine = await world.start(driver)
    assert machine.slot.users is not None
    number = str(machine.slot.users.first + 1000)
    users = f"--user=/proc/{machine.handle.pid}/ns/user"
    left = subprocess.Popen(["nsenter", users, "-S", "1000", "-G", "1000", "sleep", "600"])
    other = subprocess.Popen(
        ["setpriv", "--reuid", number, "--regid", number, "--clear-groups", "sleep", "600"]
    )
    try:
        for each in (left, other):
            while _status(each.pid, "Uid")[0] != number:
                await asyncio.sleep(0.01)
            assert each.pid not in _members(machine)
        await machine.client.close()
        await driver.remove(machine.id)
        assert left.pid not in processes.everyone()
        assert other.poll() is None
        assert machine.slot.index in idmaps.others(world.settings.uid_base)
    finally:
        for each in (left, other):
            each.kill()
            each.wait()
    assert machine.slot.index not in idmaps.others(world.settings.uid_base)


async def test_no_slot_is_made_of_numbers_that_another_daemon_gave_out(world: World) -> None:
    ours = world.network.plan.slot(1000)
    theirs = Plan("10.230.0.0/20", world.settings.run_dir / "other").slot(1000)
    os.close(netns.create(theirs.machine_netns, theirs.users))
    try:
        with pytest.raises(plumbing.TakenError, match=theirs.machine_netns):
            await asyncio.to_thread(plumbing.build, ours, world.network._tables, 1500)
        assert not netns.names(ours.machine_netns)
    finally:
        netns.delete(theirs.machine_netns)
    await asyncio.to_thread(plumbing.build, ours, world.network._tables, 1500)
    try:
        assert netns.made_by(ours.machine_netns) == ours.users.first
    finally:
        await asyncio.to_thread(plumbing.demolish, ours, world.network._tables)


async def test_only_its_own_numbers_lie_on_its_disk(world: World, runc: ContainerDriver) -> None:
    machine = await world.start(runc)
    code, text = await machine.run(
        "cd /root && echo x >mine && cp /bin/true ping && touch theirs far && "
        "LC_ALL=C perl -e 'chown 1000, 1000, q(theirs) or die; chown 65534, 65535, q(far) or die' && "
        f"{_SETCAP} && LC_ALL=C perl -e 'exit(chown(70000, 0, q(mine)) != 0)' && sync"
    )
    assert code == 0, text
    await world.machines[machine.id].client.close()
    await runc.remove(machine.id)
    found: dict[str, tuple[int, int]] = {}
    capability = b""

    def look(root: Path) -> None:
        nonlocal capability
        for above, names, files in os.walk(root):
            for name in (*names, *files):
                info = os.lstat(os.path.join(above, name))
                assert max(info.st_uid, info.st_gid) < _USERS, os.path.join(above, name)
        for name in ("mine", "theirs", "far"):
            info = os.stat(root / "root" / name)
            found[name] = (info.st_uid, info.st_gid)
        capability = os.getxattr(root / "root/ping", "security.capability")

    _on_disk(machine.disk, look)
    assert found == {"mine": (0, 0), "theirs": (1000, 1000), "far": (65534, 65535)}
    assert int.from_bytes(capability[20:24], "little") == 0  # whose root: that of any machine


async def test_a_disk_goes_from_numbers_to_numbers(world: World, runc: ContainerDriver) -> None:
    machine = await world.start(runc)
    code, text = await machine.run(
        "echo kept >/root/f; touch /root/g; LC_ALL=C perl -e 'chown 1000, 1000, q(/root/g)'; sync"
    )
    assert code == 0, text
    child = await world.child(await world.capture(machine), machine)
    assert child.slot.users != machine.slot.users
    assert await child.run("cat /root/f; stat -c %u:%g /root/f /root/g; echo more >>/root/f") == (
        0,
        "kept\n0:0\n1000:1000\n",
    )
    await child.client.close()
    await child.driver.remove(child.id)
    elsewhere = world.driver("gvisor")
    if not (await elsewhere.probe()).available:
        return
    slot = await world.network.reattach(child.id, child.slot.index, Policy())
    moved = replace(child.spec, slot=slot)
    child.driver = elsewhere
    again = await world.boot(elsewhere, moved)
    assert await again.run("cat /root/f; stat -c %u:%g /root/g") == (0, "kept\nmore\n1000:1000\n")


async def test_its_network_and_its_devices_tree_are_its_own(
    world: World, runc: ContainerDriver
) -> None:
    machine = await world.start(runc)
    code, text = await machine.run(
        "LC_ALL=C perl -MSocket -e '"
        "socket($low, PF_INET, SOCK_STREAM, 6) && bind($low, sockaddr_in(80, INADDR_ANY)) or die qq(80: $!); "
        "socket($raw, PF_INET, SOCK_RAW, 1) or die qq(raw: $!); "
        "socket($ping, PF_INET, SOCK_DGRAM, 1) or die qq(ping: $!);'; ls /sys/class/net; touch /sys/x"
    )
    assert "Permission denied" in text or "Read-only" in text
    assert text.splitlines()[:2] == ["eth0", "lo"], text
    assert code != 0


async def test_limits_of_a_user_are_the_machines_own(world: World, runc: ContainerDriver) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())
    one, other = await world.start(runc), await world.start(runc)
    code, text = await one.run(_HOLD)
    assert (code, int(text) > 0.9 * limit) == (0, True), text
    assert await one.run(_COUNT) == (0, "0")
    code, text = await other.run(_COUNT)
    assert (code, int(text) > 0.9 * limit) == (0, True), text


async def test_no_node_on_its_disk_is_a_device_of_the_hosts(
    world: World, driver: ContainerDriver
) -> None:
    """gVisor opens nodes of its disk on the host (CVE-2026-96812) where that lets it."""
    machine = await world.start(driver)
    made, _ = await machine.run(
        "LC_ALL=C perl -e '$p = q(/root/full); exit(syscall(133, $p, 0020666, (1 << 8) | 7) < 0)'"
    )
    code, text = await machine.run("echo x >/root/full")
    if made != 0:  # not even made
        assert not await _exists(machine, "/root/full") or code == 0
        return
    assert code != 0
    assert "No space" not in text, "it is the host's /dev/full"


async def _exists(machine: Machine, path: str) -> bool:
    return (await machine.run(f"test -c {path}"))[0] == 0


async def test_a_disk_whose_mount_points_are_links_leads_nowhere(
    world: World, driver: ContainerDriver
) -> None:
    """What an image from elsewhere can bring (CVE-2026-41579)."""
    canary = world.settings.data_dir.parent / "canary-dev"
    canary.mkdir(exist_ok=True)
    canary.chmod(0o777)
    machine = await world.start(driver)
    await machine.client.close()
    await driver.remove(machine.id)

    def plant(root: Path) -> None:
        for name in ("dev", "proc", "sys", "run"):
            (root / name).rename(root / f"{name}.was")
            (root / name).symlink_to(canary)

    _on_disk(machine.disk, plant)
    slot = await world.network.reattach(machine.id, machine.slot.index, Policy())
    again = await world.boot(driver, replace(machine.spec, slot=slot))
    assert await again.run("test -c /dev/null -a ! -L /dev -a -d /proc/self; echo $?") == (0, "0\n")
    assert not list(canary.iterdir())


async def test_nothing_of_a_block_runs_on(world: World, runc: ContainerDriver) -> None:
    machine = await world.start(runc)
    assert machine.slot.users is not None
    block = range(machine.slot.users.first, machine.slot.users.first + _USERS)
    await machine.run("setsid sleep 300 & disown; exit 0")
    await world.destroy(machine)
    for path in Path("/proc").glob("[0-9]*"):
        try:
            owner = path.stat().st_uid
        except OSError:
            continue
        if owner in block:
            assert processes.start_ticks(int(path.name)) is None, path
