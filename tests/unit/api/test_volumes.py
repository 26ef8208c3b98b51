"""Volumes, ends in sleep, samples and filters over HTTP, with the engine behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.api.kit import Served, serving
from tests.unit.engine.kit import daemon

SMALL = {"memory_mib": 64, "vcpu": 0.1}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with daemon(tmp_path) as d, serving(tmp_path, None, engine=d) as found:
        yield found


async def test_a_volume_and_its_machine(served: Served) -> None:
    http = served.http
    answer = await http.post("/v1/volumes", json={"name": "data", "size_gib": 2})
    assert answer.status_code == 201
    made = answer.json()
    assert made == {
        "volume_id": made["volume_id"],
        "name": "data",
        "size_gib": 2,
        "raw_written": False,
        "attachments": [],
        "created_at": made["created_at"],
    }
    again = await http.post("/v1/volumes", json={"name": "data"})
    assert (again.status_code, again.json()["error_code"]) == (409, "ALREADY_EXISTS")
    mount = {"name": "data", "path": "/data"}
    answer = await http.post("/v1/machines", json={**SMALL, "volumes": [mount]})
    machine = answer.json()
    assert machine["volumes"] == [{"volume_id": made["volume_id"], **mount, "read_only": False}]
    assert (machine["expiry"], machine["autowake"]) == ("destroy", True)
    other = await http.post("/v1/machines", json={**SMALL, "volumes": [mount]})
    assert (other.status_code, other.json()["error_code"]) == (409, "VOLUME_IN_USE")
    refused = await http.delete("/v1/volumes/data")
    assert (refused.status_code, refused.json()["error_code"]) == (409, "VOLUME_IN_USE")
    seen = (await http.get(f"/v1/volumes/{made['volume_id']}")).json()
    assert seen["attachments"] == [
        {"machine_id": machine["machine_id"], "path": "/data", "read_only": False}
    ]
    assert (await http.get("/v1/volumes")).json()["items"] == [seen]
    await http.delete(f"/v1/machines/{machine['machine_id']}")
    assert (await http.delete("/v1/volumes/data")).status_code == 204
    gone = await http.get("/v1/volumes/data")
    assert (gone.status_code, gone.json()["error_code"]) == (404, "VOLUME_NOT_FOUND")
    actions = {e["action"] for e in (await http.get("/v1/audit")).json()["items"]}
    assert {"volumes_create", "volumes_delete"} <= actions


async def test_another_tenants_is_a_missing_one(served: Served) -> None:
    await served.http.post("/v1/volumes", json={"name": "data"})
    async with served.client(served.other_key) as other:
        assert (await other.get("/v1/volumes/data")).status_code == 404
        assert (await other.delete("/v1/volumes/data")).status_code == 404
        assert (await other.get("/v1/volumes")).json()["items"] == []
        body = {**SMALL, "volumes": [{"name": "data", "path": "/data"}]}
        refused = await other.post("/v1/machines", json=body)
        assert (refused.status_code, refused.json()["error_code"]) == (404, "VOLUME_NOT_FOUND")


async def test_ends_wakes_samples_and_filters(served: Served) -> None:
    http = served.http
    body = {**SMALL, "ttl": "1h", "expiry": "sleep", "autowake": False, "labels": {"a b": "c"}}
    machine = (await http.post("/v1/machines", json=body)).json()
    assert (machine["expiry"], machine["autowake"]) == ("sleep", False)
    path = f"/v1/machines/{machine['machine_id']}"
    (sample,) = (await http.get(f"{path}/metrics")).json()["items"]
    assert sample["cpu_count"] == 0.1
    assert sample["disk_total_bytes"] == 100
    before = await http.get(f"{path}/metrics", params={"end": "2020-01-01T00:00:00Z"})
    assert before.json() == {"items": []}
    bad = await http.get(f"{path}/metrics", params={"start": "yesterday"})
    assert bad.status_code == 422
    await http.post(f"{path}/sleep")
    refused = await http.get(f"{path}/files", params={"path": "/etc/hostname"})
    assert (refused.status_code, refused.json()["error_code"]) == (409, "MACHINE_SLEEPING")
    changed = (await http.patch(path, json={"autowake": True, "expiry": "destroy"})).json()
    assert (changed["expiry"], changed["autowake"]) == ("destroy", True)
    other = (await http.post("/v1/machines", json=SMALL)).json()
    ids = [machine["machine_id"], other["machine_id"]]

    async def listed(**asked: object) -> list[str]:
        found = await http.get("/v1/machines", params=asked)  # type: ignore[arg-type]
        assert found.status_code == 200, found.text
        return [each["machine_id"] for each in found.json()["items"]]

    assert await listed(order="oldest") == ids
    assert await listed(phase=["running", "sleeping"]) == ids[::-1]
    assert await listed(phase="sleeping") == ids[:1]
    assert await listed(label="a b=c") == ids[:1]
    assert await listed(since=other["created_at"]) == ids[1:]
    assert (await http.get("/v1/machines", params={"order": "best"})).status_code == 422
