"""The table of attacks is what the tests found, and no case is without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.attack import record, table
from tests.attack.cases import CASES, IN_PART, RUNGS

SPECIFICATION = Path(__file__).parents[2] / "SPECIFICATION.md"


def test_the_table_is_what_was_found() -> None:
    page = SPECIFICATION.read_text()
    made = table.within(page, table.render(table.marked(), table.load()))
    assert page == made, "run scripts/attacks"


def test_every_case_has_a_test() -> None:
    tried = {number for numbers in table.marked().values() for number in numbers}
    assert set(CASES) - tried == set()


def test_every_test_of_a_case_was_run() -> None:
    assert set(table.marked()) - table.by_hand() - set(table.load()) == set()


def test_nothing_failed() -> None:
    failed = {
        (test, rung)
        for test, rungs in table.load().items()
        for rung, (outcome, _) in rungs.items()
        if outcome == "failed"
    }
    assert failed == set()


def line(test: str, rung: str, outcome: str, why: str = "", run: int = 1) -> str:
    return json.dumps({"run": run, "test": test, "rung": rung, "outcome": outcome, "why": why})


def test_the_worst_counts_and_the_last_run_replaces() -> None:
    tests = {"t.py::test_a": ["1"], "t.py::test_b": ["1", "42"]}
    first = [
        line("t.py::test_a", "runc", "held"),
        line("t.py::test_a", "runc", "failed", "it got out"),
        line("t.py::test_b", "runc", "held"),
        line("t.py::test_gone", "runc", "held"),
    ]
    found = table.merge({}, first, tests)
    assert table.cell("1", "runc", tests, found) == ("FAILED", "it got out")
    assert "t.py::test_gone" not in found
    again = [line("t.py::test_a", "runc", "held"), line("t.py::test_a", "qemu", "escapes", "why")]
    found = table.merge(found, again, tests)
    assert table.cell("1", "runc", tests, found) == ("held", "")
    assert table.cell("1", "qemu", tests, found) == ("not held", "why")
    assert table.cell("42", "runc", tests, found) == ("held", "")
    mended = [line("t.py::test_b", "runc", "held", run=3), line("t.py::test_b", "runc", "failed")]
    assert table.merge({}, mended, tests)["t.py::test_b"]["runc"] == ["held", ""]


def test_what_was_not_tried_is_told_from_what_got_out_and_hides_behind_nothing_that_held() -> None:
    tests = {"t.py::test_a": ["1"], "t.py::test_b": ["1", "42"]}
    lines = [
        line("t.py::test_a", "workspace", "untried", "it would harm the host"),
        line("t.py::test_b", "workspace", "held"),
    ]
    found = table.merge({}, lines, tests)
    assert table.cell("1", "workspace", tests, found) == ("not held°", "it would harm the host")
    assert table.cell("42", "workspace", tests, found) == ("held", "")
    got_out = [line("t.py::test_b", "workspace", "escapes", "no group", run=2)]
    found = table.merge(found, got_out, tests)
    assert table.cell("1", "workspace", tests, found) == (
        "not held",
        "no group; not tried: it would harm the host",
    )


def test_what_was_left_out_of_a_case_that_held_is_told() -> None:
    tests = {"t.py::test_a": ["3"], "t.py::test_b": ["3"], "t.py::test_c": ["51"]}
    lines = [
        line("t.py::test_a", "gvisor", "held"),
        line("t.py::test_b", "gvisor", "untested", "no inodes"),
        line("t.py::test_c", "user", "held"),
    ]
    found = table.merge({}, lines, tests)
    assert table.cell("3", "gvisor", tests, found) == ("held", "a part untested: no inodes")
    assert table.cell("51", "user", tests, found) == ("held", IN_PART["51"]["user"])


def test_tests_that_run_by_hand_are_known() -> None:
    assert "tests/system/faults/test_sweep.py::test_killed_at_every_boundary" in table.by_hand()


@pytest.mark.parametrize(
    ("wasxfail", "said"),
    [
        ("reason: no group", ("escapes", "no group")),
        ("reason: [NOTRUN] no network", ("untried", "no network")),
        ("[NOTRUN] no network", ("untried", "no network")),
    ],
)
def test_an_expected_failure_is_recorded_as_tried_or_not(
    wasxfail: str, said: tuple[str, str]
) -> None:
    report = pytest.TestReport("t", ("t", 0, "t"), {}, "skipped", None, "call", wasxfail=wasxfail)
    assert record._said(report) == said


def test_what_rests_on_tests_elsewhere_alone_is_named() -> None:
    tests = {"tests/attack/t.py::test_a": ["1"], "tests/system/t.py::test_b": ["1", "50"]}
    lines = [line(test, rung, "held") for test in tests for rung in ("runc", "qemu")]
    found = table.merge({}, lines, tests)
    assert list(table.elsewhere(tests, found)) == ["50 (runc, microVM)"]
    assert "`tests/attack` alone: 50 (runc, microVM)." in table.render(tests, found)


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        ([("any", "held", "")], ("held*", "")),
        ([("any", "held", ""), ("runc", "untested", "no runc")], ("untested", "no runc")),
        ([("any", "untested", "needs root")], ("untested", "needs root")),
        ([("qemu", "held", "")], ("untested", table.NOT_RUN)),
        ([], ("untested", table.NOT_RUN)),
    ],
)
def test_what_a_rung_is_said_to_hold(
    outcomes: list[tuple[str, str, str]], said: tuple[str, str]
) -> None:
    tests = {"t.py::test_a": ["1"]}
    found = table.merge({}, [line("t.py::test_a", *each) for each in outcomes], tests)
    assert table.cell("1", "runc", tests, found) == said
    assert all(f"| {number} |" in table.render(tests, found) for number in CASES)
    assert set(RUNGS) == {"workspace", "user", "runc", "gvisor", "qemu"}
