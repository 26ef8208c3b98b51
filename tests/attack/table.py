"""The table of cases and rungs, from what tests found: pure. ``results.json`` keeps the last of each test and rung.

A case counts as held on a rung when every test of it that means something there ran and did; of which part that is not
so is said. What is known not to hold and
was not tried has a sign of its own. Where the rung itself was not tried but the daemon's own tests were (those need no
machine of a rung), the cell says so by an asterisk.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from .cases import CASES, IN_PART, MEANINGLESS, RUNGS

TESTS = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("results.json")
BEGIN, END = "<!-- attacks: scripts/attacks -->", "<!-- /attacks -->"
_WORST = ("failed", "escapes", "untried", "held", "untested")
_SAID = {"failed": "FAILED", "escapes": "not held", "untried": "not held°", "held": "held"}
_HERE = "tests/attack/"
NOT_RUN = "not run there yet"

Found = dict[str, dict[str, list[str]]]  # test -> rung -> [outcome, why]


def marked(tests: Path = TESTS) -> dict[str, list[str]]:
    """Tests by the cases they are marked with, read and not imported."""
    return {name: numbers for name, numbers, _ in _read(tests)}


def by_hand(tests: Path = TESTS) -> set[str]:
    """Those of them that nothing runs but who says so: marked ``long``."""
    return {name for name, _, long in _read(tests) if long}


def _read(tests: Path) -> Iterator[tuple[str, list[str], bool]]:
    for path in sorted(tests.rglob("test_*.py")):
        module = ast.parse(path.read_text())
        of_all = [
            number
            for node in module.body
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "pytestmark"
            for number in _numbers(ast.walk(node.value))
        ]
        for node in module.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if not node.name.startswith("test_"):
                continue
            numbers = [*of_all, *_numbers(node.decorator_list)]
            if numbers:
                name = f"{tests.name}/{path.relative_to(tests)}::{node.name}"
                marks = (ast.unparse(each) for each in node.decorator_list)
                long = "pytest.mark.long" in marks
                yield name, sorted(set(numbers), key=list(CASES).index), long


def _numbers(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "case":
            yield from (str(arg.value) for arg in node.args if isinstance(arg, ast.Constant))


def load(path: Path = RESULTS) -> Found:
    found: Found = json.loads(path.read_text()) if path.exists() else {}
    return found


def merge(kept: Found, lines: Iterable[str], tests: Mapping[str, object]) -> Found:
    """What a run found replaces what is kept of the same tests on the same rungs, and what earlier runs found; of one
    test's many in it, the worst. Tests that are no more are forgotten."""
    new: Found = {}
    runs: dict[tuple[str, str], int] = {}
    for line in lines:
        said = json.loads(line)
        key = said["test"], said["rung"]
        rungs = new.setdefault(said["test"], {})
        outcome = [said["outcome"], said["why"]]
        if said["run"] > runs.get(key, -1):
            runs[key] = said["run"]
            rungs[said["rung"]] = outcome
        elif said["run"] == runs[key]:
            rungs[said["rung"]] = min(
                rungs[said["rung"]], outcome, key=lambda each: _WORST.index(each[0])
            )
    merged = {test: {**kept.get(test, {}), **new.get(test, {})} for test in tests}
    return {test: dict(sorted(rungs.items())) for test, rungs in sorted(merged.items()) if rungs}


def cell(number: str, rung: str, tests: Mapping[str, list[str]], found: Found) -> tuple[str, str]:
    """What is said of a case on a rung, and why."""
    mine = [found.get(test, {}) for test, numbers in tests.items() if number in numbers]
    here = [each[rung] for each in mine if rung in each]
    ran = [each for each in here if each[0] != "untested"]
    if ran:
        outcome = min((each[0] for each in ran), key=_WORST.index)
        whys = [why for each, why in ran if each == outcome and why]
        if outcome == "escapes":
            whys += [f"not tried: {why}" for each, why in ran if each == "untried"]
        if outcome == "held":
            whys += [f"a part untested: {why}" for each, why in here if each == "untested"]
            whys += [IN_PART[number][rung]] if rung in IN_PART.get(number, {}) else []
        return _SAID[outcome], "; ".join(dict.fromkeys(whys))
    if here:
        return "untested", "; ".join(dict.fromkeys(why for _, why in here))
    if rung in MEANINGLESS.get(number, {}):
        return "untested", MEANINGLESS[number][rung]
    general = [each["any"] for each in mine if "any" in each]
    if any(outcome == "failed" for outcome, _ in general):
        return "FAILED", ""
    if any(outcome == "held" for outcome, _ in general):
        return "held*", ""
    whys = dict.fromkeys(why for _, why in general if why)
    return "untested", "; ".join(whys) or NOT_RUN


def render(tests: Mapping[str, list[str]], found: Found) -> str:
    reasons: dict[str, int] = {}
    rows = [
        f"| | case | {' | '.join(RUNGS.values())} |",
        f"|---|---|{'---|' * len(RUNGS)}",
    ]
    for number, title in CASES.items():
        cells = []
        for rung in RUNGS:
            said, why = cell(number, rung, tests, found)
            if why:
                said += f" ({reasons.setdefault(why, len(reasons) + 1)})"
            cells.append(said)
        rows.append(f"| {number} | {title} | {' | '.join(cells)} |")
    notes = [f"{n}. {_clean(why)}" for why, n in reasons.items()]
    if named := "; ".join(elsewhere(tests, found)):
        notes += ["", f"By tests outside of `tests/attack` alone: {named}."]
    return "\n".join([*rows, "", *notes])


def elsewhere(tests: Mapping[str, list[str]], found: Found) -> Iterator[str]:
    """Cases and the rungs on which no test held that looks after itself at daemon, neighbour, canaries and database."""
    for number in CASES:
        alone = []
        for rung, title in RUNGS.items():
            held = [
                test
                for test, numbers in tests.items()
                if number in numbers and found.get(test, {}).get(rung, ("",))[0] == "held"
            ]
            if held and not any(test.startswith(_HERE) for test in held):
                alone.append(title)
        if alone:
            yield f"{number} ({', '.join(alone)})"


def _clean(why: str) -> str:
    return why.replace("|", "\\|").replace("\n", " ")


def within(page: str, table: str) -> str:
    """The page with the table between its marks. ValueError where it has none."""
    before, mark, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"
