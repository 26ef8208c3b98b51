"""Volumes, mounted by real machines: what is written outlives them, one writes or several read, and no host mounts what
a guest wrote raw."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from roost import ConflictError, Machine, NotFoundError, UnsupportedError, Volume
from roost.host.cgroups import Cgroups
from roost.network.addresses import instance_tag

from .conftest import Daemon

pytestmark = pytest.mark.system
# A process that holds a file of the volume open and writes on.
COUNTS = """
(exec 3>/data/log; i=0; while :; do i=$((i+1)); echo $i >&3; echo $i > /dev/shm/.new; mv /dev/shm/.new /dev/shm/count; sleep 0.05; done) \
  >/dev/null 2>&1 </dev/null &
echo $!
until test -s /dev/shm/count; do sleep 0.05; done
"""


def goes_on(m: Machine, before: int) -> None:
    deadline = time.monotonic() + 60
    while int(run(m, "tail -1 /data/log")) <= before:
        assert time.monotonic() < deadline, "the file it has open goes on"
        time.sleep(0.1)


def create(driver: str, *volumes: str, **options: object) -> Machine:
    size = {"driver": driver, "memory_mib": 256, "autosleep": "never", "ttl": "15m"}
    return Machine.create(**{**size, **options}, volumes=list(volumes))  # type: ignore[arg-type]


def run(m: Machine, command: str) -> str:
    done = m.exec(command, timeout=60)
    assert done.ok, (command, done)
    return done.stdout.strip()


@contextlib.contextmanager
def gone(*machines: Machine) -> Iterator[Machine]:
    """The first of them, in a block at whose end they all are."""
    try:
        yield machines[0]
    finally:
        for each in machines:
            each.destroy()


@pytest.fixture
def volume(daemon: Daemon) -> Iterator[Volume]:
    made = Volume.create("test-volume", size_gib=1)
    yield made
    for machine in Machine.list():
        if any(each["volume_id"] == made.id for each in machine.volumes):
            machine.destroy()
    made.delete()
    assert not list((daemon.data_dir / "pool" / "volumes").glob(f"{made.id}*"))


def test_what_is_written_outlives_its_machine(driver: str, volume: Volume) -> None:
    m = create(driver, "test-volume:/data")
    with gone(m):
        assert m.volumes == [
            {"volume_id": volume.id, "name": "test-volume", "path": "/data", "read_only": False}
        ]
        assert run(m, "ls -A /data") == ""
        assert int(run(m, "df -BM --output=size /data | tail -1").rstrip("M")) < 1024
        run(m, "echo mine > /data/note; mkdir -p /data/a/b; chmod 600 /data/note")
        m.exec("echo theirs > /data/theirs", user="nobody").check()
        pid = run(m, COUNTS)
        m.sleep()
        with pytest.raises(ConflictError) as failure:
            create(driver, "test-volume:/data")
        assert failure.value.code == "VOLUME_IN_USE"
        assert failure.value.details["machine_ids"] == [m.id]
        m.wake()
        assert run(m, "cat /data/note /data/theirs") == "mine\ntheirs"
        if m.to_json()["memory_kept"]:
            goes_on(m, int(run(m, f"kill -0 {pid}; cat /dev/shm/count")))
        with pytest.raises(ConflictError):
            volume.delete()
        run(m, "echo last > /data/last")
    assert volume.refresh().attachments == []
    other = create(driver, "test-volume:/srv/deep/er")
    with gone(other):
        assert run(other, "cat /srv/deep/er/note /srv/deep/er/last") == "mine\nlast"
        assert run(other, "stat -c %a /srv/deep /srv/deep/er") == "755\n1777"


def test_several_read(driver: str, volume: Volume) -> None:
    with gone(create(driver, "test-volume:/data")) as m:
        run(m, "echo shared > /data/note")
    readers = [create(driver, "test-volume:/data:ro") for _ in range(2)]
    with gone(*readers):
        for each in readers:
            assert run(each, "cat /data/note") == "shared"
            done = each.exec("echo x > /data/x")
            assert not done.ok
            assert "Read-only" in done.stderr
            assert not each.exec("mount -o remount,rw /data").ok
        with pytest.raises(ConflictError, match="read-only in use"):
            create(driver, "test-volume:/data")
        children = readers[0].fork(2)
        assert isinstance(children, list)
        with gone(*children):
            assert [run(each, "cat /data/note") for each in children] == ["shared", "shared"]
            assert len(volume.refresh().attachments) == 4


def test_a_copy_has_the_disk_and_not_the_volume(driver: str, volume: Volume) -> None:
    m = create(driver, "test-volume:/data")
    with gone(m):
        run(m, "echo on the volume > /data/note; echo on the disk > /root/note")
        child = m.fork()
        assert isinstance(child, Machine)
        with gone(child):
            assert child.volumes == []
            assert run(child, "cat /root/note; ls -A /data") == "on the disk"
        kept = m.snapshot("test-volume-then")
        try:
            assert not kept.memory
            run(m, "echo later > /root/note; echo later > /data/note")
            m.rollback(kept)
            assert run(m, "cat /root/note /data/note") == "on the disk\nlater"
        finally:
            kept.delete()


def test_a_link_at_the_path_leads_nowhere_outside(driver: str, volume: Volume) -> None:
    """The machine's disk is what its root made of it."""
    before = sorted(os.listdir("/opt"))
    with gone(create(driver)) as m:
        run(m, "ln -s ../../../../../../opt /data; sync")
        kept = m.snapshot("test-volume-link")
    try:
        made = Machine.create(snapshot=kept, ttl="10m", volumes=["test-volume:/data"])
        with gone(made):
            run(made, "echo mine > /data/of-the-volume; test -e /opt/of-the-volume")
    finally:
        kept.delete()
    assert sorted(os.listdir("/opt")) == before


