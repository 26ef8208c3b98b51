"""What each test of a case found on each rung, kept as lines of JSON in the file that ROOST_ATTACKS names; without it
nothing is kept. ``scripts/attacks`` makes the table of them.

held: the test passed. escapes: an expected failure, with its reason; untried: one that was not run. untested: skipped,
with its reason. failed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .cases import CASES, RUNGS

_RUN = time.time_ns()
_NOT_RUN = "[NOTRUN] "  # pytest's word for what has ``run=False``
_FILE = os.environ.get("ROOST_ATTACKS")  # now: unit tests run without what the environment says


def case(*numbers: int | str, rung: str | None = None) -> Any:
    """Marks a test of these; ``rung``: the one it is on, where none of its parameters says so."""
    names = [str(number) for number in numbers]
    if unknown := set(names) - set(CASES):
        raise ValueError(f"no such case: {unknown}")
    return pytest.mark.case(*names, rung=rung)


def escapes(*rungs: str, reason: str, run: bool = True) -> Any:
    """Marks a test of which it is known that it does not hold on these, and why: a strict expected failure. Without
    ``run`` it is not tried there, where it would harm the host."""
    return pytest.mark.escapes(*rungs, reason=reason, run=run)


def untested(*rungs: str, reason: str) -> Any:
    """Marks a test that means nothing on these, or cannot be tried, and why."""
    return pytest.mark.untested(*rungs, reason=reason)


def rung_of(item: pytest.Item) -> str:
    """By the test's parameters, else by its mark; "any": no machine of a rung is in it."""
    callspec = getattr(item, "callspec", None)
    for value in callspec.params.values() if callspec is not None else ():
        if isinstance(value, str) and value in RUNGS:
            return value
    for mark in item.iter_markers("case"):
        if mark.kwargs.get("rung"):
            return str(mark.kwargs["rung"])
    return "any"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    if _FILE is None or item.get_closest_marker("case") is None:
        return
    report: pytest.TestReport = outcome.get_result()  # type: ignore[attr-defined]
    if (said := _said(report)) is None:
        return
    result, why = said
    test = f"{item.location[0]}::{getattr(item, 'originalname', item.name)}"
    line = {"run": _RUN, "test": test, "rung": rung_of(item), "outcome": result, "why": why}
    with Path(_FILE).open("a") as file:
        file.write(json.dumps(line) + "\n")


def _said(report: pytest.TestReport) -> tuple[str, str] | None:
    if hasattr(report, "wasxfail") and report.skipped:
        why = report.wasxfail.removeprefix("reason: ")
        return "untried" if why.startswith(_NOT_RUN) else "escapes", why.removeprefix(_NOT_RUN)
    if report.skipped:
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        return "untested", why.removeprefix("Skipped: ")
    if report.failed:
        return "failed", str(report.longrepr).splitlines()[-1][:200]
    return ("held", "") if report.when == "call" else None
