"""Machines of one user, driver alone: what they may, what they may not, and what is left of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from roost.agent.v1 import agent_pb2 as pb
from roost.drivers.container import ContainerDriver
from roost.egress.policy import Policy
from roost.errors import RoostError
from roost.host import apart, processes, syscalls
from roost.storage import mounting

from .conftest import Machine, World

pytestmark = pytest.mark.system

_EPERM = 1


@pytest.fixture
def runtime() -> str:
    return "user"


async def _call(machine: Machine, number: int, *args: str) -> int:
    """errno of a system call, 0 where it did something."""
    given = (f"my $v{at} = {arg}" if arg[0] == '"' else arg for at, arg in enumerate(args))
    call = ", ".join((str(number), *given))
    code, text = await machine.run(f"LC_ALL=C perl -e 'print syscall({call}) < 0 ? $!+0 : 0'")
    assert code == 0, text
    return int(text)


async def test_everything_in_it_is_one_user_without_any_privilege(
    world: World, driver: ContainerDriver
) -> None:
    machine = await world.start(driver)
    code, text = await machine.run("id; echo $HOME $USER; pwd")
    assert code == 0, text
    assert text.splitlines() == [
        "uid=1000(user) gid=1000(user) groups=1000(user)",
        "/home/user user",
        "/home/user",
    ]
    _, text = await machine.run(
        "for p in 1 self; do cat /proc/$p/status; done; cat /proc/self/uid_map"
    )
    said = [line.split() for line in text.splitlines()]
    for name, wanted in (
        ("CapEff:", {"0" * 16}),
        ("CapPrm:", {"0" * 16}),
        ("CapBnd:", {"0" * 16}),
        ("CapAmb:", {"0" * 16}),
        ("NoNewPrivs:", {"1"}),
        ("Seccomp:", {"2"}),
    ):
        assert {words[1] for words in said if words and words[0] == name} == wanted, name
    users = machine.slot.users
    assert users is not None
    assert said[-1] == ["0", str(users.first), str(users.count)]
    # As the host sees them: of the block, every one.
    members = driver.cgroups.procs(driver._group(machine.id))
    assert members
    for pid in members:
        status = Path(f"/proc/{pid}/status").read_text()
        assert f"\nUid:\t{users.first + 1000}\t" in status


async def test_its_agent_keeps_it_from_writing_elsewhere_too(
    world: World, driver: ContainerDriver
) -> None:
    machine = await world.start(driver)
    hello = machine.client.hello
    assert hello is not None
    assert hello.uid == 1000
    if Path("/sys/kernel/security/lsm").exists():
        has = "landlock" in Path("/sys/kernel/security/lsm").read_text()
        assert (hello.landlock > 0) == has
    for place in ("/", "/etc", "/usr", "/root", "/.roost", "/home", "/var", "/sys", "/proc/sys"):
        code, _ = await machine.run(f"echo x >{place}/x")
        assert code != 0, place
    for place in ("/home/user", "/tmp", "/dev/shm", "/run", "/run/roost"):
        code, text = await machine.run(f"echo x >{place}/x && cat {place}/x")
        assert (code, text) == (0, "x\n"), place
    code, text = await machine.run(
        "mkdir -p a b && echo 1 >a/f && mv a/f b/f && cat b/f; : >/dev/null"
    )
    assert (code, text) == (0, "1\n")


async def test_it_becomes_nobody_else_and_nothing_of_the_kernel_opens(
    world: World, driver: ContainerDriver
) -> None:
    machine = await world.start(driver)
    for number, args in {
        272: ["0x10000000"],  # unshare: a user namespace
        56: ["0x10000011", "0", "0", "0", "0"],  # clone: the same
        165: ['"none"', '"/tmp"', '"tmpfs"', "0", "0"],  # mount
        101: ["0", "0", "0", "0"],  # ptrace: TRACEME
        310: ["1", "0", "0", "0", "0", "0"],  # process_vm_readv
        250: ["0", "0"],  # keyctl
        321: ["0", "0", "0"],  # bpf
        298: ["0", "0", "0", "0", "0"],  # perf_event_open
        425: ["1", "0"],  # io_uring_setup
        323: ["0"],  # userfaultfd
        304: ["0", "0", "0"],  # open_by_handle_at
        105: ["0"],  # setuid
        170: ['"evil"', "4"],  # sethostname
        41: ["17", "3", "0"],  # socket: AF_PACKET
        53: ["30", "5", "0", "0"],  # socketpair: AF_TIPC, which has pairs
        161: ['"/tmp"'],  # chroot
    }.items():
        assert await _call(machine, number, *args) == _EPERM, number
    code, text = await machine.run("cp /usr/bin/id ~/id && chmod 4755 ~/id && ~/id -u")
    assert (code, text) == (0, "1000\n")
    # A port that elsewhere is root's.
    bind = "socket(my $s, 2, 1, 0); print bind($s, pack(q(S n a4 x8), 2, 80, qq(\\0\\0\\0\\0))) ? 1 : 0"
    assert await machine.run(f"LC_ALL=C perl -e '{bind}'") == (0, "1")


async def test_who_asks_for_somebody_else_is_told_so(world: World, driver: ContainerDriver) -> None:
    machine = await world.start(driver)
    for user in ("root", "0", "user:root", "12345"):
        request = pb.StartRequest(execution_id=uuid.uuid4().hex, argv=["id"], user=user)
        with pytest.raises(RoostError) as caught:
            await machine.client.run(request)
        assert caught.value.code in ("PERMISSION_DENIED", "FORBIDDEN"), caught.value.code
    for user in ("user", "1000", "user:user"):
        request = pb.StartRequest(execution_id=uuid.uuid4().hex, argv=["id", "-u"], user=user)
        assert (await machine.client.run(request)).stdout == b"1000\n"


async def test_identity_is_its_own_before_it_starts(world: World, driver: ContainerDriver) -> None:
    machine = await world.start(driver)
    assert machine.handle.identity_on_disk
    _, text = await machine.run("cat /etc/machine-id /proc/sys/kernel/hostname")
    assert text.splitlines() == [machine.spec.linux_id, machine.spec.hostname]
    reply = await machine.client.renew_identity(
        pb.RenewIdentityRequest(
            hostname="other", machine_id="f" * 32, renew_ssh_host_keys=True, new_token="n" * 32
        )
    )
    assert list(reply.renewed) == ["token"]


async def test_nothing_is_left_of_it(world: World, driver: ContainerDriver) -> None:
    def shared() -> set[str]:
        found = {f"shm {each}" for each in os.listdir("/dev/shm")}
        for kind in ("shm", "sem", "msg"):
            lines = Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]
            found |= {f"{kind} {line.split()[1]}" for line in lines}
        return found

    before, tmp = shared(), set(os.listdir("/tmp"))
    machine = await world.start(driver)
    users = machine.slot.users
    assert users is not None
    uids = range(users.first, users.first + users.count)
    code, text = await machine.run(
        "echo x >/tmp/roost-left; echo x >/dev/shm/roost-left; "
        "LC_ALL=C perl -e 'shmget(7, 4096, 01666) // die; semget(7, 1, 01666) // die; msgget(7, 01666) // die'; "
        "(sleep 600 >/dev/null 2>&1 &)"
    )
    assert code == 0, text
    async with asyncio.timeout(10):
        while "sleep" not in _names(running := driver.cgroups.procs(driver._group(machine.id))):
            await asyncio.sleep(0.05)
    disk = machine.disk
    await machine.client.close()
    await driver.remove(machine.id)
    assert not any(Path(f"/proc/{pid}").exists() and _is_of(pid, uids) for pid in running)
    assert processes.numbered(uids) == {}
    assert shared() - before == set()
    assert not any("roost-left" in each for each in set(os.listdir("/tmp")) - tmp)
    for place in ("/var/spool/cron/crontabs", "/var/lib/systemd/linger"):
        assert not [p for p in Path(place).glob("*") if p.stat().st_uid in uids]
    # And of the block's numbers nothing lies on its disk.
    assert _owners(disk) <= {0, 1000}


async def test_its_disk_goes_on_in_a_container(world: World, driver: ContainerDriver) -> None:
    machine = await world.start(driver)
    await machine.run("echo kept >f; mkdir d; ln -s f d/l; sync")
    await machine.client.close()
    await driver.remove(machine.id)
    runc = world.driver("runc")
    slot = await world.network.reattach(machine.id, machine.slot.index, Policy())
    above = await world.boot(runc, replace(machine.spec, slot=slot))
    code, text = await above.run(
        "id -u; cat /home/user/f; stat -c %U /home/user/f; echo more >>/home/user/f"
    )
    assert (code, text) == (0, "0\nkept\nuser\n")


async def test_a_fork_has_the_disk_of_that_instant(world: World, driver: ContainerDriver) -> None:
    parent = await world.start(driver)
    await parent.run("echo one >f; sync")
    kept = await world.capture(parent)
    assert not kept[0].memory
    child = await world.child(kept, parent)
    assert await child.run("cat f; cat /proc/sys/kernel/hostname") == (
        0,
        f"one\n{child.spec.hostname}\n",
    )
    await child.run("echo two >f")
    assert await parent.run("cat f") == (0, "one\n")
    shutil.rmtree(kept[0].directory)
    kept[1].unlink()


def _names(pids: set[int]) -> set[str]:
    """Of those that have not ended meanwhile."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            found.add(Path(f"/proc/{pid}/comm").read_text().strip())
    return found


def _is_of(pid: int, uids: range) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return int(status.partition("\nUid:\t")[2].split("\t")[0]) in uids


def _owners(disk: Path) -> set[int]:
    def look() -> set[int]:
        at = disk.parent
        with mounting.attached(disk) as found:
            syscalls.mount(found.device, at, "ext4", syscalls.MS_RDONLY, "noload")
            owners = set()
            for directory, names, others in os.walk(at):
                for name in (".", *names, *others):
                    info = os.lstat(os.path.join(directory, name))
                    owners |= {info.st_uid, info.st_gid}
            syscalls.umount(at)
            return owners

    return apart.run(look)
