"""The shipped templates on each rung: from the create request until what they start answers.

`browser` against `base`, in turns: with baked memory a machine in which Chromium runs is one that begins elsewhere. The
templates must be built (`roost template build NAME`), and the daemon run with ROOST_WARM_MACHINES=0.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable

from bench.report import Report, paired
from bench.warm import require_cold
from roost import Machine, RoostError

DRIVERS = ("gvisor", "qemu", "runc")
BAKED = ("gvisor", "qemu")
# What is asked of each once it is made; what starts nothing runs a command.
ASKED: dict[str, tuple[int, str] | None] = {
    "base": None,
    "agent": None,
    "browser": (9222, "/json/version"),
    "desktop": (6080, "/"),
    "code-interpreter": (7114, "/ready"),
}
FEW = 3  # of those that boot


def run(report: Report, n: int) -> None:
    require_cold()
    for driver in DRIVERS:
        for template in ASKED:
            _template(report, driver, template, n)
        if driver in BAKED:
            _browser(report, driver, n)


def _template(report: Report, driver: str, template: str, n: int) -> None:
    """The first makes the bake, where there is one to make."""
    begun = time.perf_counter()
    try:
        _until_it_answers(driver, template)
    except RoostError as error:
        print(f"{template} on {driver}: does not work: {error}")
        return
    first = time.perf_counter() - begun
    samples = [_until_it_answers(driver, template) for _ in range(n if driver in BAKED else FEW)]
    report.add(f"{template} on {driver}: create -> answers", "ms", samples)
    print(f"   (the first of all took {first:.1f} s)")


def _browser(report: Report, driver: str, n: int) -> None:
    ours, base = paired(n, _of(driver, "browser"), _of(driver, "base"))
    name = f"browser create -> CDP, to base create -> exec, {driver}"
    report.add(name, "ms", ours, base, bound=1.5)


def _of(driver: str, template: str) -> Callable[[], float]:
    return lambda: _until_it_answers(driver, template)


def _until_it_answers(driver: str, template: str) -> float:
    begun = time.perf_counter()
    m = Machine.create(template, driver=driver)
    try:
        asked = ASKED[template]
        if asked is None:
            m.exec(["/bin/true"]).check()
        else:
            port, path = asked
            with (
                m.forward(port) as here,
                urllib.request.urlopen(f"http://127.0.0.1:{here.port}{path}", timeout=60) as answer,
            ):
                answer.read()
        return (time.perf_counter() - begun) * 1e3
    finally:
        m.destroy()
