"""Trees, promotion and diffs over HTTP, with the engine behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost.services.models import Role
from tests.unit.api.kit import OTHER, TENANT, Served, serving
from tests.unit.engine.kit import daemon, small


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with daemon(tmp_path) as d, serving(tmp_path, None, engine=d) as found:
        yield found


async def test_a_fork_says_whose_child_it_is_and_takes_its_place(served: Served) -> None:
    http = served.http
    parent = (await http.post("/v1/machines", json={"key": "user-42", "memory_mib": 64})).json()
    assert (parent["parent_id"], parent["from_snapshot_id"], parent["replaces"]) == (None,) * 3
    path = f"/v1/machines/{parent['machine_id']}"
    port = (await http.post(f"{path}/ports", json={"port": 8080})).json()
    forked = await http.post(f"{path}/fork", json={"count": 2})
    child, other = forked.json()["items"]
    assert child["parent_id"] == other["parent_id"] == parent["machine_id"]
    found = await http.get("/v1/machines", params={"parent": parent["machine_id"]})
    assert {m["machine_id"] for m in found.json()["items"]} == {
        child["machine_id"],
        other["machine_id"],
    }

    answer = await http.post(f"/v1/machines/{child['machine_id']}/promote")
    assert answer.status_code == 200
    promoted = answer.json()
    assert (promoted["key"], promoted["replaces"]) == ("user-42", parent["machine_id"])
    assert answer.headers["etag"] == f'"{promoted["status"]["revision"]}"'
    ports = await http.get(f"/v1/machines/{child['machine_id']}/ports")
    assert ports.json()["items"][0]["url"] == port["url"]
    assert ports.json()["items"][0]["machine_id"] == child["machine_id"]

    refused = await http.post(
        f"/v1/machines/{other['machine_id']}/promote", json={"onto": child["machine_id"]}
    )
    assert (refused.status_code, refused.json()["error_code"]) == (409, "INVALID_STATE")
    bad = await http.post(f"/v1/machines/{other['machine_id']}/promote", json={"previous": "eat"})
    assert bad.status_code == 422

    tree = (await http.get("/v1/tree", params={"machine": child["machine_id"]})).json()
    shown = {n["id"]: (n["parent_id"], n["replaces"]) for n in tree["items"]}
    assert shown == {
        parent["machine_id"]: (None, None),
        child["machine_id"]: (parent["machine_id"], parent["machine_id"]),
    }
    assert len((await http.get("/v1/tree")).json()["items"]) == 3
    entries = (await http.get("/v1/audit")).json()["items"]
    promotions = [e for e in entries if e["action"] == "machines_promote"]
    assert {e["status"] for e in promotions} >= {200, 409}
    assert child["machine_id"] in {e["machine_id"] for e in promotions}


async def test_what_is_anothers_is_not_there(served: Served) -> None:
    machines = served.engine.machines
    mine = await machines.create(TENANT, small())
    theirs = await machines.create(OTHER, small())
    calls = [
        ("GET", f"/v1/machines/{mine.id}/diff?other={theirs.id}"),
        ("GET", f"/v1/machines/{theirs.id}/diff?other={mine.id}"),
        ("GET", f"/v1/machines/{mine.id}/diff?other={'z' * 26}"),
        ("POST", f"/v1/machines/{theirs.id}/promote"),
        ("GET", f"/v1/tree?machine={theirs.id}"),
    ]
    answers = [await served.http.request(*call) for call in calls]
    answers.append(
        await served.http.post(f"/v1/machines/{mine.id}/promote", json={"onto": theirs.id})
    )
    for answer in answers:
        assert (answer.status_code, answer.json()["error_code"]) == (404, "MACHINE_NOT_FOUND")
    assert theirs.id not in (await served.http.get("/v1/tree")).text


async def test_who_may_only_read_promotes_nothing(served: Served) -> None:
    mine = await served.engine.machines.create(TENANT, small())
    async with served.client(await served.add_key(TENANT, Role.READ_ONLY)) as http:
        assert (await http.post(f"/v1/machines/{mine.id}/promote")).status_code == 403
        assert (await http.get("/v1/tree")).status_code == 200


async def test_a_fork_has_a_key(served: Served) -> None:
    http = served.http
    parent = (await http.post("/v1/machines", json={"memory_mib": 64})).json()["machine_id"]
    made = await http.post(f"/v1/machines/{parent}/fork", json={"key": "copy"})
    assert made.status_code == 201
    assert made.json()["items"][0]["key"] == "copy"
    again = await http.post(f"/v1/machines/{parent}/fork", json={"key": "copy"})
    assert again.json()["error_code"] == "ALREADY_EXISTS"


async def test_up_the_ladder(served: Served) -> None:
    http = served.http
    mine = (await http.post("/v1/machines", json={"memory_mib": 64})).json()["machine_id"]
    path = f"/v1/machines/{mine}/promote"
    for body, code in (
        ({"isolation": "microvm"}, "RUNG_UNAVAILABLE"),
        ({"driver": "none"}, "RUNG_UNAVAILABLE"),
        ({"isolation": "workspace"}, "VALIDATION_FAILED"),
        ({"isolation": "container", "previous": "destroy"}, "VALIDATION_FAILED"),
        ({"driver": "fake", "onto": mine}, "VALIDATION_FAILED"),
    ):
        answer = await http.post(path, json=body)
        assert answer.json()["error_code"] == code, body
    same = await http.post(path, json={"isolation": "container"})
    assert (same.status_code, same.json()["machine_id"]) == (200, mine)


async def test_an_unrestricted_machine_is_warned_of_and_in_the_audit_log_as_one(
    served: Served,
) -> None:
    http = served.http
    body = {"memory_mib": 64, "unrestricted": True}
    made = (await http.post("/v1/machines", json=body)).json()
    assert made["unrestricted"]
    assert made["warnings"]
    plain = (await http.put("/v1/machines/by-key/k", json={"memory_mib": 64})).json()
    assert (plain["unrestricted"], plain["warnings"]) == (False, [])
    await http.put("/v1/machines/by-key/u", json=body)
    await http.put("/v1/machines/by-key/u", json=body)  # that one is there already
    entries = (await http.get("/v1/audit")).json()["items"]
    noted = [e["machine_id"] for e in entries if e["action"] == "machines_unrestricted"]
    assert len(noted) == 2
    assert made["machine_id"] in noted
    await http.post(f"/v1/machines/{made['machine_id']}/fork", json={})
    entries = (await http.get("/v1/audit")).json()["items"]
    assert sum(e["action"] == "machines_unrestricted" for e in entries) == 3, "and of its fork"
    told = (await http.get(f"/v1/machines/{made['machine_id']}/logs")).json()["items"]
    assert "unrestricted" in [each["event"] for each in told]


async def test_a_tenants_machines_are_held_to_an_isolation(served: Served) -> None:
    admin, path = served.client(served.admin), f"/v1/tenants/{TENANT}"
    async with admin as http:
        assert (await http.get(path)).json()["isolation"] is None
        bad = await http.patch(path, json={"isolation": "castle"})
        assert bad.status_code == 422
        held = await http.patch(path, json={"isolation": "microvm"})
        assert held.json()["isolation"] == "microvm"
        kept = await http.patch(path, json={"quotas": {}})
        assert kept.json()["isolation"] == "microvm"
        refused = await served.http.post("/v1/machines", json={"isolation": "container"})
        assert (refused.status_code, refused.json()["error_code"]) == (403, "RUNG_REFUSED")
        told = (await served.http.get("/v1/capabilities")).json()
        freed = await http.patch(path, json={"isolation": None})
        assert freed.json()["isolation"] is None
    assert {"profile", "rungs", "advice"} <= set(told)
    assert all(each["reason"] is None for each in told["rungs"])
    made = await served.http.post("/v1/machines", json={"memory_mib": 64})
    assert made.status_code == 201
