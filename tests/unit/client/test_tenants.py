"""Tenants, keys, tokens and the audit log from the SDK."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from roost import Client, Machine, UnavailableError

from .stub import MACHINE_ID, Answer, Stub, sse, wire


def test_tenants_and_keys(stub: Stub, client: Client) -> None:
    tenant = {"tenant_id": "t" * 26, "name": "a b"}
    stub.on("POST", "/v1/tenants", lambda _: Answer(tenant, 201))
    stub.on("PATCH", "/v1/tenants/a%20b", lambda _: tenant)
    stub.on("GET", "/v1/quotas", lambda _: tenant)
    stub.on("POST", "/v1/keys", lambda _: Answer({"key": "roost_x"}, 201))
    assert client.create_tenant("a b", quotas={"machines": 3, "vcpu": None}) == tenant
    assert stub.seen[-1].json == {"name": "a b", "quotas": {"machines": 3, "vcpu": None}}
    client.update_tenant("a b", quotas={"machines": None})
    assert stub.seen[-1].json == {"quotas": {"machines": None}}
    assert client.quotas() == tenant
    at = datetime(2030, 1, 1, tzinfo=UTC)
    client.create_key("k", role="read_only", ttl=timedelta(minutes=5), tenant="a b")
    assert stub.seen[-1].json == {
        "name": "k", "role": "read_only", "ttl": "300s", "tenant": "a b",
    }  # fmt: skip
    client.create_key("k", expires_at=at)
    assert stub.seen[-1].json == {"name": "k", "expires_at": "2030-01-01T00:00:00+00:00"}


def test_tokens(stub: Stub) -> None:
    path = f"/v1/machines/{MACHINE_ID}/tokens"
    stub.on("POST", path, lambda _: Answer({"token": "rpt_x"}, 201))
    stub.on("GET", path, lambda _: {"items": [{"token_id": "x"}], "next_cursor": None})
    stub.on("DELETE", f"{path}/x", lambda _: Answer(None, 204))
    machine = Machine.get(MACHINE_ID)
    assert machine.create_token("preview", port=80, ttl="1h")["token"] == "rpt_x"
    assert stub.seen[-1].json == {"scope": "preview", "port": 80, "ttl": "1h"}
    assert machine.tokens() == [{"token_id": "x"}]
    machine.revoke_token("x")
    assert stub.seen[-1].method == "DELETE"


def test_the_audit_log(stub: Stub, client: Client) -> None:
    def page(request: Any) -> dict[str, Any]:
        if "cursor" in request.query:
            return {"items": [{"id": 1}], "next_cursor": None}
        return {"items": [{"id": 3}, {"id": 2}], "next_cursor": "c"}

    stub.on("GET", "/v1/audit", page)
    since = datetime(2026, 1, 1, tzinfo=UTC)
    assert [e["id"] for e in client.audit(machine_id="m", since=since)] == [3, 2, 1]
    assert stub.seen[-1].query["since"] == "2026-01-01T00:00:00+00:00"

    def stream(_: Any) -> Iterator[bytes]:
        yield sse("entry", {"id": 4})
        yield sse("error", wire("SHUTTING_DOWN", "bye"))

    stub.on("GET", "/v1/audit/stream", stream)
    following = client.follow_audit(action="machines_create", after=3)
    assert next(following) == {"id": 4}
    assert {k.lower(): v for k, v in stub.seen[-1].headers.items()}["last-event-id"] == "3"
    with pytest.raises(UnavailableError) as caught:
        next(following)
    assert caught.value.code == "SHUTTING_DOWN"
