"""Secrets over HTTP: what goes in comes back in nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.api.kit import TENANT, Served

VALUE = "canary-7Gk/2+fQ=x9Zb4"
WHOLE = {"value": VALUE, "hosts": ["api.example.org", "*.example.net:8443"]}


async def test_made_changed_listed_and_gone(bare: Served) -> None:
    path = f"/v1/machines/{bare.machine()}/secrets"
    http = bare.http
    made = await http.put(
        f"{path}/TOKEN", json={**WHOLE, "header": "Authorization", "format": "Bearer {value}"}
    )
    assert made.status_code == 201
    assert made.json() == {
        "name": "TOKEN",
        "hosts": ["api.example.org", "*.example.net:8443"],
        "header": "Authorization",
        "format": "Bearer {value}",
        "placeholder": None,
        "in_body": False,
        "created_at": made.json()["created_at"],
        "updated_at": made.json()["updated_at"],
    }
    changed = await http.put(f"{path}/TOKEN", json={"value": "another-value"})
    assert (changed.status_code, changed.json()) == (200, made.json())
    marked = await http.put(f"{path}/KEY", json=WHOLE)
    assert marked.json()["placeholder"].startswith("roost-secret-key-")
    found = await http.get(path)
    assert [each["name"] for each in found.json()["items"]] == ["TOKEN", "KEY"]
    for answer in (made, changed, marked, found):
        assert VALUE not in answer.text
        assert "another-value" not in answer.text
    assert (await http.delete(f"{path}/KEY")).status_code == 204
    gone = await http.delete(f"{path}/KEY")
    assert (gone.status_code, gone.json()["error_code"]) == (404, "SECRET_NOT_FOUND")


@pytest.mark.parametrize(
    "body",
    [
        {**WHOLE, "value": f"{VALUE}\n"},
        {**WHOLE, "value": VALUE * 1000},
        {**WHOLE, "value": [VALUE]},
        {**WHOLE, "header": "Host"},
        {**WHOLE, "hosts": [VALUE]},
        {**WHOLE, "unknown": VALUE},
        {"value": VALUE},
    ],
)
async def test_no_refusal_says_the_value(bare: Served, body: dict[str, Any]) -> None:
    path = f"/v1/machines/{bare.machine()}/secrets/TOKEN"
    answer = await bare.http.put(path, json=body)
    assert answer.status_code == 422
    if body.get("hosts") != [VALUE]:
        assert VALUE not in answer.text


async def test_at_create(bare: Served) -> None:
    body = {"secrets": [{"name": "TOKEN", **WHOLE}]}
    made = await bare.http.post("/v1/machines", json=body)
    assert made.status_code == 201
    assert VALUE not in made.text
    found = await bare.http.get(f"/v1/machines/{made.json()['machine_id']}/secrets")
    assert [each["name"] for each in found.json()["items"]] == ["TOKEN"]
    wrong = {"secrets": [{"name": "TOKEN", **WHOLE, "value": "tiny123"}]}
    before = len(bare.machines.machines)
    assert (await bare.http.post("/v1/machines", json=wrong)).status_code == 422
    assert len(bare.machines.machines) == before


async def test_nothing_of_it_is_stored_or_logged(bare: Served) -> None:
    """Not with its repeated answer, not as a digest that could be tried out, not in the audit log."""
    path = f"/v1/machines/{bare.machine()}/secrets/TOKEN"
    once = {"idempotency-key": "k1"}
    first = await bare.http.put(path, json=WHOLE, headers=once)
    again = await bare.http.put(path, json=WHOLE, headers=once)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.headers["idempotent-replayed"] == "true"
    admin = bare.client(bare.admin)
    async with admin:
        audit = await admin.get("/v1/audit")
    assert "secrets_put" in audit.text
    assert VALUE not in audit.text
    stored = b"".join(p.read_bytes() for p in bare.directory.glob("roost.db*"))
    assert VALUE.encode() not in stored
    assert TENANT.encode() in stored


async def test_fingerprints_of_requests_are_keyed(bare: Served) -> None:
    from roost.store.idempotency import Idempotency, New, Replay

    one, other = Idempotency(bare.store, b"one"), Idempotency(bare.store, b"other")
    assert await one.claim(TENANT, "k2", "0" * 64) == New()
    await one.finish(TENANT, "k2", 200, {}, b"")
    assert isinstance(await one.claim(TENANT, "k2", "0" * 64), Replay)
    assert not isinstance(await other.claim(TENANT, "k2", "0" * 64), Replay)
