"""From the create request to the reply of the first exec, against the raw runtime on the same bundle."""

from __future__ import annotations

import time

from bench.raw import RawRuntime
from bench.report import Report, paired
from bench.warm import require_cold
from roost import Machine

BOUNDS = {"gvisor": 1.3, "runc": None}


def run(report: Report, n: int) -> None:
    require_cold()
    for driver, bound in BOUNDS.items():
        raw = RawRuntime(driver)

        def ours(driver: str = driver) -> float:
            begun = time.perf_counter()
            m = Machine.create(driver=driver)
            m.exec(["/bin/true"]).check()
            took = (time.perf_counter() - begun) * 1e3
            m.destroy()
            return took

        try:
            samples, raw_samples = paired(n, ours, raw.first_exec)
        finally:
            raw.close()
        report.add(f"create -> first exec, {driver}", "ms", samples, raw_samples, bound=bound)
