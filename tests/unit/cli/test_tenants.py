"""roost tenant, key and audit, against a daemon of a few lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from roost.cli.key import complete_key, complete_role
from roost.cli.tenant import complete_tenant
from tests.unit.client.stub import MACHINE_ID, Answer, Stub, sse

Roost = Callable[..., int]
Out = pytest.CaptureFixture[str]
TENANT = {
    "tenant_id": "t" * 26,
    "name": "acme",
    "quotas": {"machines": 10, "vcpu": None, "requests_per_second": 0.5},
    "created_at": "2026-01-01T00:00:00.000Z",
}
KEY = {
    "key_id": "k" * 26,
    "name": "ci",
    "tenant_id": "t" * 26,
    "role": "read_only",
    "created_at": "2026-01-01T00:00:00.000Z",
    "last_used_at": None,
    "expires_at": "2030-01-01T00:00:00.000Z",
}


def entry(id: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": id,
        "at": f"2026-01-01T00:00:0{id}.000Z",
        "tenant_id": "default",
        "key_id": "k" * 26,
        "role": "admin",
        "action": "machines_create",
        "method": "POST",
        "path": "/v1/machines",
        "machine_id": MACHINE_ID,
        "peer": "127.0.0.1",
        "status": 201,
        "error_code": None,
        "request_id": "r" * 26,
        **changes,
    }


@pytest.fixture
def tenants(stub: Stub) -> Stub:
    stub.on("POST", "/v1/tenants", lambda r: Answer({**TENANT, "name": r.json["name"]}, 201))
    stub.on("GET", "/v1/tenants", lambda _: {"items": [TENANT], "next_cursor": None})
    stub.on("GET", "/v1/tenants/acme", lambda _: {**TENANT, "used": {"machines": 3, "vcpu": 1.5}})
    stub.on("PATCH", "/v1/tenants/acme", lambda _: TENANT)
    stub.on("DELETE", f"/v1/tenants/{'t' * 26}", lambda _: Answer(None, 204))
    return stub


def test_tenants(tenants: Stub, roost: Roost, capsys: Out) -> None:
    argv = ["--machines", "20", "--vcpu", "1.5", "--burst", "none"]
    assert roost("tenant", "create", "acme", *argv) == 0
    assert tenants.seen[-1].json == {
        "name": "acme",
        "quotas": {"machines": 20, "vcpu": 1.5, "request_burst": None},
    }
    seen = capsys.readouterr()
    assert seen.out == "t" * 26 + "\n"
    assert "roost key create first --tenant acme" in seen.err
    for isolation, said in ((None, "none"), ("microvm", "microvm")):
        held = {**TENANT, "isolation": isolation}
        tenants.on(
            "GET", "/v1/tenants", lambda _, held=held: {"items": [held], "next_cursor": None}
        )
        assert roost("tenant", "ls") == 0
        line = capsys.readouterr().out.splitlines()[-1].split()
        assert line[1:4] == ["acme", "10", said]
    assert roost("tenant", "show", "acme") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["machines", "3", "10"] in lines and ["vcpu", "1.5", "none"] in lines
    assert roost("tenant", "set", "acme", "--machines", "none") == 0
    assert tenants.seen[-1].json == {"quotas": {"machines": None}}
    for named, sent in (("microvm", "microvm"), ("none", None)):
        assert roost("tenant", "set", "acme", "--isolation", named) == 0
        assert tenants.seen[-1].json == {"isolation": sent}
    assert roost("tenant", "set", "acme") == 2
    assert roost("tenant", "set", "acme", "--vcpu", "many") == 2
    assert roost("tenant", "rm", "acme", "--json") == 0
    assert tenants.seen[-1].method == "DELETE"
    assert complete_tenant("ac") == ["acme"] and complete_tenant("x") == []


def test_keys(stub: Stub, roost: Roost, capsys: Out) -> None:
    stub.on("POST", "/v1/keys", lambda _: Answer({**KEY, "key": "roost_x"}, 201))
    stub.on("GET", "/v1/keys", lambda _: {"items": [KEY], "next_cursor": None})
    stub.on("DELETE", f"/v1/keys/{'k' * 26}", lambda _: Answer(None, 204))
    argv = ["--role", "read_only", "--ttl", "30d", "--tenant", "acme"]
    assert roost("key", "create", "ci", *argv) == 0
    assert stub.seen[-1].json == {
        "name": "ci", "role": "read_only", "ttl": "30d", "tenant": "acme",
    }  # fmt: skip
    assert capsys.readouterr().out == "roost_x\n"
    assert roost("key", "create", "ci") == 0
    assert stub.seen[-1].json == {"name": "ci"}
    capsys.readouterr()
    assert roost("key", "ls", "--tenant", "acme") == 0
    assert stub.seen[-1].query["tenant"] == "acme"
    assert "read_only" in capsys.readouterr().out
    for name in ("rm", "revoke"):
        assert roost("key", name, "ci") == 0
        assert stub.seen[-1].method == "DELETE"
    assert complete_key("c") == ["ci"]
    assert complete_role("re") == ["read_only"]


def test_audit(stub: Stub, roost: Roost, capsys: Out) -> None:
    found = [entry(3), entry(2, status=403, error_code="FORBIDDEN", path="/\x1b[31m"), entry(1)]
    stub.on("GET", "/v1/audit", lambda _: {"items": found, "next_cursor": None})
    assert roost("audit", "--machine", "user-42", "--since", "2h", "--json") == 0
    query = stub.seen[-1].query
    assert query["machine_id"] == MACHINE_ID and "since" in query
    assert [e["id"] for e in json.loads(capsys.readouterr().out)["items"]] == [1, 2, 3]
    gone = "g" * 26
    assert roost("audit", "--machine", gone) == 0  # a machine that is gone has a past, too
    assert stub.seen[-1].query["machine_id"] == gone
    out = capsys.readouterr().out
    assert "403 FORBIDDEN" in out and "\x1b" not in out
    stub.on("GET", "/v1/audit/stream", lambda _: iter([sse("entry", entry(4))]))
    assert roost("audit", "--follow", "--json", "-n", "1") == 0
    assert (
        stub.seen[-1].headers.get("Last-Event-ID", stub.seen[-1].headers.get("last-event-id"))
        == "3"
    )
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == [3, 4]
