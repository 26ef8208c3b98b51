"""1-10: what a machine uses up is its own, and whoever asked is told.

Each is told how far to go, so that even where nothing holds it the host survives. What may end the machine is done in
one of its own, which comes back when it is called.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from roost import ExecTimeout, Machine, RoostError
from tests.system.conftest import Daemon
from tests.system.faults import state

from .record import case, escapes, untested
from .rung import MEMORY_MIB, Rung, harm, home, until

PIDS = 1024  # ``Size.pids``
GROWTH_MB = 64  # of the daemon, whatever a machine prints
FEW = {"gvisor": 300, "qemu": 500}  # of processes and mebibytes, where each costs much
NO_GROUP = "a workspace has no control group: its limits are those of single processes"


@pytest.fixture(scope="module")
def victim(rung: Rung) -> Iterator[Machine]:
    with rung.another(storage_gib=1) as m:
        yield m


@pytest.fixture(autouse=True)
def comes_back(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever became of it, it is told in its row and ends with a wake, and programs run in it again."""
    yield
    if "victim" not in request.fixturenames:
        return
    victim: Machine = request.getfixturevalue("victim")

    def answers() -> bool:
        if victim.refresh().phase == "failed":
            with harm():
                assert victim.to_json()["status"]["reason"]
            victim.wake()
        with contextlib.suppress(RoostError):
            return victim.exec("python3 -c 'print(1)'", timeout=20).stdout == "1\n"
        return False

    until(answers, 120)


def ends(machine: Machine, command: Any, timeout: float) -> str:
    """What it printed, or what its caller heard instead of an exit code; never an error of the daemon's own."""
    try:
        return machine.exec(command, timeout=timeout).stdout
    except ExecTimeout:
        return "TIMEOUT"
    except RoostError as exc:
        if exc.code not in ("AGENT_LOST", "MACHINE_FAILED", "STORAGE_FULL"):
            raise
        return exc.code


@contextlib.contextmanager
def most_processes(led: Daemon, machine: Machine) -> Iterator[list[int]]:
    """As many of it as the host saw at once: the number, afterwards."""
    most, stop = [0], threading.Event()
    groups = [g for g in state.groups(led) if g.name.endswith(machine.id)]

    def look() -> None:
        while not stop.wait(0.1):
            for group in groups:
                with contextlib.suppress(OSError):
                    count = len((group / "cgroup.procs").read_text().split())
                    most[0] = max(most[0], count)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield most
    finally:
        stop.set()
        watcher.join()


# Of itself and all its children nothing is left when it has told how many they were; it tells on the way too, for where
# memory is short first it is ended.
BOMB = """
setpgrp; $| = 1; $n = 0;
while ($n < 3000) { $p = fork; last unless defined $p; if (!$p) { sleep 60; exit } $n++; print "$n\n" unless $n % 50 }
print "$n\n"; kill -9, $$
"""


@case(1)
@escapes(
    "workspace",
    reason="its processes are counted with those of all workspaces: one can leave the others none",
    run=False,
)
def test_a_fork_bomb_stops_at_the_limit(rung: Rung, led: Daemon, victim: Machine) -> None:
    with most_processes(led, victim) as most:
        said = ends(victim, ["perl", "-e", BOMB], timeout=40)
        assert rung.neighbour.exec("echo on", timeout=30).ok
    told = (said or "nothing").split()[-1]
    most_told = 3000 if rung.name == "qemu" else PIDS - 1  # its memory is its limit
    assert told in ("AGENT_LOST", "MACHINE_FAILED", "TIMEOUT") or 50 <= int(told) <= most_told, said
    # The host sees none of those that a kernel of its own counts.
    assert (0 if rung.keeps_memory else 50) < most[0] <= PIDS + 16, most
    # Where memory was short first, its parent may be dead and a thousand children hold what there is: whoever is left
    # in charge can end them, though for want of memory the kernel may end what is sent for that, too.
    with contextlib.suppress(RoostError):  # it comes back as after every test here
        until(
            lambda: victim.exec("pkill -KILL perl; pgrep -c perl", timeout=30).stdout == "0\n", 120
        )


GLUTTON = """
import sys, time
held = [bytearray(b"x" * (1 << 20)) for _ in range(int(sys.argv[1]))]
print("had it all", flush=True)
time.sleep(8)
"""


@case(2)
@escapes("workspace", reason=f"{NO_GROUP}, and several of them have several times as much")
def test_more_memory_than_it_has(rung: Rung, victim: Machine) -> None:
    """By several of its processes, of which none alone has too much."""
    each = MEMORY_MIB // 2
    script = f"for i in 1 2 3 4 5; do python3 -c '{GLUTTON}' {each} & done; wait"
    said = ends(victim, script, timeout=90)
    assert said.count("had it all") < 5, said
    assert rung.neighbour.exec("echo on", timeout=30).ok


