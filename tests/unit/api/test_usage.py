"""Usage over HTTP: one's own, in the units people know, and what it costs."""

from __future__ import annotations

from typing import Any

import pytest

from roost.services import usage
from roost.services.keys import DEFAULT_TENANT
from roost.services.models import Role
from roost.store import usage as rows
from tests.unit.api.kit import OTHER, TENANT, Served

METER = {"machine_id": "m" * 26, "key_id": "k" * 26}


async def _used(served: Served, tenant: str, day: str, *sums: int, **more: str) -> None:
    meter = {"tenant_id": tenant, **METER, **more}
    await served.store.write(lambda c: rows.add(c, meter, day, sums))


async def _get(served: Served, **params: Any) -> Any:
    return await served.http.get("/v1/usage", params=params)


async def test_a_report(bare: Served) -> None:
    await _used(bare, TENANT, "2026-03-01", 1500 * 10_000, 512 * 10_000, 2**20 * 3_600_000, 7)
    await _used(bare, TENANT, "2026-03-01", 0, 0, 0, 3, machine_id="o" * 26, key_id="")
    await _used(bare, TENANT, "2026-03-05", 1000, 0, 0, 0)
    await _used(bare, OTHER, "2026-03-01", 5000, 0, 0, 0)
    march = {"from": "2026-03-01", "to": "2026-03-04"}
    found = await _get(bare, **march)
    assert found.status_code == 200
    nothing = {"vcpu_seconds": 0.0, "memory_gib_seconds": 0.0, "storage_gib_hours": 0.0}
    first = {
        "vcpu_seconds": 15.0,
        "memory_gib_seconds": 5.0,
        "storage_gib_hours": 1.0,
        "egress_bytes": 10,
        "cost": "0.150000",
    }
    assert found.json() == {
        **march,
        "group_by": ["day"],
        "prices": {
            "currency": "EUR", "vcpu_second": "0.01", "memory_gib_second": "0",
            "storage_gib_hour": "0", "egress_gib": "0",
        },
        "items": [{"day": "2026-03-01", **first}],
        "total": first,
    }  # fmt: skip
    for group_by in (["machine", "key"], ["machine,key"]):
        found = await _get(bare, **march, group_by=group_by)
        assert found.json()["items"] == [
            {**METER, **first, "egress_bytes": 7},
            {"machine_id": "o" * 26, "key_id": None, **nothing, "egress_bytes": 3,
             "cost": "0.000000"},
        ]  # fmt: skip
    found = await _get(bare, **march, group_by="")
    assert (found.json()["items"], found.json()["total"]) == ([first], first)


async def test_the_sums_of_a_large_fleet_do_not_overflow(bare: Served) -> None:
    each = 2**30 * 86_400_000  # a TiB for a day
    for n in range(3):
        for _ in range(50):
            await _used(bare, TENANT, "2026-03-01", 0, 0, each, 0, machine_id=f"{n}" * 26)
    found = await _get(bare, **{"from": "2026-03-01", "to": "2026-03-01"}, group_by="day")
    assert found.json()["total"]["storage_gib_hours"] == 1024.0 * 24 * 150


async def test_what_cannot_be_asked(bare: Served) -> None:
    for params in (
        {"from": "yesterday"},
        {"from": "2026-03-02", "to": "2026-03-01"},
        {"from": "2020-01-01", "to": "2026-03-01"},
        {"group_by": "tenant"},
    ):
        assert (await _get(bare, **params)).json()["error_code"] == "VALIDATION_FAILED", params
    for edge in ("0001-01-01", "9999-12-31"):
        assert (await _get(bare, to=edge)).status_code == 200


async def test_more_rows_than_anybody_reads(bare: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more of them than that are read, whatever there are."""
    monkeypatch.setattr(usage, "MAX_ROWS", 3)
    for number in range(3):
        await _used(bare, TENANT, "2026-01-02", 1, 1, 1, 1, machine_id=f"m{number}")
    asked = {"from": "2026-01-01", "to": "2026-01-03", "group_by": "day,machine,key"}
    assert len((await _get(bare, **asked)).json()["items"]) == 3
    for number in range(3, 9):
        await _used(bare, TENANT, "2026-01-02", 1, 1, 1, 1, machine_id=f"m{number}")
    many = await _get(bare, **asked)
    assert (many.status_code, many.json()["error_code"]) == (422, "VALIDATION_FAILED")
    assert "fewer days" in many.json()["message"]
    columns = ("day", "machine_id", "key_id")
    days = ("2026-01-01", "2026-01-03")
    read = await bare.store.read(lambda c: rows.report(c, TENANT, *days, columns, 4))
    assert len(read) == 4
    assert len((await _get(bare, **{**asked, "group_by": "day"})).json()["items"]) == 1


async def test_another_tenants_is_the_admins_to_see(bare: Served) -> None:
    await _used(bare, OTHER, "2026-03-01", 5000, 0, 0, 0)
    asked = {"from": "2026-03-01", "to": "2026-03-01"}
    for whose in (OTHER, "no-such-tenant"):
        refused = await _get(bare, **asked, tenant=whose)
        assert (refused.status_code, refused.json()["error_code"]) == (403, "FORBIDDEN")
    assert (await _get(bare, **asked, tenant=TENANT)).status_code == 200
    async with bare.client(await bare.add_key(DEFAULT_TENANT, Role.ADMIN)) as admin:
        found = await admin.get("/v1/usage", params={**asked, "tenant": OTHER})
    assert found.json()["total"]["vcpu_seconds"] == 0.005
