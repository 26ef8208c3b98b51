"""From the create request to the reply of the first exec, where a warm machine is ready."""

from __future__ import annotations

import time

from bench.report import Report
from roost import Client, Machine

DRIVERS = ("gvisor", "runc", "qemu")
WAIT_S = 120.0


def run(report: Report, n: int) -> None:
    if not kept():
        print("   (warm: the daemon runs with ROOST_WARM_MACHINES=0; nothing to measure)")
        return
    for driver in DRIVERS:
        created, both = [], []
        Machine.create(driver=driver).destroy()
        for _ in range(n):
            _until_ready()
            begun = time.perf_counter()
            m = Machine.create(driver=driver)
            made = time.perf_counter()
            m.exec(["/bin/true"]).check()
            created.append((made - begun) * 1e3)
            both.append((time.perf_counter() - begun) * 1e3)
            m.destroy()
        report.add(f"create, a warm machine ready, {driver}", "ms", created)
        report.add(f"  -> first exec, {driver}", "ms", both)


def _warm() -> dict[str, int]:
    found: dict[str, int] = Client().host()["capacity"]["warm_machines"]
    return found


def _until_ready() -> None:
    """All of a kind: one that is being made beside would be measured, too."""
    deadline = time.monotonic() + WAIT_S
    while True:
        warm = _warm()
        if warm["ready"] >= warm["of_each_kind"] and warm["ready"] % warm["of_each_kind"] == 0:
            time.sleep(0.5)
            return
        if time.monotonic() > deadline:
            raise SystemExit("no warm machine was made; see `roost logs --daemon`")
        time.sleep(0.2)


def kept() -> bool:
    return bool(_warm()["of_each_kind"])


def require_cold() -> None:
    if kept():
        raise SystemExit(
            "this measures creates from nothing: start the daemon with ROOST_WARM_MACHINES=0"
        )
