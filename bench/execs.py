"""Exec of ``true`` back to back through the API against the runtime's own exec in the same machine."""

from __future__ import annotations

import subprocess

from bench.raw import exec_true
from bench.report import Report, ms, paired
from roost import Machine

BOUNDS = {"gvisor": 0.7, "runc": 0.5}


def run(report: Report, n: int) -> None:
    for driver, bound in BOUNDS.items():
        with Machine.create(driver=driver) as m:
            raw_exec = exec_true(driver, m.id)
            ours, raw = paired(
                max(n, 60),
                lambda m=m: ms(lambda: m.exec(["/bin/true"])),  # type: ignore[misc]
                lambda c=raw_exec: ms(lambda: subprocess.run(c, check=True)),  # type: ignore[misc]
                block=20,
            )
        report.add(f"exec true, {driver}", "ms", ours, raw, bound=bound)