@case(2)
@escapes("workspace", reason="its shared memory is the host's", run=False)
def test_shared_memory_is_full_before_the_host_is(rung: Rung, victim: Machine) -> None:
    before = Path("/proc/mounts").read_text().count(" /dev/shm ")
    said = ends(victim, f"head -c {2 * MEMORY_MIB}M /dev/zero >/dev/shm/fill || echo full", 90)
    assert said in ("full\n", "AGENT_LOST", "MACHINE_FAILED") or "full" in said, said
    with contextlib.suppress(RoostError):
        until(lambda: victim.exec("rm -f /dev/shm/fill", timeout=20).ok, 120)
    assert Path("/proc/mounts").read_text().count(" /dev/shm ") == before


@case(3)
@escapes("workspace", reason="a directory has no size of its own", run=False)
def test_a_full_disk_is_its_own(rung: Rung, victim: Machine, led: Daemon) -> None:
    """Filled by bytes; a file with holes is as large as it likes and takes nothing."""
    place = home(victim)
    script = (
        "truncate -s 900G ~/holes && stat -c %s ~/holes; fallocate -l 4G ~/fill || head -c 2G /dev/zero >>~/fill;"
        " head -c 64M /dev/zero >~/more; echo $?; df -k --output=avail ~ | tail -n 1"
    )

    def full() -> bool:
        """A writer that memory is short for is ended before the disk is full: another goes on."""
        said = victim.exec(script, timeout=120).stdout.split()
        return len(said) > 1 and said[-2] != "0" and int(said[-1]) < 32 << 10

    until(full, 200)
    try:
        with pytest.raises(RoostError) as caught:
            for n in range(8):
                victim.files.write(f"{place}/api{n}", b"x" * (8 << 20))
    finally:
        victim.exec("rm -f ~/holes ~/fill ~/more ~/api*")
    assert caught.value.code in ("STORAGE_FULL", "MACHINE_DISK_FULL"), caught.value
    rung.neighbour.files.write(f"{home(rung.neighbour)}/fits", b"x" * (1 << 20))
    victim.files.write(f"{place}/again", b"x")


@case(3)
@escapes("workspace", reason="a directory has no size of its own", run=False)
@untested(
    "gvisor",
    "qemu",
    reason="60,000 files take it minutes; the limit is that of the disk, as on runc",
)
def test_inodes_are_its_own(rung: Rung, victim: Machine) -> None:
    said = victim.exec(
        "mkdir ~/many && cd ~/many && perl -e 'for (1..200000) { open F, q(>), $_ or do { print qq($_ $!); last } }';"
        " cd; rm -rf ~/many",
        timeout=240,
    )
    assert "No space left" in said.stdout, said
    assert int(said.stdout.split()[0]) > 1000


@case(4)
def test_descriptors_are_used_up_for_oneself(rung: Rung, victim: Machine) -> None:
    script = """
import os
n = 0
try:
    while n < 2000000: os.open("/dev/null", os.O_RDONLY); n += 1
except OSError as exc: print(n, exc.errno)
"""
    said: list[str] = []

    def told() -> bool:  # or memory was short for it first
        said[:] = ends(victim, ["python3", "-c", script], timeout=60).split()
        return bool(said)

    until(told, 120)
    assert len(said) == 2 and said[1] in ("24", "23"), said
    assert rung.neighbour.exec("true").ok


@case(5)
@escapes("workspace", reason=NO_GROUP, run=False)
def test_cpu_is_a_share(rung: Rung) -> None:
    """Four that burn have no more of the host than the machine's one vCPU, or the emulator's threads of it."""
    m = rung.machine
    before, begun = m.usage()["cpu_usage_us"], time.monotonic()
    m.exec("for i in 1 2 3 4; do timeout 4 sh -c 'while :; do :; done' & done; wait", timeout=60)
    assert rung.neighbour.exec("true", timeout=30).ok
    took = time.monotonic() - begun
    used = (m.usage()["cpu_usage_us"] - before) / 1e6
    assert 0.5 < used <= took * 1.15 + 0.3, (used, took)


@case(5)
@pytest.mark.own_network
def test_a_flood_of_packets_holds_up_nobody(rung: Rung) -> None:
    rung.leash("open")
    to = rung.internet.attacker()
    flood = (
        "import socket, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        f"end = time.monotonic() + 4\nwhile time.monotonic() < end:\n s.sendto(b'x' * 1200, ('{to}', 9))"
    )
    running = rung.machine.start(["python3", "-c", flood])
    until(lambda: len(rung.reached(to)) > 100)
    begun = time.monotonic()
    for _ in range(5):
        assert rung.neighbour.exec("true", timeout=30).ok
    assert time.monotonic() - begun < 60
    until(lambda: running.refresh().status != "running", 30)


