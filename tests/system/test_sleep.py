"""Machines nobody uses, on every rung: frozen, then on the disk, and back with the next call as if nothing was."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from roost import AsyncMachine, ConflictError, Machine
from roost.guest import Guests

from . import clocks
from .conftest import Daemon

pytestmark = pytest.mark.system
PATIENCE_S = 60.0
# Counts every tenth of a second, in memory alone.
COUNTER = """
cat >/root/counter.py <<'PY'
import os, time
n = 0
while True:
    n += 1
    with open('/dev/shm/.new', 'w') as f:
        f.write(str(n))
    os.rename('/dev/shm/.new', '/dev/shm/count')
    time.sleep(0.1)
PY
nohup python3 /root/counter.py >/dev/null 2>&1 </dev/null &
until test -e /dev/shm/count; do sleep 0.1; done
sync
"""
KEEPS_MEMORY = {"gvisor": True, "runc": False, "qemu": True}


def until(what: Callable[[], object], within_s: float = PATIENCE_S) -> None:
    begun = time.monotonic()
    while not what():
        assert time.monotonic() - begun < within_s, "it does not come"
        time.sleep(0.05)


def tier(m: Machine) -> str:
    m.refresh()
    return m.tier or m.phase


def run(m: Machine, command: str) -> str:
    done = m.exec(command, timeout=PATIENCE_S)
    assert done.ok, (command, done)
    return done.stdout.strip()


def count(m: Machine) -> int:
    return int(run(m, "cat /dev/shm/count"))


@pytest.fixture(scope="module", params=list(KEEPS_MEMORY))
def machine(request: pytest.FixtureRequest, daemon: Daemon, guests: Guests) -> Iterator[Machine]:
    with Machine.create(
        driver=request.param, memory_mib=256, autosleep="never", hibernate_after="never"
    ) as m:
        run(m, COUNTER)
        yield m


@pytest.fixture(autouse=True)
def awake(machine: Machine) -> None:
    machine.update(autosleep="never", hibernate_after="never")
    machine.wake()


def ticks(begun: float, but: float) -> float:
    """The most it can have counted since then, with so many seconds frozen."""
    return 10 * (time.monotonic() - begun - but) + 5


def frozen(m: Machine) -> None:
    m.update(autosleep="1s")
    until(lambda: tier(m) == "frozen" and m.phase == "sleeping")  # not still on its way there
    m.update(autosleep="never")


def test_idle_it_is_frozen_and_the_next_call_does_not_notice(machine: Machine) -> None:
    before, begun = count(machine), time.monotonic()
    frozen(machine)
    time.sleep(4)
    after = count(machine)  # which woke it
    assert tier(machine) == "running"
    assert before < after < before + ticks(begun, but=4)
    assert clocks.is_right(machine)
    until(lambda: count(machine) > after)


def test_twenty_callers_wake_it_once(machine: Machine) -> None:
    frozen(machine)
    revision = machine.refresh().revision
    with ThreadPoolExecutor(20) as pool:
        said = list(pool.map(lambda n: machine.exec(["echo", str(n)]).stdout, range(20)))
    assert said == [f"{n}\n" for n in range(20)]
    assert machine.refresh().revision == revision + 2  # waking, running


def test_frozen_for_long_it_goes_to_the_disk_and_comes_back(
    machine: Machine, daemon: Daemon
) -> None:
    keeps = KEEPS_MEMORY[machine.isolation["driver"]]
    before = count(machine)
    machine.update(autosleep="1s", hibernate_after="2s")
    deepest = "hibernated" if keeps else "stopped"
    until(lambda: tier(machine) == deepest)
    machine.update(autosleep="never", hibernate_after="never")
    assert clocks.is_right(machine)
    if keeps:
        assert count(machine) > before
        return
    assert run(machine, "test -e /dev/shm/count || echo gone") == "gone"  # and says so:
    assert not machine.to_json()["memory_kept"]
    run(machine, COUNTER)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stop", "kill"])
def test_frozen_it_outlasts_the_daemon(
    machine: Machine, daemon: Daemon, how: signal.Signals
) -> None:
    before, begun = count(machine), time.monotonic()
    machine.sleep("frozen")
    still = time.monotonic()
    daemon.restart(how)
    time.sleep(1)
    still = time.monotonic() - still
    assert tier(machine) == "frozen"
    after = count(machine)
    assert before <= after < before + ticks(begun, but=still)
    until(lambda: count(machine) > after)


def test_a_command_that_runs_keeps_it_awake_and_goes_on_over_a_sleep(machine: Machine) -> None:
    execution = machine.start("for i in $(seq 30); do echo $i; sleep 0.5; done")
    machine.update(autosleep="1s")
    time.sleep(2)
    assert tier(machine) == "running"
    machine.update(autosleep="never")
    machine.sleep("frozen")
    time.sleep(1)
    assert execution.refresh().running
    assert tier(machine) == "frozen"  # asking did not wake it
    machine.wake()
    assert execution.wait(PATIENCE_S).stdout.split() == [str(i) for i in range(1, 31)]


def test_a_command_goes_on_after_its_memory_was_on_the_disk(machine: Machine) -> None:
    if not KEEPS_MEMORY[machine.isolation["driver"]]:
        pytest.skip("this rung keeps no memory")
    execution = machine.start("read x; echo got $x", stdin_stream=True)
    failed: list[ConflictError] = []

    def wait() -> None:
        try:
            machine.exec("sleep 15; echo late > /root/late")
        except ConflictError as error:
            failed.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(1)
    assert machine.sleep("hibernated").tier == "hibernated"
    waiting.join(PATIENCE_S)
    assert [error.code for error in failed] == ["INVALID_STATE"]
    assert execution.refresh().running
    execution.write_stdin("it\n", eof=True)  # wakes it
    assert execution.wait(PATIENCE_S).stdout == "got it\n"
    until(lambda: run(machine, "cat /root/late 2>/dev/null || true") == "late")


def test_a_terminal_keeps_it_awake_and_the_shell_keeps_its_history(machine: Machine) -> None:
    terminal = machine.terminal(shell="/bin/bash")
    machine.update(autosleep="1s")
    terminal.send("echo kept-$((40+2))\n")
    terminal.read_until("kept-42", timeout=PATIENCE_S)
    time.sleep(2)
    assert tier(machine) == "running"
    machine.update(autosleep="never")
    terminal.detach()  # the shell lives on, until its machine's memory ends
    machine.sleep("stopped")
    assert "echo kept-$((40+2))" in run(machine, "cat /root/.bash_history")
    run(machine, COUNTER)


def test_its_states_are_told_as_they_come(machine: Machine) -> None:
    seen: list[str] = []

    async def follow() -> None:
        followed = await AsyncMachine.get(machine.id)
        async for m in followed.states():
            seen.append(m.tier or m.phase)
            if seen[-1] == "running" and "frozen" in seen:
                return

    async def all_of_it() -> None:
        following = asyncio.create_task(follow())
        while not seen:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(machine.sleep, "frozen")
        while "frozen" not in seen:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(machine.wake)
        await asyncio.wait_for(following, PATIENCE_S)

    asyncio.run(all_of_it())
    assert (seen[0], seen[-1]) == ("running", "running")
