"""Forks, snapshots, rollback and sleep through the SDK, on real machines of both runtimes."""

from __future__ import annotations

import os
import time

import pytest

from roost import ConflictError, ExecStream, Machine, NotFoundError, Snapshot, UnsupportedError

from . import clocks
from .conftest import Daemon

pytestmark = pytest.mark.system
# The daemon of these tests hands its environment on.
KEEPS = os.environ.get("ROOST_GVISOR_MEMORY", "true").lower() in ("1", "true")
with_memory = pytest.mark.skipif(not KEEPS, reason="ROOST_GVISOR_MEMORY is off")

# Counts ten times a second, and holds 64 MiB of random bytes whose digest it writes with each count.
COUNTER = """
import hashlib, os, time
held = os.urandom(64 << 20)
digest = hashlib.sha256(held).hexdigest()
log = open("/root/count", "a")
n = 0
while True:
    n += 1
    log.write(f"{n} {digest}\\n")
    log.flush()
    time.sleep(0.1)
"""


def count(m: Machine) -> tuple[int, str]:
    last = m.exec("tail -n 1 /root/count").stdout.split()
    return int(last[0]), last[1]


def goes_on(m: Machine, digest: str) -> int:
    """What it had counted, with what it holds; it counts on."""
    first, same = count(m)
    assert same == digest
    deadline = time.monotonic() + 60
    while count(m)[0] <= first:
        assert time.monotonic() < deadline, "it stands still"
        time.sleep(0.1)
    return first


def counting(m: Machine) -> None:
    m.files.write("/root/counter.py", COUNTER)
    m.start(["python3", "/root/counter.py"])
    for _ in range(600):
        if m.exec("test -s /root/count").exit_code == 0:
            return
        time.sleep(0.05)
    raise AssertionError("it does not count")


def memory(driver: str) -> bool:
    return driver == "gvisor" and KEEPS


@with_memory
def test_memory_goes_on_in_parent_and_children(daemon: Daemon) -> None:
    with Machine.create(driver="gvisor") as parent:
        counting(parent)
        kept = parent.exec(
            "head -c 32 /dev/urandom | sha256sum; cat /proc/sys/kernel/random/uuid"
        ).stdout
        at, digest = count(parent)
        children = parent.fork(count=2)
        assert isinstance(children, list)
        try:
            seen = {kept}
            names = {parent.exec("cat /etc/machine-id; hostname").stdout}
            for m in (parent, *children):
                assert goes_on(m, digest) >= at
            for m in children:
                seen.add(
                    m.exec(
                        "head -c 32 /dev/urandom | sha256sum; cat /proc/sys/kernel/random/uuid"
                    ).stdout
                )
                names.add(m.exec("cat /etc/machine-id; hostname").stdout)
                assert clocks.is_right(m)
                numbers = [
                    int(line.split()[0]) for line in m.exec("cat /root/count").stdout.splitlines()
                ]
                assert numbers == list(range(1, len(numbers) + 1)), (
                    "a line was lost or written twice"
                )
            assert len(seen) == 3 and len(names) == 3
            grandchild = children[0].fork()
            assert isinstance(grandchild, Machine)
            with grandchild:
                children[0].destroy()
                goes_on(grandchild, digest)
        finally:
            for m in children:
                m.destroy()


def test_disks_part_at_the_fork(daemon: Daemon, driver: str) -> None:
    with Machine.create(driver=driver, env={"X": "1"}) as parent:
        parent.exec("echo before > /root/note; sync")
        child = parent.fork(name="child")
        assert isinstance(child, Machine)
        with child:
            child.exec("echo child >> /root/note")
            parent.exec("echo parent >> /root/note")
            assert child.exec("cat /root/note; echo $X").stdout == "before\nchild\n1\n"
            assert parent.exec("cat /root/note").stdout == "before\nparent\n"
            assert child.name == "child" and child.exec("cat /etc/hostname").stdout == "child\n"
            if not memory(driver):  # gVisor's kernel keeps the name it was saved with
                assert child.exec("hostname").stdout == "child\n"
            assert child.exec(
                "getent hosts deb.mirror.example >/dev/null || ip route | grep -c default"
            ).ok


def test_snapshots_make_machines_and_bring_back(daemon: Daemon, driver: str) -> None:
    with Machine.create(driver=driver) as m:
        m.exec("echo one > /root/note; sync")
        made = m.snapshot("release")
        try:
            assert made.memory == memory(driver) and made.paused_ms and made.size_bytes
            with pytest.raises(ConflictError):
                m.snapshot("release")
            assert [s.id for s in Snapshot.list(machine_id=m.id)] == [made.id]
            m.exec("echo two > /root/note")
            m.rollback(made)
            assert m.phase == "running" and m.exec("cat /root/note").stdout == "one\n"
            m.exec("echo three > /root/note; sync")
            m.sleep()
            with Machine.create(snapshot="release") as other:
                assert other.exec("cat /root/note").stdout == "one\n"
                assert (
                    other.exec("cat /etc/machine-id").stdout != m.exec("cat /etc/machine-id").stdout
                )
            assert m.exec("cat /root/note").stdout == "three\n"
        finally:
            made.delete()
        with pytest.raises(NotFoundError):
            Snapshot.get("release")


def test_sleep_keeps_processes_where_it_says_so(daemon: Daemon, driver: str) -> None:
    with Machine.create(driver=driver) as m:
        assert m.to_json()["memory_kept"] == memory(driver)
        counting(m)
        at, digest = count(m)
        if not memory(driver):
            with pytest.raises(UnsupportedError):
                m.sleep(tier="hibernated")
            return
        for _ in range(2):
            m.sleep()
            assert m.phase == "sleeping"
            again, same = count(m)  # wakes it
            assert same == digest and at <= again < at + 100
            at = again
        assert not [e for e in m.logs() if e["event"] == "memory_lost"]
        m.sleep(tier="stopped")
        assert m.exec("pgrep -f '[c]ounter.py'").exit_code == 1


@with_memory
def test_what_runs_is_followed_through_a_fork(daemon: Daemon) -> None:
    """gVisor cuts the daemon's connections for its capture; nobody who waits or reads may notice."""
    with Machine.create(driver="gvisor") as m:
        lines = "for i in $(seq 1 60); do echo line $i; sleep 0.05; done"
        stream: ExecStream = m.exec_stream(lines)
        got = b""
        child: Machine | None = None
        for chunk in stream:
            got += chunk.data
            if child is None and b"line 10\n" in got:
                made = m.fork()
                assert isinstance(made, Machine)
                child = made
        assert child is not None
        child.destroy()
        assert got.decode() == "".join(f"line {i}\n" for i in range(1, 61))
        background = m.start("sleep 3; echo done")
        m.snapshot().delete()
        assert background.wait().stdout == "done\n"
