"""What is claimed of a rung: from one place, with how it is known, and "sandboxed" of none below a container."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest
import typer

from roost import claims, web
from roost.api.v1.app import create_app
from roost.cli._commands import COMMANDS
from roost.drivers import registry
from roost.drivers.interface import LEVELS, Isolation
from roost.settings import Settings

ROOT = Path(__file__).parents[2]
BELOW = [name for name in claims.names() if claims.contract(name, {}).level < 2]  # type: ignore[union-attr]
# What names a rung below a container, in our documents and help.
_BELOW = re.compile(
    r"\brungs? [01]\b|rungs 0[ -]|\b[01] (?:workspace|user)\b|isolated workspace|level(?:s)? [01]\b|[`'\"](?:workspace|user)[`'\"]",
    re.IGNORECASE,
)
_WORD = re.compile(r"sandbox", re.IGNORECASE)


def sentences() -> Iterator[tuple[str, str]]:
    """Where, and one sentence, table row, help text, or text that the command line prints or the SDK's docstrings say."""
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")):
        yield from ((path.name, each) for each in _split(path.read_text()))
    for place in ("cli", "client"):
        for path in (ROOT / "src/roost" / place).rglob("*.py"):
            for text in _literals(path.read_text()):
                yield from ((f"{place}/{path.name}", each) for each in _split(text))
    for name, (module, told) in COMMANDS.items():
        yield f"roost {name}", told
        command = typer.main.get_command(import_module(f"roost.cli.{module}").app)
        yield from _helped(f"roost {name}", command)
    yield from _described("openapi", create_app(cast(Any, None)).openapi())


