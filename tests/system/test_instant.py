"""What a fork keeps of a machine that is at work: files half written, memory, whoever waits or listens; and what it
does not. On gVisor and in a microVM; one machine of each is put to work, and all tests fork that.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sqlite3
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from roost import CapacityError, Client, Machine, Terminal
from roost.settings import Settings
from tests.attack.record import case

from .conftest import Daemon
from .test_forks import with_memory

pytestmark = [pytest.mark.system, with_memory]
PATIENCE_S = 60.0
FREE_EOFBLOCKS = (
    0x8080583A  # XFS_IOC_FREE_EOFBLOCKS of xfs_fs.h, of a struct xfs_fs_eofblocks: version 1, SYNC
)

# Holds 64 MiB of random bytes and appends numbered records to a file that it never closes, each synced before the
# next, with the time since boot, which tells what parent and child wrote apart. Asked, it tells the digest of what it
# holds then.
WORK = """
import hashlib, os, time
held = os.urandom(64 << 20)
records = os.open("/root/records", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
n = 0
def tell(name, text):
    with open("/dev/shm/new", "w") as file:
        file.write(text)
    os.rename("/dev/shm/new", "/dev/shm/" + name)
while True:
    n += 1
    record = f"{n:08d} {time.monotonic_ns():020d}"
    digest = hashlib.md5(record.encode()).hexdigest()
    os.write(records, f"{record} {digest}\\n".encode())
    os.fsync(records)
    tell("count", str(n))
    if os.path.exists("/dev/shm/ask"):
        os.unlink("/dev/shm/ask")
        tell("digest", hashlib.sha1(held).hexdigest())
    time.sleep(0.005)
"""
# Waits for a word, then says what the kernel gives it first.
WAIT = """
import os
with open("/dev/shm/go") as go:
    go.read()
drawn = os.getrandom(16).hex()
with open("/dev/shm/new-drawn", "w") as file:
    file.write(drawn)
os.rename("/dev/shm/new-drawn", "/dev/shm/drawn")
"""
DRAW = """
echo go > /dev/shm/go
od -An -tx8 -N16 /dev/urandom | tr -d ' '
cat /etc/machine-id
until test -e /dev/shm/drawn; do sleep 0.02; done
cat /dev/shm/drawn; echo
cat /proc/sys/kernel/random/uuid 2>/dev/null || true  # gVisor has none
"""


def run(m: Machine, command: str) -> str:
    done = m.exec(command, timeout=PATIENCE_S)
    assert done.ok, (command, done)
    return done.stdout.strip()


def until(what: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.05)


def fork(m: Machine) -> Machine:
    child = m.fork()
    assert isinstance(child, Machine)
    return child


@pytest.fixture(scope="module", params=["gvisor", "qemu"])
def parent(daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[Machine]:
    if request.param == "qemu":
        request.getfixturevalue("guests")
    with Machine.create(driver=request.param, memory_mib=256) as m:
        m.files.write("/root/work.py", WORK)
        m.files.write("/root/wait.py", WAIT)
        run(m, "mkfifo /dev/shm/go")
        m.start(["python3", "/root/work.py"])
        m.start(["python3", "/root/wait.py"])
        until(lambda: m.exec("test -s /dev/shm/count && pgrep -f '[w]ait.py'").ok)
        yield m


def records(text: str) -> list[str]:
    """Of which none is missing, double or torn."""
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        n, _, digest = line.split(" ")
        wanted = hashlib.md5(line[: -len(digest) - 1].encode()).hexdigest()
        assert (int(n), digest) == (number, f"{wanted}\n"), (number, line)
    return lines


def written(m: Machine) -> list[str]:
    return records(m.files.read("/root/records").decode())


def writes_on(m: Machine) -> None:
    at = len(written(m))
    until(lambda: len(written(m)) > at)


def on_disk(disk: Path, copy: Path) -> list[str]:
    """What a disk image has of them, as a machine would find it that starts from it."""
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", disk, copy], check=True)
    done = subprocess.run(["e2fsck", "-fp", copy], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout  # 1: it replayed the journal and was content
    told = subprocess.run(
        ["debugfs", "-R", "cat /root/records", copy], check=True, capture_output=True, text=True
    )
    return records(told.stdout)


def held(m: Machine) -> str:
    return run(
        m,
        "rm -f /dev/shm/digest; touch /dev/shm/ask; "
        "until test -e /dev/shm/digest; do sleep 0.05; done; cat /dev/shm/digest",
    )


def test_a_process_at_work_goes_on_in_both_with_its_memory_and_its_open_file(
    daemon: Daemon, parent: Machine, tmp_path: Path
) -> None:
    digest = held(parent)
    for _ in range(2):
        counted = int(run(parent, "cat /dev/shm/count"))
        snapshot = parent.snapshot()
        try:
            with Machine.create(snapshot=snapshot) as child:
                writes_on(child)
                writes_on(parent)
                here, there = written(child), written(parent)
                same = [one == other for one, other in zip(here, there, strict=False)]
                split = same.index(False)
                assert counted <= split
                assert True not in same[split:], "one writes into the other's file"
                # Of the same instant as memory: at most the last is written and not yet synced.
                disk = daemon.data_dir / "pool/snapshots" / snapshot.id / "disk.ext4"
                then = on_disk(disk, tmp_path / "disk.ext4")
                assert split - 1 <= len(then) <= split
                assert then == there[: len(then)]
                assert held(child) == digest
        finally:
            snapshot.delete()
    assert held(parent) == digest


@case(50)
@pytest.mark.parametrize(
    ("parent", "count"),
    [("gvisor", 50), ("qemu", 10), pytest.param("qemu", 50, marks=pytest.mark.long)],
    indirect=["parent"],
    scope="module",
)
def test_no_two_forks_draw_the_same(parent: Machine, count: int) -> None:
    """Neither who waited since before the fork nor the first command."""
    run(parent, "pkill -STOP -f '[w]ork.py'")  # of no use here, and 50 of it are much
    snapshot = parent.snapshot()
    run(parent, "pkill -CONT -f '[w]ork.py'")
    try:

        def draw(_: int) -> list[str]:
            with Machine.create(snapshot=snapshot) as child:
                assert not [e for e in child.logs() if e["event"] == "memory_lost"]
                return run(child, DRAW).split()

        with ThreadPoolExecutor(4) as pool:
            drawn = list(pool.map(draw, range(count)))
    finally:
        snapshot.delete()
    told = ["the first command's", "the machine-id", "the waiting process's"]
    if parent.isolation["driver"] == "qemu":
        told.append("the kernel's uuid")
    for what, values in zip(told, zip(*drawn, strict=True), strict=True):
        assert len(set(values)) == count, what


def captures(daemon: Daemon, m: Machine) -> int:
    """Of this machine that were begun, ever."""
    with sqlite3.connect(daemon.data_dir / "roost.db") as db:
        question = "select count(*) from operations where kind = 'snapshot' and machine_id = ?"
        return int(db.execute(question, (m.id,)).fetchone()[0])


def kept(daemon: Daemon) -> set[str]:
    """What there is of machines and snapshots in the pool and the database."""
    pool = daemon.data_dir / "pool"
    found = {str(path) for name in ("disks", "snapshots") for path in (pool / name).iterdir()}
    with sqlite3.connect(daemon.data_dir / "roost.db") as db:
        for question in (
            "select id from machines where phase != 'destroyed'",
            "select id from snapshots",
        ):
            found |= {str(row[0]) for row in db.execute(question)}
    return found


@pytest.fixture
def hardly_any_memory(daemon: Daemon, parent: Machine) -> Iterator[None]:
    """Room for the machines there are and one more of this size, not for two."""
    memory = Client().host()["capacity"]["memory_mib"]
    share = (memory["held"] + 1.5 * parent.memory_mib) / memory["limit"]
    daemon.env["ROOST_MEMORY_OVERCOMMIT"] = str(Settings().memory_overcommit * share)
    daemon.restart()
    try:
        yield
    finally:
        del daemon.env["ROOST_MEMORY_OVERCOMMIT"]
        daemon.restart()


def test_a_fork_there_is_no_memory_for_does_not_stop_its_parent(
    daemon: Daemon, parent: Machine, hardly_any_memory: None
) -> None:
    before, found = captures(daemon, parent), kept(daemon)
    with pytest.raises(CapacityError) as caught:
        parent.fork(count=2)
    assert caught.value.code == "CAPACITY_EXCEEDED"
    assert caught.value.status == 503
    assert captures(daemon, parent) == before, "it was captured for nothing"
    assert kept(daemon) == found
    writes_on(parent)
    with fork(parent) as child:
        writes_on(child)


@contextlib.contextmanager
def pool_with(daemon: Daemon, free: int) -> Iterator[None]:
    """With so many bytes left in it, and nothing that XFS would find as soon as there are none."""
    filler = daemon.data_dir / "pool" / "tmp" / "filler"
    with filler.open("xb") as file:
        try:
            # What it holds in reserve behind files that grow and beside shared blocks counts as used, until a file
            # that finds no space makes it give that back.
            subprocess.run(["sync", "-f", filler], check=True)
            fcntl.ioctl(file, FREE_EOFBLOCKS, struct.pack("<IIIIIIQ96x", 1, 1, 0, 0, 0, 0, 0))
            stat = os.statvfs(filler)
            os.posix_fallocate(file.fileno(), 0, stat.f_bavail * stat.f_frsize - free)
            yield
        finally:
            filler.unlink()


@case("F4")
def test_a_pool_that_is_full_in_the_middle_of_a_capture(daemon: Daemon, parent: Machine) -> None:
    before, found = captures(daemon, parent), kept(daemon)
    digest = held(parent)
    with pool_with(daemon, free=32 << 20):  # less than what it holds
        with pytest.raises(CapacityError) as caught:
            parent.fork()
        assert captures(daemon, parent) == before, "known beforehand"
        for _ in range(2):
            with pytest.raises(CapacityError) as caught:
                parent.snapshot()
            assert (caught.value.code, caught.value.status) == ("STORAGE_FULL", 507)
            assert kept(daemon) == found
            writes_on(parent)
        assert captures(daemon, parent) == before + 2
    assert held(parent) == digest
    assert parent.refresh().phase == "running"
    with fork(parent) as child:  # what failed spoils no later one
        assert held(child) == digest
        writes_on(child)


# Prints so many numbered lines at a time until a word comes, and then how many they were.
PRINT = """
import select, sys, time
n = 0
while not select.select([sys.stdin], [], [], 0.05)[0]:
    for _ in range(%d):
        n += 1
        sys.stdout.write(f"line {n}\\n")
    sys.stdout.flush()
print("end", n)
"""
ECHO = "import sys\nfor line in sys.stdin:\n    print('heard', line.strip(), flush=True)\n"


def numbered(text: str) -> int:
    """How many lines, of which none is missing or double."""
    lines = text.replace("\r", "").splitlines()
    end = lines.index(next(line for line in lines if line.startswith("end ")))
    assert lines[end] == f"end {end}", (end, lines[end])
    for number, line in enumerate(lines[:end], 1):
        assert line == f"line {number}"
    return end


def to_the_end(terminal: Terminal) -> str:
    heard = []
    deadline = time.monotonic() + PATIENCE_S
    while not terminal.closed:
        assert time.monotonic() < deadline, heard[-3:]
        heard.append(terminal.read(PATIENCE_S))
    return "".join(heard)


def test_what_is_asked_for_as_a_fork_begins_runs_once(parent: Machine) -> None:
    """gVisor cuts every connection to the agent for its capture, whatever has just been sent over it."""
    forking = True

    def wait(lane: int) -> int:
        count = 0
        while forking:
            count += 1
            line = f"wait-{lane}-{count}"
            assert run(parent, f"echo {line} >> /root/ran; echo {line}") == line
        return count

    def start(lane: int) -> int:
        count = 0
        while forking:
            count += 1
            started = parent.start(f"echo start-{lane}-{count} >> /root/ran")
            assert started.wait(PATIENCE_S).ok
        return count

    def stream(lane: int) -> int:
        count = 0
        while forking:
            count += 1
            line = f"stream-{lane}-{count}"
            said = parent.exec_stream(f"echo {line} >> /root/ran; echo {line}", timeout=PATIENCE_S)
            assert "".join(chunk.text for chunk in said) == f"{line}\n"
        return count

    run(parent, "rm -f /root/ran")
    lanes = (wait, wait, start, stream)
    with ThreadPoolExecutor(len(lanes)) as pool:
        asking = [pool.submit(lane, number) for number, lane in enumerate(lanes)]
        try:
            for _ in range(6):
                fork(parent).destroy()
        finally:
            forking = False
        asked = [
            f"{lane.__name__}-{number}-{n}"
            for number, (lane, counted) in enumerate(zip(lanes, asking, strict=True))
            for n in range(1, counted.result() + 1)
        ]
    assert sorted(run(parent, "cat /root/ran").split()) == sorted(asked)


def test_who_listens_to_the_parent_or_types_misses_nothing(parent: Machine) -> None:
    """gVisor cuts every connection to the agent for its capture."""
    run(parent, "pkill -STOP -f '[w]ork.py'")
    parent.files.write("/root/fast.py", PRINT % 500)
    parent.files.write("/root/slow.py", PRINT % 1)
    parent.files.write("/root/echo.py", ECHO)
    fast = parent.terminal(shell="/bin/sh")
    typed = parent.terminal(shell="/bin/sh")
    fast.send("stty -echo; echo rea''dy; exec python3 /root/fast.py\n")
    fast.read_until("ready\r\n")
    typed.send("stty -echo; echo rea''dy; exec python3 /root/echo.py\n")
    typed.read_until("ready\r\n")
    stream = parent.exec_stream(["python3", "/root/slow.py"], stdin_stream=True)
    execution = stream.start()
    with ThreadPoolExecutor(3) as pool:
        from_exec = pool.submit(lambda: "".join(chunk.text for chunk in stream))
        from_terminal = pool.submit(to_the_end, fast)
        forking = pool.submit(lambda: [fork(parent).destroy() for _ in range(3)])
        words = 0
        while not forking.done():
            words += 1
            typed.send(f"{words}\n")
            time.sleep(0.02)
        forking.result()
        fast.send("enough\n")
        execution.write_stdin(b"enough\n")
        assert numbered(from_terminal.result()) > 1000
        assert numbered(from_exec.result()) > 20
        heard = typed.read_until(f"heard {words}\r\n", PATIENCE_S).split("heard ")[1:]
        assert [int(word) for word in heard] == list(range(1, words + 1))
    fast.close()
    typed.close()
    run(parent, "pkill -CONT -f '[w]ork.py'")
