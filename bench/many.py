"""50 machines, 8 at a time, without one failure."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from bench.report import Report
from roost import Machine

COUNT, AT_ONCE = 50, 8


def run(report: Report, n: int) -> None:
    del n
    for driver in ("gvisor", "runc"):
        machines: list[Machine] = []

        def one(i: int, driver: str = driver, machines: list[Machine] = machines) -> float:
            begun = time.perf_counter()
            m = Machine.create(driver=driver, memory_mib=256, vcpu=0.25)
            machines.append(m)
            assert m.exec(f"echo {i}").stdout == f"{i}\n"
            return (time.perf_counter() - begun) * 1e3

        begun = time.perf_counter()
        try:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                samples = list(pool.map(one, range(COUNT)))
            took = time.perf_counter() - begun
        finally:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(lambda m: m.destroy(), machines))
        report.add(f"create + exec, {COUNT} machines {AT_ONCE} at once, {driver}", "ms", samples)
        report.add(f"  all {COUNT} in, {driver}", "s", [took])