def _split(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n|\n(?=[|#*-])", text):
        for each in re.split(r"(?<=[.;:!?])\s+", paragraph):
            yield " ".join(each.split())


def _literals(code: str) -> Iterator[str]:
    """Every string in it; of one that is put together, its parts as one."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(each.value) if isinstance(each, ast.Constant) else "..." for each in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _described(where: str, value: object) -> Iterator[tuple[str, str]]:
    """All text of a document of JSON."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _described(f"{where}.{name}", each)
    elif isinstance(value, list):
        for each in value:
            yield from _described(where, each)
    elif isinstance(value, str):
        yield where, value


def _helped(name: str, command: object) -> Iterator[tuple[str, str]]:
    yield f"{name} --help", str(getattr(command, "help", "") or "")
    for param in getattr(command, "params", ()):
        yield f"{name} --help", str(getattr(param, "help", "") or "")
    for sub, below in getattr(command, "commands", {}).items():
        yield from _helped(f"{name} {sub}", below)


def test_no_document_and_no_help_says_it_of_a_rung_that_is_none() -> None:
    wrong = [
        (where, text) for where, text in sentences() if _WORD.search(text) and _BELOW.search(text)
    ]
    assert not wrong


@pytest.mark.parametrize("path", web.PATHS)
def test_no_page_says_it(path: str) -> None:
    assert not _WORD.search(web.read(path)[0].decode())


@pytest.mark.parametrize("name", BELOW)
@pytest.mark.parametrize("known", [True, False])
def test_the_contract_of_a_rung_below_never_says_it(name: str, known: bool) -> None:
    contract = claims.contract(name, dict.fromkeys(claims.FACTS, known))
    assert contract is not None
    assert not _WORD.search(json.dumps(contract.to_json()))
    assert contract.claim.startswith("isolated workspace")
    for unrestricted in (True, False):
        assert not _WORD.search(json.dumps(claims.warnings(contract.level, unrestricted)))


def test_the_code_of_a_rung_below_never_says_it() -> None:
    places = [f"drivers/{name}*" for name in BELOW]
    for place in (*places, "drivers/confined.py", "*/account.py", "storage/homes.py"):
        found = list((ROOT / "src/roost").glob(place))
        assert found, place
        for path in found:
            files = path.rglob("*.py") if path.is_dir() else [path]
            assert not [file for file in files if _WORD.search(file.read_text())]


@pytest.mark.parametrize(
    "code",
    [
        'def f():\n    """One of rung 0 is a sandbox."""',
        "say(f'a {name} is sandboxed on rung 1')",
        "driver: str  # not looked at\nhelp('A `user` machine is sandboxed.')",
        "\"sandboxed as 'workspace' is\"",
    ],
)
def test_text_in_code_is_found(code: str) -> None:
    said = [each for text in _literals(code) for each in _split(text)]
    assert any(_WORD.search(each) and _BELOW.search(each) for each in said)


def test_a_rung_that_is_a_boundary_says_by_what() -> None:
    for name in claims.names():
        if name not in BELOW:
            assert all(each.startswith("sandboxed by ") for each in claims.sentences(name))


@pytest.mark.parametrize("name", registry.names())
def test_every_driver_claims_a_sentence_of_its_contract(name: str, tmp_path: Path) -> None:
    settings = Settings.model_construct(data_dir=tmp_path, run_dir=tmp_path)
    capabilities = registry.create(name, settings).capabilities()
    assert capabilities.claim in claims.sentences(name)
    assert capabilities.boundary in {
        claims.boundary(name, accelerated=each) for each in (True, False)
    }
    contract = claims.contract(name, {})
    assert contract is not None
    assert (contract.level, claims.isolation(name)) == (
        capabilities.level,
        capabilities.isolation.value,
    )


def test_levels_are_the_drivers() -> None:
    assert {claims.isolation(name) for name in claims.names()} == {each.value for each in Isolation}
    for name in claims.names():
        contract = claims.contract(name, {})
        assert contract is not None
        assert contract.level == LEVELS[Isolation(claims.isolation(name))]


def test_the_tests_that_lines_name_are_there() -> None:
    missing = [each for each in claims.tests() if not (ROOT / each).exists()]
    assert not missing


@pytest.mark.parametrize("name", claims.names())
def test_every_line_says_how_it_is_known(name: str) -> None:
    for facts in ({}, dict.fromkeys(claims.FACTS, True), dict.fromkeys(claims.FACTS, False)):
        contract = claims.contract(name, facts)
        assert contract is not None
        lines = (*contract.can, *contract.defends_against, *contract.does_not)
        assert {each.known for each in lines} <= {
            claims.MEASURED,
            claims.TESTED,
            claims.UNVERIFIED,
        }
        assert all(each.text and each.by for each in lines)
        assert contract.defends_against or name == "workspace"
        assert contract.does_not


def test_what_was_not_found_here_is_not_claimed() -> None:
    with_it = claims.contract("workspace", {"landlock": True})
    without = claims.contract("workspace", {"landlock": False})
    unknown = claims.contract("workspace", {})
    assert with_it and without and unknown
    of = "mistakes that write outside its directory"
    assert [line.known for line in with_it.defends_against if line.text.startswith(of)] == [
        claims.MEASURED
    ]
    assert not [line for line in without.defends_against if line.text.startswith(of)]
    assert [line for line in without.does_not if line.text.startswith(of)]
    assert [line.known for line in unknown.defends_against if line.text.startswith(of)] == [
        claims.UNVERIFIED
    ]


@pytest.mark.parametrize("name", claims.names())
@pytest.mark.parametrize("found", [True, False])
def test_measured_is_whether_something_is_there_and_no_figure(name: str, found: bool) -> None:
    """How fast it is nobody looks when a contract is asked for."""
    contract = claims.contract(name, dict.fromkeys(claims.FACTS, found))
    assert contract is not None
    for line in (*contract.can, *contract.defends_against, *contract.does_not):
        if line.known == claims.MEASURED:
            assert not re.search(r"second|times|percent|MiB", line.text), line.text


@pytest.mark.parametrize("name", claims.names())
def test_what_a_kernel_may_lack_is_not_said_to_be_there(name: str) -> None:
    """A boundary is told of every machine, whatever was found on its host."""
    said = claims.boundary(name)
    assert said.count("Landlock") == said.count("Landlock where the kernel has it")


def test_where_the_guardrail_lets_programs_write_is_said() -> None:
    source = (ROOT / "agent/src/workspace.rs").read_text()
    places = re.findall(r'"(/[^"]+)"', source.partition("const WRITE")[2].partition(";\n")[0])
    found = claims.contract("workspace", {"landlock": True})
    assert found is not None
    line = next(each for each in found.defends_against if each.text.startswith("mistakes"))
    assert places and all(re.search(rf"(?<!\w){each}\b(?!/)", line.text) for each in places)


def test_a_driver_that_claims_nothing_has_no_contract() -> None:
    assert claims.contract("fake", {}) is None


def test_who_runs_unrestricted_is_warned() -> None:
    assert claims.warnings(0, False) == claims.warnings(3, False) == []
    assert claims.ADVICE in claims.warnings(1, True)[0]
    assert claims.warnings(2, True)


@pytest.mark.parametrize("name", ["user", "systemd"])
def test_a_boundary_claims_no_landlock_that_may_not_be_there(name: str) -> None:
    assert (
        "Landlock where the kernel has it and the machine is not unrestricted"
        in claims.boundary(name)
    )
