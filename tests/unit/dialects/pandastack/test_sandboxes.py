"""The life of sandboxes over an engine, and what their clients do after an error."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from roost.dialects.pandastack import errors
from roost.dialects.pandastack.app import action
from roost.errors import error
from roost.gateway.dispatch import Action
from roost.services.models import Role
from tests.unit.api.kit import OTHER, TENANT, Served
from tests.unit.dialects.pandastack.conftest import client

SMALL = {"template": "base"}


async def made(life: httpx.AsyncClient, **body: object) -> dict:
    answer = await life.post("/v1/sandboxes", json={**SMALL, **body})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_made_listed_and_ended(life: httpx.AsyncClient) -> None:
    box = await made(life, metadata={"user": "42"}, ttl_seconds=900, cpu=64, memory_mb=1)
    assert box["status"] == "running" and box["template"] == "base"
    assert box["metadata"] == {"user": "42"} and box["cpu"] == 1
    assert box["guest_ip"] and isinstance(box["boot_ms"], int) and box["boot_mode"]
    assert (box["persistent"], box["ttl_seconds"]) == (False, 900)
    found = (await life.get(f"/v1/sandboxes/{box['id']}")).json()
    assert {k: v for k, v in box.items() if not k.startswith("boot")} == found
    listed = (await life.get("/v1/sandboxes")).json()
    assert listed == [found]
    ended = await life.delete(f"/v1/sandboxes/{box['id']}")
    assert (ended.status_code, ended.content) == (204, b"")
    for answer in (
        await life.get(f"/v1/sandboxes/{box['id']}"),
        await life.delete(f"/v1/sandboxes/{box['id']}"),
        await life.post(f"/v1/sandboxes/{box['id']}/exec", json={"cmd": "true"}),
    ):
        assert answer.status_code == 404 and list(answer.json()) == ["error"]
    assert (await life.get("/v1/sandboxes")).json() == []


async def test_every_port_is_shown_by_the_host_their_clients_make(
    life: httpx.AsyncClient, engine: Served
) -> None:
    box = await made(life)
    shown = engine.ports.at(f"8123-{box['id']}")
    assert shown is not None and shown.public
    assert (shown.port, shown.machine_id) == (8123, box["id"])
    for own in (7111, 7113, 7114, 9222):  # Roost's own
        assert engine.ports.at(f"{own}-{box['id']}") is None
    [child] = (await life.post(f"/v1/sandboxes/{box['id']}/fork")).json()["children"]
    assert engine.ports.at(f"1-{child}") is not None


async def test_one_whose_ports_cannot_be_shown_is_not_there(
    life: httpx.AsyncClient, engine: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*args: object, **kw: object) -> None:
        raise error("DATABASE_UNAVAILABLE", "not now")

    monkeypatch.setattr(engine.ports, "create", refuse)
    answer = await life.post("/v1/sandboxes", json=SMALL)
    assert answer.status_code == 503
    assert (await life.get("/v1/sandboxes")).json() == []


async def test_one_that_was_made_and_failed_is_taken_down(
    life: httpx.AsyncClient, engine: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = engine.machines.create

    async def fail(*args: Any) -> None:
        machine = await create(*args)
        raise error("CAPACITY_EXCEEDED", "too late", details={"machine_id": machine.id})

    monkeypatch.setattr(engine.machines, "create", fail)
    answer = await life.post("/v1/sandboxes", json=SMALL)
    assert answer.status_code == 500 and "retry-after" not in answer.headers
    assert (await life.get("/v1/sandboxes")).json() == []


async def test_the_clients_own_default_template(life: httpx.AsyncClient) -> None:
    assert (await made(life, template="ubuntu-24.04"))["template"] == "base"
    answer = await life.post("/v1/sandboxes", json={"template": "no-such"})
    assert answer.status_code == 404 and "no-such" in answer.json()["error"]


async def test_paused_hibernated_and_awake_again(life: httpx.AsyncClient) -> None:
    at = f"/v1/sandboxes/{(await made(life))['id']}"

    async def status() -> str:
        return str((await life.get(at)).json()["status"])

    for _ in range(2):
        assert (await life.post(f"{at}/pause")).status_code == 204
        assert await status() in ("paused", "hibernated")
    for _ in range(2):
        assert (await life.post(f"{at}/resume")).status_code == 204
        assert await status() == "running"
    for asleep, awake in (("hibernate", "wake"), ("stop", "start")):
        assert (await life.post(f"{at}/{asleep}")).json()["status"] == "hibernated"
        assert (await life.post(f"{at}/{awake}")).json()["status"] == "running"


async def test_its_lifecycle(life: httpx.AsyncClient) -> None:
    at = f"/v1/sandboxes/{(await made(life))['id']}/lifecycle"
    assert (await life.get(at)).json() == {
        "ttl_seconds": 0, "persistent": False, "idle_seconds": 0, "expires_at": None,
    }  # fmt: skip

    async def set_(**body: object) -> tuple[object, ...]:
        said = (await life.patch(at, json=body)).json()
        return said["ttl_seconds"], said["persistent"], said["idle_seconds"]

    assert await set_(ttl_seconds=60) == (60, False, 0)
    assert await set_(persistent=True) == (60, True, 300)
    assert await set_(idle_seconds=77) == (60, True, 77)
    assert await set_(persistent=True) == (60, True, 77)
    assert await set_(ttl_seconds=0) == (0, True, 77)
    assert await set_(persistent=False) == (0, False, 0)
    wrong = await life.patch(at, json={"ttl_seconds": "soon"})
    assert wrong.status_code == 400
    assert (await made(life, persistent=True))["persistent"] is True


async def test_forks_of_a_sandbox(life: httpx.AsyncClient) -> None:
    box = await made(life, metadata={"user": "42"}, ttl_seconds=900)
    at = f"/v1/sandboxes/{box['id']}"
    plain = await life.post(f"{at}/fork", content="", headers={"content-type": "text/plain"})
    said = plain.json()
    assert said["parent_id"] == box["id"] and said["children"] == [said["sandbox"]["id"]]
    child = (await life.get(f"/v1/sandboxes/{said['children'][0]}")).json()
    assert child["metadata"] == {"user": "42", "fork_parent_id": box["id"]}
    assert (child["template"], child["ttl_seconds"]) == ("base", 900)
    other = (await life.post(f"{at}/fork", json={"metadata": {"a": "b"}})).json()["sandbox"]
    assert other["metadata"] == {"a": "b", "fork_parent_id": box["id"]}
    two = (await life.post(f"{at}/fork", json={"count": 2})).json()["children"]
    assert len(set(two)) == 2


async def test_the_best_of_a_tree_stays(life: httpx.AsyncClient) -> None:
    box = await made(life)
    at = f"/v1/sandboxes/{box['id']}"
    for count in (0, 17):
        answer = await life.post(f"{at}/fork-tree", json={"count": count})
        assert answer.status_code == 400
    asked = {"count": 3, "metadata": {"explore": "1", "explore_ttl": "600"}}
    tree = (await life.post(f"{at}/fork-tree", json=asked)).json()
    ids = [each["id"] for each in tree["children"]]
    assert len(set(ids)) == 3
    for each in tree["children"]:
        assert each["metadata"]["fork_tree_id"] == tree["tree_id"]
        assert each["ttl_seconds"] == 600
    bystander = (await life.post(f"{at}/fork")).json()["children"][0]

    body = {"cleanup_siblings": True}
    said = (await life.post(f"/v1/sandboxes/{ids[1]}/promote", json=body)).json()
    assert (said["winner"], said["tree_id"], said["failures"]) == (ids[1], tree["tree_id"], {})
    assert sorted(said["deleted"]) == sorted([ids[0], ids[2]])
    alive = {each["id"] for each in (await life.get("/v1/sandboxes")).json()}
    assert alive == {box["id"], ids[1], bystander}
    winner = (await life.get(f"/v1/sandboxes/{ids[1]}")).json()
    assert winner["ttl_seconds"] == 0 and "fork_tree_id" not in winner["metadata"]
    again = await life.post(f"/v1/sandboxes/{ids[1]}/promote")
    assert again.json()["deleted"] == []
    refused = await life.post(f"{at}/promote", json=body)
    assert refused.status_code == 400


async def test_a_life_of_a_tree_beyond_all_bounds(life: httpx.AsyncClient) -> None:
    at = f"/v1/sandboxes/{(await made(life))['id']}/fork-tree"
    answer = await life.post(at, json={"metadata": {"explore_ttl": "9" * 5000}})
    assert answer.status_code == 400


async def test_snapshots(life: httpx.AsyncClient) -> None:
    box = await made(life, metadata={"a": "b"})
    taken = await life.post(f"/v1/sandboxes/{box['id']}/snapshots")
    snapshot = taken.json()
    assert taken.status_code == 201 and snapshot["sandbox_id"] == box["id"]
    assert (await life.get(f"/v1/snapshots/{snapshot['id']}")).json() == snapshot
    assert (await life.get("/v1/snapshots")).json() == {"snapshots": [snapshot]}
    none = await life.get("/v1/snapshots", params={"sandbox_id": "z" * 26})
    assert none.json() == {"snapshots": []}
    # Its clients always name a template; the snapshot has its own.
    other = await made(life, template="code-interpreter", from_snapshot=snapshot["id"])
    assert (other["from_snapshot"], other["template"]) == (snapshot["id"], "base")
    assert (await life.delete(f"/v1/snapshots/{snapshot['id']}")).status_code == 204
    gone = await life.get(f"/v1/snapshots/{snapshot['id']}")
    assert gone.status_code == 404 and list(gone.json()) == ["error"]


async def test_who_asks_and_their_keys(engine: Served) -> None:
    async with client(engine) as http:
        assert (await http.get("/v1/me")).json()["workspace"] == TENANT
        answer = await http.post("/v1/me/tokens", json={"label": "ci", "expires_in_days": 1})
        token = answer.json()
        assert token["token"].startswith("pds_") and answer.headers["cache-control"] == "no-store"
        listed = (await http.get("/v1/me/tokens")).json()
        assert token["prefix"] in {each["prefix"] for each in listed}
        assert "token" not in listed[0]
        async with engine.client(token["token"]) as other:
            assert (await other.get("/v1/me")).status_code == 200
            revoked = await http.delete(f"/v1/me/tokens/{token['prefix']}")
            assert revoked.status_code == 204
            assert (await other.get("/v1/me")).status_code == 401
    reads = await engine.add_key(TENANT, Role.READ_ONLY)
    async with client(engine, reads) as http:
        assert (await http.get("/v1/sandboxes")).status_code == 200
        refused = await http.post("/v1/sandboxes", json=SMALL)
        assert refused.status_code == 403 and list(refused.json()) == ["error"]


async def test_the_key_chooses_what_a_path_means(engine: Served) -> None:
    """/v1/snapshots is native for a native key; /v1/sandboxes is PandaStack's for every key."""
    assert "items" in (await engine.http.get("/v1/snapshots")).json()
    assert (await engine.http.get("/v1/sandboxes")).json() == []
    async with engine.client(None) as nobody, engine.client("pds_" + "0" * 64) as wrong:
        for http in (nobody, wrong):
            answer = await http.get("/v1/sandboxes")
            assert answer.status_code == 401 and list(answer.json()) == ["error"]
    async with client(engine) as http:
        for path in ("/v1/machines", "/v1/nothing", "/elsewhere"):
            answer = await http.get(path)
            assert answer.status_code == 404, path
        assert list((await http.get("/v1/nothing")).json()) == ["error"]
        assert (await http.put("/v1/sandboxes")).status_code == 405


