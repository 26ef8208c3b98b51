"""How a machine sleeps and wakes, through the API: frozen and back on every rung, from the disk where it keeps memory."""

from __future__ import annotations

import time

from bench.report import Report
from roost import Machine

DRIVERS = ("gvisor", "runc", "qemu")
TRUE = ["/bin/true"]
WORK = "head -c 64M /dev/urandom >/dev/shm/r"


def run(report: Report, n: int) -> None:
    for driver in DRIVERS:
        with Machine.create(driver=driver, memory_mib=512, autosleep="never") as m:
            m.exec(WORK).check()
            frozen, thawed, answered = [], [], []
            for _ in range(n):
                begun = time.perf_counter()
                m.sleep("frozen")
                slept = time.perf_counter()
                m.wake()
                woken = time.perf_counter()
                m.exec(TRUE).check()
                frozen.append((slept - begun) * 1e3)
                thawed.append((woken - slept) * 1e3)
                answered.append((time.perf_counter() - slept) * 1e3)
            report.add(f"freeze, {driver}", "ms", frozen, bound=10)
            report.add(f"thaw, {driver}", "ms", thawed, bound=10)
            report.add(f"  -> first exec, {driver}", "ms", answered)
            if m.to_json()["memory_kept"]:
                slept_ms, woken_ms = [], []
                for _ in range(max(5, n // 2)):
                    begun = time.perf_counter()
                    m.sleep("hibernated")
                    slept = time.perf_counter()
                    m.exec(TRUE).check()
                    slept_ms.append((slept - begun) * 1e3)
                    woken_ms.append((time.perf_counter() - slept) * 1e3)
                report.add(f"hibernate, 64 MiB in use, {driver}", "ms", slept_ms)
                report.add(f"wake -> first exec, {driver}", "ms", woken_ms)
