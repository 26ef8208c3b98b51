"""roost diff, tree, promote, explore: what they ask for and what they print."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.client.stub import MACHINE_ID, Answer, Stub, execution, machine, wire

Roost = Callable[..., int]
OTHER = "o" * 26
CHILD = "c" * 26
SIDE = {
    "kind": "file", "size": 3, "mode": "0644", "uid": 0, "gid": 0,
    "mtime": "2026-01-02T03:04:05.678Z",
}  # fmt: skip


def item(path: str, change: str, before: Any = None, after: Any = None) -> dict[str, Any]:
    return {"path": path, "change": change, "before": before, "after": after, "unsure": False}


@pytest.fixture
def diffed(stub: Stub) -> Stub:
    items = [
        item("/new\x1b[2J", "added", None, SIDE),
        item("/old", "removed", {**SIDE, "kind": "directory"}),
        item("/run.sh", "mode", SIDE, {**SIDE, "mode": "0755"}),
        item("/same", "changed", SIDE, {**SIDE, "size": 2048}),
    ]
    counts = {"added": 1, "removed": 1, "mode": 1, "changed": 1, "type": 0}
    found = {"machine_id": MACHINE_ID, "other": OTHER, "items": items, "counts": counts}
    stub.on("GET", f"/v1/machines/{OTHER}", lambda _: machine(machine_id=OTHER))
    stub.on(
        "GET",
        f"/v1/machines/{MACHINE_ID}/diff",
        lambda _: {**found, "compared": 9, "truncated": "items"},
    )
    return stub


def test_diff(diffed: Stub, roost: Roost, capsys: pytest.CaptureFixture[str]) -> None:
    assert roost("diff", "user-42", OTHER, "-x", "/var", "--path", "/") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "+ /new^[[2J  (3 B)",
        "- /old/",
        "m /run.sh  (0644 0:0 -> 0755 0:0)",
        "M /same  (3 B -> 2.0 KiB)",
    ]
    assert "\x1b" not in out and "--limit" in err
    (asked,) = diffed.asked("GET", f"/v1/machines/{MACHINE_ID}/diff")
    assert asked.query["other"] == OTHER and asked.query["exclude"] == "/var"
    assert roost("diff", "user-42", OTHER, "--json") == 0
    assert json.loads(capsys.readouterr().out)["counts"]["added"] == 1


def test_tree(stub: Stub, roost: Roost, capsys: pytest.CaptureFixture[str]) -> None:
    def node(id: str, parent: str | None, **more: Any) -> dict[str, Any]:
        return {
            "kind": "machine", "id": id, "parent_id": parent, "from_snapshot_id": None,
            "name": None, "key": None, "phase": "running", "tier": None, "replaces": None,
            "created_at": "2026-01-02T03:04:05.678Z", **more,
        }  # fmt: skip

    nodes = [
        node("root", None, key="user-42"),
        node("snap", "root", kind="snapshot", name="before\x1b", phase=None),
        node("child", "root", from_snapshot_id="snap", replaces="root"),
        node("leaf", "child", phase="destroyed"),
        node("alone", "long gone"),
    ]
    stub.on("GET", "/v1/tree", lambda _: {"items": nodes, "truncated": False})
    assert roost("tree") == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    depths = {
        line.strip("│├└─ ").split()[0]: len(line) - len(line.lstrip("│├└─ "))
        for line in out.splitlines()
    }
    assert depths["root"] == depths["alone"] == 0
    assert depths["root"] < depths["snapshot"] < depths["child"] < depths["leaf"]
    assert "in place of root" in out and "user-42" in out
    assert roost("tree", "user-42", "--json") == 0
    assert stub.asked("GET", "/v1/tree")[-1].query == {"machine": MACHINE_ID}
    assert len(json.loads(capsys.readouterr().out)["items"]) == 5


def test_promote(stub: Stub, roost: Roost, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"/v1/machines/{MACHINE_ID}/promote"
    stub.on("POST", path, lambda _: machine(key="user-42"))
    assert roost("promote", "user-42", "--destroy") == 0
    assert capsys.readouterr().out.split()[:2] == [MACHINE_ID, "user-42"]
    assert stub.asked("POST", path)[0].json == {"previous": "destroy"}


def test_up_the_ladder(stub: Stub, roost: Roost, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"/v1/machines/{MACHINE_ID}/promote"
    up = {"level": 3, "driver": "qemu", "claim": "sandboxed by a QEMU microVM (KVM)"}
    stub.on("POST", path, lambda _: machine(isolation=up))
    assert roost("promote", "user-42", "--isolation", "microvm") == 0
    assert capsys.readouterr().out == f"{MACHINE_ID} {up['claim']}\n"
    assert roost("promote", "user-42", "--driver", "qemu", "--json") == 0
    assert json.loads(capsys.readouterr().out)["isolation"] == up
    assert [each.json for each in stub.asked("POST", path)] == [
        {"isolation": "microvm"},
        {"driver": "qemu"},
    ]
    assert roost("promote", "user-42", "--isolation", "microvm", "--destroy") == 2
    stub.on("POST", path, lambda _: Answer(wire("RUNG_LOWER", "no way down"), 409))
    assert roost("promote", "user-42", "--isolation", "container") == 1
    said = capsys.readouterr().err
    assert "no way down" in said
    assert "roost doctor --contract" in said


def test_explore(stub: Stub, roost: Roost, capsys: pytest.CaptureFixture[str]) -> None:
    base, child = f"/v1/machines/{MACHINE_ID}", f"/v1/machines/{CHILD}"
    stub.on("POST", f"{base}/fork", lambda _: Answer({"items": [machine(machine_id=CHILD)]}, 201))
    ran: list[dict[str, Any]] = []

    def run(request: Any) -> Answer:
        ran.append(request.json)
        text = "noise\n2.5\n\n" if "score" in request.json["command"] else "out"
        ended = execution(status="succeeded", exit_code=0)
        return Answer({**ended, "stdout": text, "stderr": ""}, 201)

    stub.on("POST", f"{child}/executions", run)
    stub.on("GET", f"{child}/usage", lambda _: {"cpu_usage_us": 1_000_000})
    stub.on("GET", f"{base}/diff", lambda _: Answer(wire("UNSUPPORTED"), 501))
    stub.on("GET", "/v1/usage", lambda _: {"items": [{"machine_id": CHILD, "cost": "0.5"}]})
    stub.on("POST", f"{child}/promote", lambda _: machine(machine_id=CHILD, key="user-42"))
    code = roost(
        "explore", "user-42", "--run", "try {strategy} $ROOST_STRATEGY {other}",
        "-s", "it's; rm", "--score", "score", "--json",
    )  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert ran[0]["command"] == "try 'it'\"'\"'s; rm' $ROOST_STRATEGY {other}"
    assert ran[0]["env"] == {"ROOST_STRATEGY": "it's; rm"}
    assert found["winner"] == CHILD and found["promoted"]
    (attempt,) = found["attempts"]
    assert (attempt["score"], attempt["exit_code"], attempt["cost"]) == (2.5, 0, "0.5")
    assert attempt["diff"] is None and attempt["result"]["stdout"] == "out"
    assert stub.asked("POST", f"{child}/promote")[0].json == {
        "onto": MACHINE_ID,
        "previous": "destroy",
    }


def test_explore_says_what_is_wrong(stub: Stub, roost: Roost, tmp_path: Any) -> None:
    assert roost("explore", "user-42", "--run", "x") == 2
    empty = tmp_path / "none"
    empty.write_text("\n \n")
    assert roost("explore", "user-42", "--run", "x", "-f", empty) == 2
    assert roost("explore", "user-42", "--run", "x", "-s", "a", "--keep", "some") == 2
    assert stub.asked("POST", f"/v1/machines/{MACHINE_ID}/fork") == []


def test_explore_where_nothing_wins(
    stub: Stub, roost: Roost, capsys: pytest.CaptureFixture[str]
) -> None:
    base, child = f"/v1/machines/{MACHINE_ID}", f"/v1/machines/{CHILD}"
    stub.on("POST", f"{base}/fork", lambda _: Answer({"items": [machine(machine_id=CHILD)]}, 201))
    ended = {**execution(status="failed", exit_code=3), "stdout": "", "stderr": ""}
    stub.on("POST", f"{child}/executions", lambda _: Answer(ended, 201))
    stub.on("DELETE", child, lambda _: machine(machine_id=CHILD, phase="destroyed"))
    assert roost("explore", "user-42", "--run", "x", "-s", "a", "--no-diff") == 1
    out, err = capsys.readouterr()
    assert "a" in out and "3" in out and "as it was" in err
    assert len(stub.asked("DELETE", child)) == 1
