"""Best of N: all children of an exploration running, in units of one fork; many through few places; promote; diff.

What is measured of ``explore`` is the time until ``run`` was called in every child, by the SDK and over HTTP.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from bench.report import Report
from roost import Machine, explore

DRIVERS = ("gvisor", "runc", "qemu")
WAYS = 8
MANY = 100
MEMORY_MIB = 256


def run(report: Report, n: int) -> None:
    for driver in DRIVERS:
        rounds = max(3, n // 4)
        if driver == "qemu":
            rounds = min(rounds, 5)
        _side_by_side(report, driver, rounds)
    _many(report, "gvisor")
    _many(report, "runc")


def _side_by_side(report: Report, driver: str, rounds: int) -> None:
    one, eight, promoted, compared = [], [], [], []
    with Machine.create(driver=driver, memory_mib=MEMORY_MIB, autosleep="never") as base:
        base.exec("mkdir -p /workspace && seq 1000 > /workspace/a").check()
        _forked(base)  # what is made once
        for _ in range(rounds):
            one.append(_forked(base))
            begun = time.perf_counter()
            came: list[float] = []

            def arrived(child: Any, strategy: int, since: float = begun) -> int:
                came.append((time.perf_counter() - since) * 1e3)  # noqa: B023
                child.exec(["/bin/true"]).check()
                return 0

            explore(base, range(WAYS), arrived, keep="none", diff=False)
            assert len(came) == WAYS
            eight.append(max(came))
    report.add(f"one fork, {driver}", "ms", one)
    report.add(f"{WAYS}-way explore, all running, {driver}", "ms", eight, raw=one, bound=4.0)
    base = Machine.create(driver=driver, memory_mib=MEMORY_MIB, autosleep="never")
    try:
        for _ in range(rounds):
            child = base.fork()
            assert isinstance(child, Machine)
            child.exec("seq 1001 > /workspace/a 2>/dev/null || seq 9 > /root/a").check()
            begun = time.perf_counter()
            base.diff(child)
            compared.append((time.perf_counter() - begun) * 1e3)
            begun = time.perf_counter()
            child.promote(base, previous="keep")
            promoted.append((time.perf_counter() - begun) * 1e3)
            base.destroy()
            base = child
    finally:
        base.destroy()
    report.add(f"diff of parent and child, whole disk, {driver}", "ms", compared)
    report.add(f"promote, {driver}", "ms", promoted)


def _forked(base: Machine) -> float:
    begun = time.perf_counter()
    child = base.fork()
    took = (time.perf_counter() - begun) * 1e3
    assert isinstance(child, Machine)
    child.destroy()
    return took


def _many(report: Report, driver: str, parallel: int = 4) -> None:
    """Without a failure, or it says which."""
    with Machine.create(driver=driver, memory_mib=MEMORY_MIB, autosleep="never") as base:
        begun = time.perf_counter()
        found = explore(
            base,
            range(MANY),
            lambda child, number: child.exec(f"echo {number} > /root/{number}").check(),
            parallel=parallel,
            keep="none",
            diff=False,
        )
        took = time.perf_counter() - begun
    failed = [each for each in found.attempts if each.error is not None]
    for each in failed:
        print(f"   (attempt {each.index} failed: {each.error!r})")
    report.add(
        f"{MANY} tasks, {parallel} at once: failures, {driver}", "", [float(len(failed))], bound=0
    )
    report.add(f"{MANY} tasks, {parallel} at once: each, {driver}", "ms", [took / MANY * 1e3])
    runs = [(each.duration_s or 0.0) * 1e3 for each in found.attempts]
    report.add(f"  their own work, {driver}", "ms", [statistics.median(runs)])
