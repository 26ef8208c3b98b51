"""Builds: ten steps the first time, and again with nothing changed, and with the last one changed.

Against the raw tool: the same commands in one machine that is there already.
"""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.report import Report
from roost import Machine, Template

DRIVER = os.environ.get("ROOST_BENCH_DRIVER", "runc")
STEPS = 8
FILES = 200


def run(report: Report, n: int) -> None:
    n = max(3, min(n, 10))
    name = f"bench-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory)
        (tree / "src").mkdir()
        for each in range(FILES):
            (tree / "src" / str(each)).write_bytes(os.urandom(4096))
        try:
            _measure(report, n, name, tree)
        finally:
            for made in Template.list(unnamed=True):
                if made.name == name:
                    made.delete()


def _measure(report: Report, n: int, name: str, tree: Path) -> None:
    def build(last: str, no_cache: bool = False) -> float:
        steps = "".join(f"RUN echo {each} > /root/{each}\n" for each in range(STEPS))
        (tree / "Dockerfile").write_text(f"FROM base\nCOPY src /srv/\n{steps}RUN {last}\n")
        begun = time.perf_counter()
        Template.build(name, tree, driver=DRIVER, no_cache=no_cache)
        return (time.perf_counter() - begun) * 1e3

    first = [build("true", no_cache=True) for _ in range(3)]
    cached = [build("true") for _ in range(n)]
    changed = [build(f"echo {each}") for each in range(n)]
    with Machine.create(driver=DRIVER) as m:
        raw = [_timed(lambda: [m.exec("true") for _ in range(STEPS + 1)]) for _ in range(n)]
    steps = f"{STEPS + 2} steps, {DRIVER}"
    # The raw tool: its commands alone, in a machine that runs already.
    report.add(f"build, {steps}, nothing cached", "ms", first, raw)
    report.add(f"build, {steps}, everything cached", "ms", cached, bound=2000)
    report.add(f"build, {steps}, the last one changed", "ms", changed)


def _timed(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1e3