@pytest.mark.parametrize("path", ["apps", "databases/x", "functions", "schedules/1/runs"])
async def test_what_is_not_served_says_so(life: httpx.AsyncClient, path: str) -> None:
    for method in ("GET", "POST"):
        answer = await life.request(method, f"/v1/{path}")
        assert answer.status_code == 501
        assert "does not serve" in answer.json()["error"]


async def test_what_changes_something_is_in_the_audit_log(
    life: httpx.AsyncClient, engine: Served
) -> None:
    box = await made(life)
    await life.post(f"/v1/sandboxes/{box['id']}/pause")
    await life.get("/v1/sandboxes")
    entries = (await engine.http.get("/v1/audit")).json()["items"]
    told = [(each["action"], each["machine_id"], each["status"]) for each in entries]
    assert told == [
        ("pandastack.post.sandboxes.pause", box["id"], 204),
        ("pandastack.post.sandboxes", box["id"], 201),
    ]


def test_what_a_call_is_in_the_audit_log() -> None:
    """By its words: which machine, and whether it is of the machine or in it, also where more follows."""
    machine = "a" * 26

    def of(method: str, rest: str) -> Action:
        path = f"/v1/sandboxes/{machine}/{rest}"
        return action({"type": "http", "method": method, "path": path})

    inside = of("POST", "repl/sessions/python.x/run")
    assert inside == Action("pandastack.post.sandboxes.repl.sessions.run", False, machine)
    ports = of("DELETE", "ports/8000")
    assert ports == Action("pandastack.delete.sandboxes.ports", True, machine)


