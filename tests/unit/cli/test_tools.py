"""``roost tools``, ``approvals``, ``approve``, ``deny``, and what a command that waits looks like."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import typer

from roost.cli import _tools
from roost.cli.approvals import complete_approval
from tests.unit.client.stub import EXECUTION_ID, MACHINE_ID, Answer, Stub, execution, machine, sse

Capture = pytest.CaptureFixture[str]
Roost = Callable[..., int]
PATH = f"/v1/machines/{MACHINE_ID}/tools"
RULES = [
    {"program": "git", "args": ["status", "..."]},
    {"program": "cat", "args": ["a b"], "env": ["CI*"]},
    {"program": "ls", "args": []},
    {"program": "make", "args": None},
]


def approval(**is_: Any) -> dict[str, Any]:
    return {
        "approval_id": EXECUTION_ID,
        "execution_id": EXECUTION_ID,
        "machine_id": MACHINE_ID,
        "status": "pending",
        "asked": {
            "command": ["rm", "-rf", "a\x1b]0;x\x07b"],
            "cwd": "/work",
            "user": None,
            "env": {"GOAUTH": "/work/x ", "A_TOKEN": None},
            "stdin": "yes",
            "stdin_bytes": 10,
            "stdin_stream": False,
            "timeout_ms": None,
        },
        "asked_by": "k" * 26,
        "created_at": "2026-11-21T01:00:00.000Z",
        "expires_at": "2026-11-21T01:15:00.000Z",
        "decided_at": None,
        "decided_by": None,
        "note": None,
        **is_,
    }


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_read_as_it_is_shown(rule: dict[str, Any]) -> None:
    if rule.get("env") or rule["args"] == []:
        assert _tools.rule(json.dumps(rule)) == rule
    else:
        assert _tools.rule(_tools.shown(rule)) == rule


@pytest.mark.parametrize("text", ["", "'", "{no json"])
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(typer.Exit):
        _tools.rule(text)


def test_the_list_is_shown(stub: Stub, roost: Roost, capsys: Capture) -> None:
    assert roost("tools", "user-42") == 0
    assert capsys.readouterr().out.startswith("off: every program")
    listed = machine(tools={"mode": "ask", "allow": RULES})
    stub.on("GET", f"/v1/machines/{MACHINE_ID}", lambda _: listed)
    assert roost("tools", MACHINE_ID) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("ask: ") and out[1:] == [
        "  git status ...",
        "  cat 'a b'  env: CI*",
        "  ls (no arguments)",
        "  make",
    ]
    assert roost("show", MACHINE_ID) == 0
    assert "4 listed, ask for the rest" in capsys.readouterr().out


def test_the_list_is_changed(stub: Stub, roost: Roost, capsys: Capture) -> None:
    stub.on("PUT", PATH, lambda r: r.json)
    assert roost("tools", MACHINE_ID, "--allow", "git status ...", "--allow", "make") == 0
    assert stub.seen[-1].json == {"mode": "ask", "allow": [RULES[0], RULES[3]]}
    assert stub.seen[-1].headers["if-match"].startswith('"')
    listed = machine(tools={"mode": "deny", "allow": RULES})
    stub.on("GET", f"/v1/machines/{MACHINE_ID}", lambda _: listed)
    assert roost("tools", MACHINE_ID, "--remove", "ls (no arguments)", "--remove", "make") == 0
    assert stub.seen[-1].json == {"mode": "deny", "allow": RULES[:2]}
    assert roost("tools", MACHINE_ID, "--mode", "off", "--json") == 0
    assert stub.seen[-1].json == {"mode": "off", "allow": []}
    capsys.readouterr()
    assert roost("tools", MACHINE_ID, "--remove", "nothing") == 0
    assert "not on the list" in capsys.readouterr().err
    assert roost("tools", MACHINE_ID, "--mode", "open") == 2


def test_no_arguments_are_not_any(stub: Stub, roost: Roost) -> None:
    stub.on("PUT", PATH, lambda r: r.json)
    listed = machine(tools={"mode": "ask", "allow": [RULES[3]]})
    stub.on("GET", f"/v1/machines/{MACHINE_ID}", lambda _: listed)
    none = {"program": "make", "args": []}
    assert roost("tools", MACHINE_ID, "--allow", json.dumps(none)) == 0
    assert stub.seen[-1].json["allow"] == [RULES[3], none]
    listed["tools"]["allow"].append(none)
    assert roost("tools", MACHINE_ID, "--remove", "make") == 0
    assert stub.seen[-1].json["allow"] == [none]


def test_said_when_it_is_made(stub: Stub, roost: Roost) -> None:
    stub.on("POST", "/v1/machines", lambda _: Answer(machine(), 201))
    assert roost("create", "--tools", "deny", "--allow-tool", "make") == 0
    assert stub.seen[-1].json["tools"] == {"mode": "deny", "allow": [RULES[3]]}
    assert roost("create", "--tools", "ask") == 0
    assert stub.seen[-1].json["tools"] == "ask"


def test_what_waits(stub: Stub, roost: Roost, capsys: Capture) -> None:
    stub.on("GET", "/v1/approvals", lambda _: {"items": [approval()], "next_cursor": None})
    assert roost("approvals", "-m", "user-42") == 0
    assert stub.seen[-1].query["machine_id"] == MACHINE_ID
    assert stub.seen[-1].query["status"] == "pending"
    out = capsys.readouterr().out
    assert EXECUTION_ID in out and "rm -rf" in out and "\x1b" not in out
    assert roost("approvals", "--all", "--json") == 0
    assert stub.seen[-1].query["status"] == "any"
    assert json.loads(capsys.readouterr().out)["items"][0]["approval_id"] == EXECUTION_ID
    assert complete_approval(EXECUTION_ID[:3]) == [EXECUTION_ID]
    stub.on("GET", f"/v1/approvals/{EXECUTION_ID}", lambda _: approval())
    assert roost("approvals", EXECUTION_ID) == 0
    out = capsys.readouterr().out
    assert 'env          GOAUTH="/work/x "\n' in out and "A_TOKEN (hidden)\n" in out
    assert 'stdin        "yes"\n' in out and "timeout      -\n" in out and "\x1b" not in out


def test_nothing_of_one_is_cut_or_hidden(stub: Stub, roost: Roost, capsys: Capture) -> None:
    """As long as the daemon admits, and word for word."""
    asked = approval()["asked"]
    words = ["sh", "-c", "'" * 25_000 + "; evil", "", "a b", "rm\u200d", "x\nuser  root", r"\u200d"]
    asked |= {"command": words, "timeout_ms": 7000, "user": "b\u0430sh", "stdin": None}
    stub.on("GET", f"/v1/approvals/{EXECUTION_ID}", lambda _: approval(asked=asked))
    assert roost("approvals", EXECUTION_ID) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [line.split(maxsplit=1)[1] for line in lines if line.startswith(("command", "arg"))]
    assert shown[2] == f'"{words[2]}"' and shown[5:] == [
        r'"rm\u200d"',
        r'"x\nuser  root"',
        r'"\\u200d"',
    ]
    assert [json.loads(each) for each in shown] == words
    assert "timeout      7000 ms" in lines
    assert "stdin        (hidden)" in lines
    assert "not ASCII    \u0430 (U+0430) \\u200d (U+200D)" in lines, "no Latin a"


@pytest.mark.parametrize(("what", "status"), [("approve", "approved"), ("deny", "denied")])
def test_decided(stub: Stub, roost: Roost, capsys: Capture, what: str, status: str) -> None:
    stub.on("POST", f"/v1/approvals/{EXECUTION_ID}/{what}", lambda _: approval(status=status))
    assert roost(what, EXECUTION_ID, "--note", "looked") == 0
    assert stub.seen[-1].json == {"note": "looked"}
    assert status in capsys.readouterr().err
    refusal = {"error_code": "APPROVAL_EXPIRED", "message": "too late", "retryable": False}
    stub.on("POST", f"/v1/approvals/{EXECUTION_ID}/{what}", lambda _: Answer(refusal, 409))
    assert roost(what, EXECUTION_ID) == 1
    assert "APPROVAL_EXPIRED" in capsys.readouterr().err


def test_the_page(
    stub: Stub, roost: Roost, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    assert roost("approvals", "--web") == 0
    assert capsys.readouterr().out == f"{stub.url}/approvals\n" and opened == []
    assert roost("approvals", "--web", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"url": f"{stub.url}/approvals"}
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert roost("approvals", "--web") == 0
    assert opened == [f"{stub.url}/approvals"]  # and no key in it
    assert stub.seen == []


def test_followed(stub: Stub, roost: Roost, capsys: Capture) -> None:
    stub.on(
        "GET",
        "/v1/approvals/stream",
        lambda _: iter([sse("approval", approval()), sse("approval", approval(status="denied"))]),
    )
    roost("approvals", "--follow")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == ["pending", "denied"]


@pytest.mark.parametrize("approved", [True, False])
def test_a_command_that_waits_says_so(
    stub: Stub, roost: Roost, capsys: Capture, approved: bool
) -> None:
    def stream(_: Any) -> Any:
        yield sse("approval_required", execution(status="approval_required"))
        if approved:
            yield sse("started", execution(status="running"))
            yield sse("exit", execution(exit_code=3, status="failed"))
        else:
            yield sse("error", {"error_code": "APPROVAL_DENIED", "message": "no"})

    stub.on("POST", f"/v1/machines/{MACHINE_ID}/executions/stream", stream)
    assert roost("exec", MACHINE_ID, "--no-stdin", "id") == (3 if approved else 126)
    said = capsys.readouterr().err
    assert f"roost approve {EXECUTION_ID}, or {stub.url}/approvals\n" in said
    assert approved or "APPROVAL_DENIED" in said
