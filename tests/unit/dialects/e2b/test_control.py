"""E2B's control plane over HTTP, with the engine behind it and machines made up."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import pytest

from roost.services.models import Role
from tests.unit.api.kit import TENANT, Served
from tests.unit.dialects.e2b.conftest import as_e2b
from tests.unit.engine.kit import Daemon, small


async def made(e2b: httpx.AsyncClient, **asked: Any) -> dict[str, Any]:
    answer = await e2b.post("/v2/sandboxes", json={"templateID": "base", **asked})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def test_a_sandbox_lives_and_ends(e2b: httpx.AsyncClient) -> None:
    box = await made(e2b, timeout=60, metadata={"user": "42"}, envVars={"A": "b"})
    assert box["envdVersion"] == "0.6.13" and len(box["envdAccessToken"]) == 64
    assert box["trafficAccessToken"] is None, "its ports are everybody's"
    one = f"/sandboxes/{box['sandboxID']}"
    info = (await e2b.get(one)).json()
    assert (info["state"], info["templateID"], info["metadata"]) == (
        "running",
        "base",
        {"user": "42"},
    )
    assert info["lifecycle"] == {"autoResume": False, "onTimeout": "kill"}
    assert info["envdAccessToken"] == box["envdAccessToken"]
    left = at(info["endAt"]) - datetime.now(UTC)
    assert timedelta(seconds=50) < left < timedelta(seconds=61)
    assert (await e2b.post(f"{one}/timeout", json={"timeout": 600})).status_code == 204
    info = (await e2b.get(one)).json()
    assert at(info["endAt"]) - datetime.now(UTC) > timedelta(seconds=590)
    assert (await e2b.delete(one)).status_code == 204
    gone = await e2b.delete(one)
    assert gone.status_code == 404 and gone.json()["code"] == 404
    assert "was not found" in gone.json()["message"]
    assert (await e2b.get(one)).status_code == 404


async def test_it_is_paused_and_resumed(e2b: httpx.AsyncClient) -> None:
    box = await made(e2b)
    one = f"/sandboxes/{box['sandboxID']}"
    assert (await e2b.post(f"{one}/pause", json={})).status_code == 204
    info = (await e2b.get(one)).json()
    assert (info["state"], info["pauseMode"]) == ("paused", "full")
    again = await e2b.post(f"{one}/pause", json={})
    assert (again.status_code, again.json()["code"]) == (409, 409)
    back = await e2b.post(f"/v2{one}/connect", json={"timeout": 120})
    assert back.status_code == 201 and back.json()["envdAccessToken"] == box["envdAccessToken"]
    assert (await e2b.post(f"/v2{one}/connect", json={"timeout": 120})).status_code == 200
    refused = await e2b.post(f"{one}/resume", json={})
    assert refused.status_code == 409
    assert (await e2b.post(f"{one}/pause", json={"memory": False})).status_code == 204
    assert (await e2b.get(one)).json()["pauseMode"] == "filesystem"
    assert (await e2b.post(f"{one}/resume", json={"timeout": 60})).status_code == 201


async def test_a_paused_sandbox_has_no_end(e2b: httpx.AsyncClient, served: Served) -> None:
    box = await made(e2b, timeout=3)
    one = f"/sandboxes/{box['sandboxID']}"
    assert (await e2b.post(f"{one}/pause", json={})).status_code == 204
    await asyncio.sleep(3.2)
    assert (await e2b.get(one)).json()["state"] == "paused"
    assert (await e2b.post(f"{one}/timeout", json={"timeout": 5})).status_code == 404
    assert (await e2b.post(f"/v2{one}/connect", json={"timeout": 60})).status_code == 201
    machine = await served.machines.get("tenant-a", box["sandboxID"])
    assert machine.ttl_seconds == 60


async def test_a_sandbox_that_does_not_start_is_none(
    e2b: httpx.AsyncClient, engine: Daemon
) -> None:
    engine.host.driver.fail("start", RuntimeError("broken"), RuntimeError("broken"))
    answer = await e2b.post("/v2/sandboxes", json={"templateID": "base"})
    assert answer.status_code >= 500
    assert (await e2b.get("/v2/sandboxes")).json() == []


async def test_connecting_never_takes_time_away(e2b: httpx.AsyncClient) -> None:
    box = await made(e2b, timeout=3600)
    await e2b.post(f"/v2/sandboxes/{box['sandboxID']}/connect", json={"timeout": 10})
    info = (await e2b.get(f"/sandboxes/{box['sandboxID']}")).json()
    assert at(info["endAt"]) - datetime.now(UTC) > timedelta(seconds=3500)


async def test_what_happens_at_its_end_and_on_traffic_is_the_machines(
    e2b: httpx.AsyncClient, served: Served
) -> None:
    box = await made(e2b, autoPause=True, autoResume={"enabled": True})
    machine = await served.machines.get("tenant-a", box["sandboxID"])
    assert (machine.expiry, machine.autowake, machine.autosleep_seconds) == ("sleep", True, 300)
    info = (await e2b.get(f"/sandboxes/{box['sandboxID']}")).json()
    assert info["lifecycle"] == {"autoResume": True, "onTimeout": "pause"}
    plain = await served.machines.get("tenant-a", (await made(e2b))["sandboxID"])
    assert (plain.expiry, plain.autowake, plain.ttl_seconds) == ("destroy", False, 300)


async def test_lists_by_metadata_state_order_and_page(e2b: httpx.AsyncClient) -> None:
    odd = {"team a/b": "x&y=z ü"}
    strange = (await made(e2b, metadata=odd))["sandboxID"]
    asked = urlencode({quote(name): quote(value) for name, value in odd.items()})
    answer = await e2b.get("/v2/sandboxes", params={"metadata": asked})
    assert [each["sandboxID"] for each in answer.json()] == [strange]
    await e2b.delete(f"/sandboxes/{strange}")
    boxes = [await made(e2b, metadata={"n": str(n), "what": "a&b =c"}) for n in range(5)]
    paused = boxes[1]["sandboxID"]
    await e2b.post(f"/sandboxes/{paused}/pause", json={})

    async def listed(**query: Any) -> list[str]:
        found, token = [], ""
        while True:
            more = {"nextToken": token} if token else {}
            answer = await e2b.get("/v2/sandboxes", params={**query, **more})
            assert answer.status_code == 200, answer.text
            found += [each["sandboxID"] for each in answer.json()]
            token = answer.headers.get("x-next-token", "")
            if not token:
                return found

    every = [each["sandboxID"] for each in boxes]
    assert await listed() == every[::-1]
    assert await listed(order="asc") == every
    assert await listed(order="asc", limit=2) == every
    assert await listed(state="paused") == [paused]
    assert await listed(state="running,paused", limit=1) == every[::-1]
    asked = urlencode({quote("what"): quote("a&b =c"), quote("n"): "3"})
    assert await listed(metadata=asked) == [every[3]]
    assert await listed(template="base") == every[::-1]
    assert await listed(template="other") == []
    assert await listed(startedAfter=(datetime.now(UTC) + timedelta(hours=1)).isoformat()) == []
    assert len((await e2b.get("/sandboxes")).json()) == 4, "older clients see those that run"
    for bad in ({"state": "odd"}, {"order": "up"}, {"nextToken": "x"}, {"limit": "0"}):
        answer = await e2b.get("/v2/sandboxes", params=bad)
        assert (answer.status_code, answer.json()["code"]) == (400, 400), bad


async def test_forks_and_snapshots_are_sandboxes(e2b: httpx.AsyncClient) -> None:
    box = await made(e2b, metadata={"a": "b"}, network={"allowPublicTraffic": False})
    assert box["trafficAccessToken"]
    one = f"/sandboxes/{box['sandboxID']}"
    forked = await e2b.post(f"{one}/fork", json={"count": 2, "timeout": 60})
    assert forked.status_code == 201
    children = [each["sandbox"] for each in forked.json()]
    assert len({each["sandboxID"] for each in children}) == 2
    assert all(each["trafficAccessToken"] for each in children), "as their parent"
    info = (await e2b.get(f"/sandboxes/{children[0]['sandboxID']}")).json()
    assert info["metadata"] == {"a": "b"} and info["network"]["allowPublicTraffic"] is False

    kept = await e2b.post(f"{one}/snapshots", json={"name": "before"})
    assert kept.status_code == 201
    snapshot = kept.json()["snapshotID"]
    assert kept.json()["names"] == ["before:default"]
    for named in (snapshot, "before", "before:default", "team/before:default"):
        again = await made(e2b, templateID=named)
        assert again["templateID"] == snapshot
    listed = await e2b.get("/snapshots", params={"sandboxID": box["sandboxID"]})
    assert [each["snapshotID"] for each in listed.json()] == [snapshot]
    listed = await e2b.get("/snapshots", params={"name": "before"})
    assert [each["snapshotID"] for each in listed.json()] == [snapshot]
    assert (await e2b.get("/snapshots", params={"name": "none"})).json() == []
    assert (await e2b.delete(f"/templates/{quote('before:default', safe='')}")).status_code == 204
    assert (await e2b.delete(f"/templates/{snapshot}")).status_code == 404


async def test_errors_are_said_as_e2b_says_them(
    e2b: httpx.AsyncClient, other: httpx.AsyncClient, served: Served
) -> None:
    box = await made(e2b)
    one = f"/sandboxes/{box['sandboxID']}"
    for method, path in (("GET", one), ("DELETE", one), ("POST", f"{one}/pause")):
        answer = await other.request(method, path)
        assert answer.status_code == 404, "another tenant's is none"
    wrong = {"x-api-key": "e2b_" + "0" * 64}
    answer = await e2b.get(one, headers=wrong)
    assert (answer.status_code, answer.json()["code"]) == (401, 401)
    answer = await e2b.post("/v2/sandboxes", json={"templateID": "none-such"})
    assert (answer.status_code, answer.json()["code"]) == (404, 404)
    answer = await e2b.post("/v2/sandboxes", json={"templateID": 5})
    assert (answer.status_code, answer.json()["code"]) == (400, 400)
    answer = await e2b.get("/nothing")
    assert (answer.status_code, answer.json()["code"]) == (404, 404)
    answer = await e2b.get("/secrets")
    assert answer.status_code == 501 and "Roost does not serve" in answer.json()["message"]
    for asked in (
        {"iam": {"tokens": {"a": {}}}},
        {"mcp": {"x": {}}},
        {"autoPause": True, "autoPauseMemory": False},
    ):
        answer = await e2b.post("/v2/sandboxes", json={"templateID": "base", **asked})
        assert answer.status_code == 501, answer.text
    await served.tenants.set("tenant-a", quotas={"machines": 1})
    answer = await e2b.post("/v2/sandboxes", json={"templateID": "base"})
    assert (answer.status_code, answer.headers["should-retry"]) == (429, "false")


async def test_an_idempotency_key_makes_one(e2b: httpx.AsyncClient) -> None:
    asked = {"templateID": "base"}
    answers = [
        await e2b.post("/v2/sandboxes", json=asked, headers={"idempotency-key": "k-1"})
        for _ in range(2)
    ]
    assert answers[0].json() == answers[1].json()


async def test_ports_are_shown_as_it_was_asked(e2b: httpx.AsyncClient, served: Served) -> None:
    box = await made(e2b)
    shut = await made(e2b, network={"allowPublicTraffic": False})
    domain = box["domain"]

    async def visit(sandbox: str, port: int, **headers: str) -> httpx.Response:
        return await e2b.get(
            "/", headers={"host": f"{port}-{sandbox}.{domain}", "x-api-key": "", **headers}
        )

    # Nothing listens in a machine that is made up.
    answer = await visit(box["sandboxID"], 3000)
    assert answer.status_code == 502 and "port is not open" in answer.json()["message"]
    assert (answer.json()["sandboxId"], answer.json()["port"]) == (box["sandboxID"], 3000)
    answer = await visit(shut["sandboxID"], 3000)
    assert (answer.status_code, answer.json()["code"]) == (403, 403)
    token = {"e2b-traffic-access-token": shut["trafficAccessToken"]}
    assert (await visit(shut["sandboxID"], 3000, **token)).status_code == 502
    wrong = {"e2b-traffic-access-token": shut["trafficAccessToken"][:-4] + "AAAA"}
    assert (await visit(shut["sandboxID"], 3000, **wrong)).status_code == 403
    for ours in (7111, 7114, 9222):
        assert (await visit(box["sandboxID"], ours)).status_code in (401, 502)
        assert served.ports.at(f"{ours}-{box['sandboxID']}") is None
    await e2b.delete(f"/sandboxes/{box['sandboxID']}")
    await asyncio.sleep(0.1)
    answer = await visit(box["sandboxID"], 3000)
    assert (answer.status_code, answer.json()["message"]) == (502, "The sandbox was not found")


async def test_hosts_of_the_api_are_no_previews(e2b: httpx.AsyncClient) -> None:
    box = await made(e2b)
    host = {"host": f"api.{box['domain']}"}
    answer = await e2b.get(f"/sandboxes/{box['sandboxID']}", headers=host)
    assert answer.status_code == 200 and answer.json()["domain"] == box["domain"]


async def test_the_network_is_replaced(e2b: httpx.AsyncClient, served: Served) -> None:
    box = await made(e2b)
    one = f"/sandboxes/{box['sandboxID']}"
    asked = {"allowOut": ["api.example.com"], "denyOut": ["0.0.0.0/0"]}
    assert (await e2b.put(f"{one}/network", json=asked)).status_code == 204
    assert (await e2b.get(one)).json()["network"] == {"allowPublicTraffic": True, **asked}
    assert (await e2b.put(f"{one}/network", json={})).status_code == 204
    assert (await e2b.get(one)).json()["network"] == {"allowPublicTraffic": True}


async def test_metrics_and_logs(e2b: httpx.AsyncClient) -> None:
    box = await made(e2b)
    found = await e2b.get(f"/sandboxes/{box['sandboxID']}/metrics")
    assert found.status_code == 200 and isinstance(found.json(), list)
    several = await e2b.get("/sandboxes/metrics", params={"sandbox_ids": box["sandboxID"]})
    assert several.status_code == 200 and "sandboxes" in several.json()
    logs = (await e2b.get(f"/sandboxes/{box['sandboxID']}/logs")).json()
    assert logs["logs"] and set(logs["logs"][0]) == {"timestamp", "line"}


@pytest.mark.parametrize("role", [Role.READ_ONLY, Role.RUNNER])
async def test_who_may_only_read_is_told_nothing_to_change_with(
    e2b: httpx.AsyncClient, served: Served, role: Role
) -> None:
    box = (await e2b.post("/sandboxes", json={"templateID": "base"})).json()
    volume = (await e2b.post("/volumes", json={"name": "data"})).json()
    files = f"/templates/mine/files/{'c' * 64}"
    async with as_e2b(served, await served.add_key(TENANT, role)) as reader:
        shown = await reader.get(f"/sandboxes/{box['sandboxID']}")
        assert shown.status_code == 200 and box["envdAccessToken"]
        assert box["envdAccessToken"] not in shown.text
        shown = await reader.get(f"/volumes/{volume['volumeID']}")
        assert shown.status_code == 200 and volume["token"] not in shown.text
        assert (await reader.get(files)).status_code == 403
    assert (await e2b.get(files)).json()["url"]


async def test_resuming_opens_nobodys_ports_to_everybody(
    e2b: httpx.AsyncClient, engine: Daemon, served: Served
) -> None:
    own = await engine.machines.create(TENANT, small())  # natively: none of its ports is shown
    await engine.machines.sleep(TENANT, own.id)
    resumed = await e2b.post(f"/sandboxes/{own.id}/connect", json={"timeout": 60})
    assert resumed.status_code == 201
    every = served.ports.every(own.id)
    assert every is not None and not every.public and resumed.json()["trafficAccessToken"]
    box = await made(e2b)  # here it stays as it was asked
    await e2b.post(f"/sandboxes/{box['sandboxID']}/pause")
    again = await e2b.post(f"/sandboxes/{box['sandboxID']}/connect", json={"timeout": 60})
    assert again.status_code == 201 and again.json()["trafficAccessToken"] is None