async def test_anothers_sandbox_is_not_there(life: httpx.AsyncClient, engine: Served) -> None:
    async with client(engine, engine.other_key) as theirs:
        box = await made(theirs)
        at = f"/v1/sandboxes/{box['id']}"
        for method, path in (
            ("GET", at), ("DELETE", at), ("POST", f"{at}/pause"), ("POST", f"{at}/fork"),
            ("POST", f"{at}/snapshots"), ("GET", f"{at}/lifecycle"), ("GET", f"{at}/logs"),
            ("POST", f"{at}/promote"),
        ):  # fmt: skip
            assert (await life.request(method, path)).status_code == 404, path
        assert OTHER and (await theirs.get(at)).status_code == 200


async def test_its_life_is_in_its_log(life: httpx.AsyncClient) -> None:
    box = await made(life)
    answer = await life.get(f"/v1/sandboxes/{box['id']}/logs", params={"stream": "both"})
    assert answer.headers["content-type"].startswith("text/plain")
    assert "running" in answer.text
    assert (await life.get(f"/v1/sandboxes/{box['id']}/logs?stream=x")).status_code == 400
    async with life.stream("GET", f"/v1/sandboxes/{box['id']}/logs?follow=true") as stream:
        async for line in stream.aiter_lines():
            if line.startswith("data:"):
                assert json.loads(line[5:])["line"]
                break