def test_over_a_kill_of_the_daemon_and_of_the_machine(
    daemon: Daemon, driver: str, volume: Volume
) -> None:
    m = create(driver, "test-volume:/data")
    with gone(m):
        run(m, "echo kept > /data/note; sync")
        daemon.restart(signal.SIGKILL)
        assert run(m, "cat /data/note; echo more >> /data/note; sync; cat /data/note") == (
            "kept\nkept\nmore"
        )
        assert volume.refresh().attachments[0]["machine_id"] == m.id
        kill(daemon, m)
        m.wake()
        assert run(m, "cat /data/note") == "kept\nmore"


def kill(daemon: Daemon, m: Machine) -> None:
    """All its processes, as the host's memory killer would."""
    groups = Cgroups(f"roost-{instance_tag(daemon.run_dir)}")
    for pid in groups.procs(f"{m.isolation['driver']}-{m.id}"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while m.refresh().phase == "running":
        assert time.monotonic() < deadline
        time.sleep(0.1)


# --- microVMs -------------------------------------------------------------------------------------


def test_a_microvm_writes_and_no_container_mounts_it(daemon: Daemon, volume: Volume) -> None:
    first = create("runc", "test-volume:/data")
    with gone(first):
        run(first, "echo of a container > /data/note")
    m = create("qemu", "test-volume:/data")
    with gone(m):
        assert run(m, "cat /data/note; echo of a guest > /data/note; cat /data/note") == (
            "of a container\nof a guest"
        )
        pid = run(m, COUNTS)
        m.sleep()
        assert m.tier == "hibernated"
        m.wake()
        goes_on(m, int(run(m, f"kill -0 {pid}; cat /dev/shm/count")))
        run(m, "echo last > /data/last")  # not synced: it is unmounted before the machine is gone
    assert volume.refresh().raw_written
    for mode in ("", ":ro"):
        with pytest.raises(UnsupportedError) as failure:
            create("runc", f"test-volume:/data{mode}")
        assert failure.value.details["isolation"] == "microvm"
    image = daemon.data_dir / "pool" / "volumes" / f"{volume.id}.ext4"
    checked = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    reader = create("qemu", "test-volume:/data:ro")
    with gone(reader):
        assert run(reader, "cat /data/note /data/last") == "of a guest\nlast"
        assert not reader.exec("mount -o remount,rw /data && echo x > /data/x").ok


@pytest.mark.long
def test_one_that_was_not_unmounted(daemon: Daemon, volume: Volume) -> None:
    m = create("qemu", "test-volume:/data")
    with gone(m):
        run(m, "echo kept > /data/note; sync; echo more > /data/more")
        kill(daemon, m)
    with pytest.raises(ConflictError, match="read-write once"):
        create("qemu", "test-volume:/data:ro")
    for each in Machine.list(phase="failed"):
        each.destroy()
    m = create("qemu", "test-volume:/data")
    with gone(m):
        assert run(m, "cat /data/note") == "kept"
    m = create("qemu", "test-volume:/data:ro")
    with gone(m):
        assert run(m, "cat /data/note") == "kept"


@pytest.mark.long
def test_a_microvms_copy(volume: Volume) -> None:
    second = Volume.create("test-volume-2", size_gib=1)
    try:
        with gone(create("qemu", "test-volume-2:/books")) as m:
            run(m, "echo read me > /books/note")
        m = create("qemu", "test-volume:/data", "test-volume-2:/books:ro")
        with gone(m):
            run(m, "echo on the disk > /root/note; echo on the volume > /data/note")
            child = m.fork()
            assert isinstance(child, Machine)
            with gone(child):
                assert [each["name"] for each in child.volumes] == ["test-volume-2"]
                assert run(child, "cat /root/note /books/note; ls -A /data") == (
                    "on the disk\nread me"
                )
            assert run(m, "cat /data/note") == "on the volume"
    finally:
        second.delete()


def test_volumes_of_others_and_of_nobody(daemon: Daemon) -> None:
    with pytest.raises(NotFoundError) as failure:
        create("runc", "test-nothing:/data")
    assert failure.value.code == "VOLUME_NOT_FOUND"
    assert Machine.list(labels={"x": "y"}) == []


def test_commands(daemon: Daemon) -> None:
    """As a user types them."""

    def cli(*words: str) -> str:
        command = [sys.executable, "-m", "roost.cli", *words]
        done = subprocess.run(command, env=daemon.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    cli("volume", "create", "test-cli", "--size", "1")
    try:
        made = cli("create", "--driver", "runc", "--ttl", "10m", "--volume", "test-cli:/data")
        made = made.split()[0]
        cli("exec", made, "--", "touch", "/data/x")
        assert made in cli("volume", "ls")
        assert "test-cli at /data" in cli("show", made)
        cli("rm", "--yes", made)
    finally:
        cli("volume", "rm", "--yes", "test-cli")