def resident_mb(led: Daemon) -> float:
    status = Path(f"/proc/{led.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


@case(6)
def test_much_output_is_bounded(rung: Rung, led: Daemon) -> None:
    """One line without end, a flood that a timeout ends, and characters that come in two pieces."""
    m, before = rung.machine, resident_mb(led)
    mib = 16 if rung.name in FEW else 256
    line = m.exec(f"head -c {mib}M /dev/zero | tr '\\0' x; printf end", timeout=120)
    assert line.truncated and len(line.stdout) <= 1 << 21 and line.stdout.endswith("xend")
    with pytest.raises(ExecTimeout) as caught:
        m.exec("yes", timeout=4)
    assert 1 << 10 < len(caught.value.result.stdout) <= 1 << 21
    pieces = "printf '\\342\\202'; sleep 0.3; printf '\\254'"
    assert m.exec(pieces).stdout == "€"
    assert b"".join(chunk.data for chunk in m.exec_stream(pieces)) == "€".encode()
    assert resident_mb(led) - before < GROWTH_MB


@case(7)
@untested("workspace", "user", "runc", reason="nothing in it may open its console but who has it")
def test_a_flooded_console_is_a_ring(rung: Rung, led: Daemon) -> None:
    m, before = rung.machine, resident_mb(led)
    kept = led.run_dir / "machines" / rung.name / m.id

    def size() -> int:
        return sum(p.stat().st_blocks * 512 for p in kept.rglob("*") if p.is_file())

    had = size()
    begun = "readlink /proc/1/fd/1; echo roost-console >/proc/1/fd/1 && echo wrote"
    assert re.fullmatch(r"(host:\[\d+\]|/dev/console)\nwrote\n", m.exec(begun).stdout)
    m.exec("timeout 3 yes roost-console >/proc/1/fd/1", timeout=40)
    assert size() - had < 1 << 20
    assert resident_mb(led) - before < GROWTH_MB
    assert m.exec("echo on", timeout=30).stdout == "on\n"


@case(8)
def test_a_timeout_ends_all_of_it(rung: Rung) -> None:
    script = (
        "trap '' TERM; setsid sh -c \"trap '' TERM HUP; (setsid sleep 6543 &) ; sleep 6543\" & "
        "(setsid sh -c \"trap '' TERM; sleep 6543 & sleep 6543\" &) ; sleep 6543"
    )
    begun = time.monotonic()
    with pytest.raises(ExecTimeout):
        rung.machine.exec(script, timeout=3)
    assert time.monotonic() - begun < 20
    assert rung.machine.exec("ps -eo args | grep '[s]leep 6543'").stdout == ""


@case(8)
def test_what_stops_the_agents_helper_ends_all_the_same(rung: Rung) -> None:
    """Which is the process above it; one that goes on stopping it is beyond this on gVisor and microVM."""
    begun = time.monotonic()
    with pytest.raises(ExecTimeout):
        rung.machine.exec("kill -STOP $PPID; (setsid sleep 6544 &); sleep 6544", timeout=3)
    assert time.monotonic() - begun < 20
    assert rung.machine.exec("ps -eo args | grep '[s]leep 6544'").stdout == ""


@case(9)
def test_zombies_by_the_thousand_are_reaped(rung: Rung) -> None:
    """Children of parents that are gone, and that nobody but the agent is left to bury."""
    count = FEW.get(rung.name, 3_000)
    script = f"for (1..{count}) {{ $p = fork; if (!$p) {{ fork; exit }} waitpid $p, 0 }}"
    rung.machine.exec(["perl", "-e", script], timeout=120, check=True)
    left = "ps -eo stat,comm | grep -c '^Z.*perl'"  # a workspace sees those of all the host
    until(lambda: int(rung.machine.exec(left).stdout) < 20, 60)


@case(10)
def test_the_agent_is_killed_from_inside(rung: Rung, victim: Machine) -> None:
    """Every process above a command that is the agent's. Where that is not the kernel's to refuse, the machine's end
    is told, and the host wakes it and destroys it all the same."""
    victim.files.write(f"{home(victim)}/kept", b"kept", sync=True)
    above = """
pid=$PPID
while [ "$pid" -gt 0 ]; do
  above=$(sed 's/.*) . //; s/ .*//' /proc/$pid/stat); name=$(cat /proc/$pid/comm)
  case $name in roost*|*agent*|init) echo $pid ;; esac
  pid=$above
done"""
    assert victim.exec(above, timeout=20).stdout.split(), "no agent is found"
    said = ends(
        victim, f"{above} | tac | while read pid; do kill -9 $pid; done; sleep 3; echo on", 20
    )
    assert said in ("on\n", "AGENT_LOST", "MACHINE_FAILED", "TIMEOUT", ""), said

    def settled() -> bool:
        if victim.refresh().phase == "failed":
            victim.wake()
        with contextlib.suppress(RoostError):
            return victim.exec("cat ~/kept", timeout=20).stdout == "kept"
        return False

    until(settled)
    victim.sleep()
    assert victim.exec("cat ~/kept", timeout=60).stdout == "kept"