def test_what_their_clients_send_again() -> None:
    """A 503 or 429 with Retry-After and a 507 promise that nothing was made."""

    def said(code: str, **details: object) -> tuple[int, bool, dict]:
        status, headers, body = errors.problem(error(code, "no", details=details), "r")
        return status, b"retry-after" in dict(headers), json.loads(body)

    assert said("CAPACITY_EXCEEDED") == (503, True, {"error": "no"})
    assert said("STORAGE_FULL") == (507, False, {"error": "no"})
    assert said("RATE_LIMITED") == (429, True, {"error": "no"})
    assert said("QUOTA_EXCEEDED") == (429, False, {"error": "no"})
    for code in ("CAPACITY_EXCEEDED", "STORAGE_FULL"):
        assert said(code, machine_id="m") == (500, False, {"error": "no"})
    assert said("VALIDATION_FAILED")[0] == 400
    assert said("TIMEOUT") == (500, False, {"error": "timeout: no"})
    assert said("INVALID_STATE")[0] == 409
    assert said("INVALID_STATE", phase="destroyed")[0] == 404


async def test_volumes(life: httpx.AsyncClient) -> None:
    made = await life.post("/v1/volumes", json={"name": "data", "size_mb": 1500})
    volume = made.json()
    assert made.status_code == 201 and (volume["name"], volume["size_mb"]) == ("data", 2048)
    assert (await life.get("/v1/volumes/data")).json() == volume
    assert (await life.get("/v1/volumes")).json() == [volume]
    taken = await life.post("/v1/volumes", json={"name": "data", "size_mb": 1})
    assert taken.status_code == 409
    huge = await life.post("/v1/volumes", json={"name": "huge", "size_mb": 65_537})
    assert huge.status_code == 400
    box = await made_with(life, {"name": "data", "read_only": False})
    assert (await life.get("/v1/volumes/data")).json()["attached_to"] == [box]
    second = await life.post("/v1/sandboxes", json={**SMALL, "volumes": [{"name": "data"}]})
    assert second.status_code == 409 and list(second.json()) == ["error"]
    assert (await life.delete("/v1/volumes/data")).status_code == 409
    await life.delete(f"/v1/sandboxes/{box}")
    assert (await life.delete("/v1/volumes/data")).status_code == 204
    assert (await life.get("/v1/volumes/data")).status_code == 404
    none = await life.post("/v1/sandboxes", json={**SMALL, "volumes": [{"name": "data"}]})
    assert none.status_code == 404


async def made_with(life: httpx.AsyncClient, *volumes: dict) -> str:
    return str((await made(life, volumes=[*volumes]))["id"])
