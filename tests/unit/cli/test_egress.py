"""``roost egress`` and the options that say what a new machine may reach."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from roost.cli.egress import complete_listed, complete_suggested
from tests.unit.client.stub import MACHINE_ID, Answer, Stub, machine, wire

PATH = f"/v1/machines/{MACHINE_ID}/egress"
Capture = pytest.CaptureFixture[str]


def tried(host: str, allowed: bool, **more: Any) -> dict[str, Any]:
    return {
        "host": host, "port": 443, "protocol": "tcp", "via": "tls", "allowed": allowed,
        "reason": "" if allowed else "not_allowed", "count": 2,
        "first_at": "2026-11-21T01:00:00.000Z", "last_at": "2026-11-21T01:00:09.000Z", **more,
    }  # fmt: skip


def report(*decisions: dict[str, Any], suggested: tuple[str, ...] = (), **policy: Any) -> Any:
    return {
        "mode": "allowlist", "allow": ["python.example", "*.mirror.example"], "observe": False, **policy,
        "decisions": list(decisions),
        "suggested": {
            "allow": list(suggested),
            "wildcards": [{"entry": "*.x.org", "instead_of": ["a.x.org", "b.x.org", "c.x.org"]}],
            "left_out": 0,
        },
    }  # fmt: skip


@pytest.fixture
def patched(stub: Stub) -> Stub:
    policy = {"mode": "allowlist", "allow": ["a.org"], "observe": True}
    stub.on("PATCH", PATH, lambda _: policy)
    return stub


def test_what_was_tried_the_refused_first(
    stub: Stub, roost: Callable[..., int], capsys: Capture
) -> None:
    made = report(
        tried("python.example", True),
        tried("evil\x1b]0;x\x07.org", False),
        tried("192.0.2.1", False, port=0, protocol="icmp", via="packet"),
        tried("", False, port=0, protocol="", via="packet", reason="unlisted"),
        suggested=("a.x.org", "it's.org"),
    )
    stub.on("GET", PATH, lambda _: made)
    assert roost("egress", "user-42") == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[:3] == ["allowlist", "  python.example", "  *.mirror.example"]
    assert "\x1b" not in out
    assert lines[5].startswith("evil^[]0;x\\x07.org") and "refused: not_allowed" in lines[5]
    assert lines[6].split()[:3] == ["192.0.2.1", "icmp", "packet"]
    assert lines[7].split()[:2] == ["(others)", "packet"]
    assert lines[8].split()[:4] == ["python.example", "443/tcp", "tls", "allowed"]
    assert "  or *.x.org instead of 3 of them" in lines
    (command,) = [line[7:] for line in lines if line.startswith("Apply: ")]
    assert shlex.split(command) == [
        "roost", "egress", MACHINE_ID, "--allow", "a.x.org", "--allow", "it's.org",
    ]  # fmt: skip


def test_nothing_was_tried(stub: Stub, roost: Callable[..., int], capsys: Capture) -> None:
    stub.on("GET", PATH, lambda _: report(mode="open", allow=[]))
    assert roost("egress", MACHINE_ID) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("open\n") and "--observe" in shown.err
    stub.on("GET", PATH, lambda _: report(allow=[]))
    assert roost("egress", MACHINE_ID) == 0
    assert capsys.readouterr().out.startswith("allowlist\n  nothing\n")


def test_as_json(patched: Stub, roost: Callable[..., int], capsys: Capture) -> None:
    made = report(tried("python.example", True))
    patched.on("GET", PATH, lambda _: made)
    assert roost("egress", MACHINE_ID, "--json") == 0
    assert json.loads(capsys.readouterr().out) == made
    assert roost("egress", MACHINE_ID, "--mode", "off", "--json") == 0
    assert json.loads(capsys.readouterr().out)["allow"] == ["a.org"]


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (["--mode", "off"], {"mode": "off"}),
        (["--allow", "a.org", "--allow", "b.org"], {"add": ["a.org", "b.org"]}),
        (["--deny", "a.org"], {"remove": ["a.org"]}),
        (["--observe"], {"observe": True}),
        (["--no-observe", "--mode", "open"], {"observe": False, "mode": "open"}),
    ],
)
def test_changes(
    patched: Stub,
    roost: Callable[..., int],
    capsys: Capture,
    arguments: list[str],
    body: dict[str, Any],
) -> None:
    assert roost("egress", "user-42", *arguments) == 0
    assert patched.seen[-1].json == body
    assert capsys.readouterr().out == "allowlist, observed\n  a.org\n"


def test_what_is_suggested_applied(
    patched: Stub, roost: Callable[..., int], capsys: Capture
) -> None:
    patched.on("GET", PATH, lambda _: report(suggested=("a.org", "b.org"), mode="open", allow=[]))
    assert roost("egress", MACHINE_ID, "--apply-suggested", "--no-observe") == 0
    assert patched.seen[-1].json == {
        "mode": "allowlist", "observe": False, "add": ["a.org", "b.org"],
    }  # fmt: skip
    patched.on("GET", PATH, lambda _: report())
    before = len(patched.asked("PATCH", PATH))
    assert roost("egress", MACHINE_ID, "--apply-suggested") == 0
    assert len(patched.asked("PATCH", PATH)) == before
    assert "Nothing is suggested" in capsys.readouterr().err


def test_a_mode_there_is_not(stub: Stub, roost: Callable[..., int]) -> None:
    assert roost("egress", MACHINE_ID, "--mode", "shut") == 2
    assert roost("create", "--egress", "shut") == 2
    assert stub.seen == []


@pytest.mark.parametrize(
    ("arguments", "egress"),
    [
        (["--egress", "off"], "off"),
        (["--allow", "b.org"], {"observe": False, "allow": ["b.org"]}),
        (
            ["--egress", "allowlist", "--allow", "a.org", "--observe"],
            {"mode": "allowlist", "observe": True, "allow": ["a.org"]},
        ),
        (["--observe"], {"observe": True}),
        ([], None),
    ],
)
def test_at_create_ensure_and_fork(
    stub: Stub, roost: Callable[..., int], arguments: list[str], egress: Any
) -> None:
    stub.on("POST", "/v1/machines", lambda _: Answer(machine(), 201))
    stub.on("PUT", "/v1/machines/by-key/k", lambda _: machine())
    stub.on("POST", f"/v1/machines/{MACHINE_ID}/fork", lambda _: {"items": [machine()]})
    for command in (["create"], ["ensure", "k"], ["fork", MACHINE_ID]):
        assert roost(*command, *arguments) == 0
        assert stub.seen[-1].json.get("egress") == egress


def test_show_says_it(stub: Stub, roost: Callable[..., int], capsys: Capture) -> None:
    policy = {"mode": "allowlist", "allow": ["a.org"], "observe": True}
    stub.on("GET", f"/v1/machines/{MACHINE_ID}", lambda _: machine(egress=policy))
    assert roost("show", MACHINE_ID) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("egress")]
    assert line.split(maxsplit=1)[1] == "allowlist of 1, observed"


def test_completion(stub: Stub) -> None:
    stub.on("GET", PATH, lambda _: report(suggested=("files.x.org",)))
    context: Any = SimpleNamespace(params={"machine": "user-42"})
    assert complete_listed(context, "py") == ["python.example"]
    assert complete_suggested(context, "f") == ["files.x.org"]
    assert complete_suggested(context, "b.o") == []
    stub.on("GET", PATH, lambda _: Answer(wire("INTERNAL"), 500))
    assert complete_listed(context, "py") == []
