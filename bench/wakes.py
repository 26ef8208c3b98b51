"""100 wakes at once of 20 sleeping machines: every one answered, each machine woken once."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

from bench.report import Report
from roost import Machine

MACHINES, CALLS = 20, 100
DRIVER = os.environ.get("ROOST_BENCH_DRIVER", "gvisor")


def run(report: Report, n: int) -> None:
    del n
    made: list[Machine] = []

    def create(i: int) -> None:
        m = Machine.create(driver=DRIVER, memory_mib=256, vcpu=0.25, autosleep="never")
        made.append(m)
        m.exec(f"echo {i} > /root/mine").check()

    def wake(i: int) -> float:
        begun = time.perf_counter()
        m = Machine.get(made[i % MACHINES].id)
        m.wake()
        took = (time.perf_counter() - begun) * 1e3
        assert m.exec("cat /root/mine").stdout.strip().isdigit()
        return took

    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(create, range(MACHINES)))
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda m: m.sleep(), made))
        assert all(Machine.get(m.id).phase == "sleeping" for m in made)
        before = {m.id: _wakes(m) for m in made}
        begun = time.perf_counter()
        with ThreadPoolExecutor(CALLS) as pool:
            samples = list(pool.map(wake, range(CALLS)))
        took = time.perf_counter() - begun
        assert all(_wakes(m) - before[m.id] == 1 for m in made), "a machine was woken twice"
    finally:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda m: m.destroy(), made))
    name = f"{CALLS} wakes at once of {MACHINES} machines asleep, {DRIVER}"
    report.add(f"{name}, each", "ms", samples)
    report.add(
        "  answered, with an exec of each",
        "count",
        [float(len(samples))],
        bound=CALLS,
        at_least=True,
    )
    report.add("  all of them in", "s", [took])


def _wakes(machine: Machine) -> int:
    return sum(1 for each in machine.logs() if each["event"] == "waking")
