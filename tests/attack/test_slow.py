"""32, F1, F2: a machine that stands still, or whose main process the host loses, is waited for by its own callers alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from roost import Machine, RoostError
from tests.system.conftest import Daemon
from tests.system.faults import state

from .record import case
from .rung import Rung, home, until


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def main_process(led: Daemon, machine_id: str) -> int:
    (row,) = state.rows(led, "select handle from machines where id = ?", machine_id)
    return int(json.loads(row["handle"])["pid"])


@case(32)
def test_one_that_stands_still_holds_up_nobody(rung: Rung, led: Daemon) -> None:
    """Its caller hears so, in the time that was given and what the daemon allows an agent beyond it."""
    with rung.another() as m:
        m.exec("true")
        with stopped(main_process(led, m.id)), ThreadPoolExecutor(1) as pool:
            waits = pool.submit(lambda: m.exec("true", timeout=2))
            time.sleep(0.5)
            assert not waits.done(), "nobody waits for it"
            for _ in range(3):
                begun = time.monotonic()
                assert rung.neighbour.exec("echo on", timeout=30).stdout == "on\n"
                assert time.monotonic() - begun < 30
            assert isinstance(waits.exception(150), RoostError)
        until(lambda: m.exec("echo on", timeout=30).stdout == "on\n")


@case("F2")
def test_one_whose_main_process_is_killed_says_so_and_comes_back(rung: Rung, led: Daemon) -> None:
    with rung.another() as m:
        m.files.write(f"{home(m)}/kept", b"kept", sync=True)
        running = m.executions.start(["sleep", "300"])
        os.kill(main_process(led, m.id), signal.SIGKILL)
        until(lambda: m.refresh().phase == "failed", 30)
        assert m.to_json()["status"]["reason"]
        until(lambda: running.refresh().status == "failed", 30)
        m.wake()
        assert m.exec("cat ~/kept", timeout=60).stdout == "kept"


@case("F1")
def test_a_killed_daemon_is_followed_by_one_that_knows_it(rung: Rung, led: Daemon) -> None:
    running = rung.machine.executions.start("sleep 2; echo done")
    led.restart(signal.SIGKILL)
    assert rung.machine.exec("echo on", timeout=60).stdout == "on\n"
    until(lambda: running.refresh().status == "succeeded", 30)


@case("F1")
@pytest.mark.parametrize("delay", [0.03, 0.15, 0.4])
def test_killed_amid_a_create_or_destroy_nothing_is_left(
    rung: Rung, led: Daemon, delay: float
) -> None:
    """What was acknowledged is there, what was not is gone or whole; what the host has is what the rows say (the oracle
    of every case)."""

    def come_and_go() -> None:
        with contextlib.suppress(RoostError, httpx.HTTPError):
            rung.another(labels={"made": "amid"}).destroy()

    threads = [threading.Thread(target=come_and_go) for _ in range(2)]
    for each in threads:
        each.start()
    time.sleep(delay)
    led.restart(signal.SIGKILL)
    for each in threads:
        each.join(120)
    for left in Machine.list(labels={"made": "amid"}):
        left.destroy()
