"""``roost inside`` and the option that says what a new machine may ask itself."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.unit.client.stub import MACHINE_ID, Answer, Stub, machine

PATH = f"/v1/machines/{MACHINE_ID}"
Capture = pytest.CaptureFixture[str]
NOW = {"allow": ["expose"], "forks": 8, "forked": 2}


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ([], None),
        (["--allow-inside", "expose"], ["expose"]),
        (["--allow-inside", "expose,fork", "--allow-inside", "sleep"], ["expose", "fork", "sleep"]),
    ],
)
def test_new_machines(
    stub: Stub, roost: Callable[..., int], arguments: list[str], allowed: list[str] | None
) -> None:
    stub.on("POST", "/v1/machines", lambda _: Answer(machine(), 201))
    stub.on("PUT", "/v1/machines/by-key/k", lambda _: machine())
    stub.on("POST", f"{PATH}/fork", lambda _: {"items": [machine()]})
    for command in (["create"], ["ensure", "k"], ["fork", MACHINE_ID]):
        assert roost(*command, *arguments) == 0
        assert stub.seen[-1].json.get("allow_inside") == allowed
    assert roost("create", "--allow-inside", "fly") == 2


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (["--allow", "fork"], {"allow_inside": ["expose", "fork"]}),
        (["--deny", "expose", "--allow", "sleep"], {"allow_inside": ["sleep"]}),
        (["--deny-all"], {"allow_inside": []}),
        (["--forks", "3"], {"inside_forks": 3}),
        ([], None),
    ],
)
def test_changing_it(
    stub: Stub,
    roost: Callable[..., int],
    capsys: Capture,
    arguments: list[str],
    body: dict[str, object] | None,
) -> None:
    stub.on("GET", PATH, lambda _: machine(inside=NOW))
    stub.on("PATCH", PATH, lambda _: machine(inside={**NOW, "allow": ["sleep"]}))
    assert roost("inside", MACHINE_ID, *arguments) == 0
    assert [r.json for r in stub.asked("PATCH", PATH)] == ([] if body is None else [body])
    shown = capsys.readouterr().out
    assert "2 of 8 made" in shown and ("expose" if body is None else "sleep") in shown
    assert roost("inside", MACHINE_ID, "--json") == 0
    assert json.loads(capsys.readouterr().out) == NOW


def test_what_cannot_be_said(stub: Stub, roost: Callable[..., int]) -> None:
    stub.on("GET", PATH, lambda _: machine(inside=NOW))
    assert roost("inside", MACHINE_ID, "--allow", "fly") == 2
    assert roost("inside", MACHINE_ID, "--deny-all", "--allow", "fork") == 2


def test_a_daemon_that_knows_of_none(
    stub: Stub, roost: Callable[..., int], capsys: Capture
) -> None:
    assert roost("inside", MACHINE_ID) == 0
    assert "look at itself" in capsys.readouterr().out
