"""Egress policies from the SDK."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from roost import Egress, EgressPolicy, Machine, UnavailableError

from .stub import MACHINE_ID, Answer, Request, Stub, machine, wire

PATH = f"/v1/machines/{MACHINE_ID}/egress"
POLICY = {"mode": "allowlist", "allow": ["python.example"], "observe": False}
REPORT = {
    **POLICY,
    "decisions": [
        {
            "host": "example.org", "port": 443, "protocol": "tcp", "via": "tls", "allowed": False,
            "reason": "not_allowed", "count": 3,
            "first_at": "2026-11-21T01:00:00.000Z", "last_at": "2026-11-21T01:00:09.000Z",
        },
        {
            "host": "python.example", "port": 443, "protocol": "tcp", "via": "tls", "allowed": True, "reason": "",
            "count": 1, "first_at": "2026-11-21T01:00:00.000Z", "last_at": "2026-11-21T01:00:01.000Z",
        },
    ],
    "suggested": {
        "allow": ["example.org"], "wildcards": [{"entry": "*.x.org", "instead_of": ["a.x.org"]}], "left_out": 0,
    },
}  # fmt: skip


def test_at_create_ensure_and_fork(stub: Stub) -> None:
    stub.on("POST", "/v1/machines", lambda _: Answer(machine(), 201))
    stub.on("PUT", "/v1/machines/by-key/k", lambda _: machine())
    stub.on("POST", f"/v1/machines/{MACHINE_ID}/fork", lambda _: {"items": [machine()]})
    made = Machine.create(egress="off")
    assert stub.seen[-1].json == {"template": "base", "egress": "off"}
    Machine.create(egress={"allow": ("python.example", "b.org"), "observe": True})
    assert stub.seen[-1].json["egress"] == {"allow": ["python.example", "b.org"], "observe": True}
    Machine.ensure("k", egress={"allow": []})
    assert stub.seen[-1].json["egress"] == {"allow": []}
    made.fork(egress="open")
    assert stub.seen[-1].json == {"egress": "open"}
    made.fork()
    assert stub.seen[-1].json == {}


def test_what_was_tried(stub: Stub) -> None:
    stub.on("GET", PATH, lambda _: REPORT)
    found = Machine.get(MACHINE_ID).egress()
    assert isinstance(found, Egress)
    assert found.policy == EgressPolicy("allowlist", ("python.example",), False)
    assert [each.host for each in found.decisions] == ["example.org", "python.example"]
    assert found.refused == found.decisions[:1]
    assert found.refused[0].last_at == datetime(2026, 11, 21, 1, 0, 9, tzinfo=UTC)
    assert found.suggested == ("example.org",)
    assert found.wildcards == {"*.x.org": ("a.x.org",)}


def test_changed(stub: Stub) -> None:
    stub.on("PUT", PATH, lambda _: POLICY)
    stub.on("PATCH", PATH, lambda _: POLICY)
    m = Machine.get(MACHINE_ID)
    assert m.set_egress("allowlist", allow=["python.example"], if_revision=3).allow == (
        "python.example",
    )
    assert stub.seen[-1].json == POLICY
    assert stub.seen[-1].headers["if-match"] == '"3"'
    m.set_egress("open", observe=True)
    assert stub.seen[-1].json == {"mode": "open", "observe": True}
    m.set_egress("allowlist", allow=[])
    assert stub.seen[-1].json == {"mode": "allowlist", "allow": [], "observe": False}
    m.allow("a.org", "b.org")
    assert (stub.seen[-1].method, stub.seen[-1].json) == ("PATCH", {"add": ["a.org", "b.org"]})
    m.deny("a.org")
    assert stub.seen[-1].json == {"remove": ["a.org"]}
    m.observe(False)
    assert stub.seen[-1].json == {"observe": False}


def test_what_was_not_applied_is_said(stub: Stub) -> None:
    def refuse(_: Request) -> Answer:
        return Answer(wire("DEPENDENCY_UNAVAILABLE", "the one before holds"), 503)

    stub.on("PATCH", PATH, refuse)
    with pytest.raises(UnavailableError, match="the one before holds"):
        Machine.get(MACHINE_ID).allow("a.org")
