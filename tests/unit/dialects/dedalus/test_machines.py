"""Machines in this client's words, and what it is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from roost.errors import MachineError
from roost.services.models import CreateMachine, Role
from tests.unit.api.kit import OTHER, TENANT, Served, events
from tests.unit.dialects.dedalus.conftest import key, open_
from tests.unit.engine.kit import daemon

SIZE = {"vcpu": 1, "memory_mib": 2048, "storage_gib": 10}


async def test_life(served: Served, http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/machines", json={**SIZE, "autosleep": "7d3h"})
    made = answer.json()
    assert (answer.status_code, answer.headers["etag"]) == (200, '"1"')
    # Both versions' shapes at once.
    assert made["phase"] == made["status"]["phase"] == "running"
    assert made["autosleep_seconds"] == 7 * 86400 + 3 * 3600
    assert (made["status"]["revision"], made["status"]["memory_configured_mib"]) == ("1", 2048)
    assert made["desired_state"] == "running" and made["created_at"]
    url = f"/v1/machines/{made['machine_id']}"
    assert (await http.get(url)).json() == made
    assert (await http.get("/v1/machines")).json() == {"items": [made], "next_cursor": None}
    changed = (await http.patch(url, json={"autosleep": "never"})).json()
    assert changed["autosleep_seconds"] == 0
    slept = (await http.post(f"{url}/sleep")).json()
    assert (slept["phase"], slept["desired_state"]) == ("sleeping", "sleeping")
    assert (await http.post(f"{url}/wake")).json()["phase"] == "running"
    generation = served.machines.machines[made["machine_id"]].generation
    assert (await http.post(f"{url}/reboot?force=true")).json()["phase"] == "running"
    assert served.machines.machines[made["machine_id"]].generation == generation + 1
    gone = await http.delete(url)
    assert (gone.status_code, gone.json()["phase"]) == (200, "destroyed")


async def test_waking_is_starting(served: Served, http: httpx.AsyncClient) -> None:
    machine = served.machines.add(TENANT)
    served.machines.change(
        machine, phase="waking", last_error={"error_code": "X", "message": "it fell"}
    )
    status = (await http.get(f"/v1/machines/{machine.id}")).json()["status"]
    assert (status["phase"], status["last_error"], status["reason"]) == ("starting", "it fell", "")


async def test_one_that_takes_long_is_answered_as_it_is(
    served: Served, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.dialects.dedalus.machines.PATIENCE_S", 0.05)

    async def create(tenant: str, req: CreateMachine, wait: bool = True) -> object:
        assert not wait
        return served.machines.change(served.machines.add(tenant, req), phase="starting")

    monkeypatch.setattr(served.machines, "create", create)
    answer = await http.post("/v1/machines", json=SIZE)
    assert (answer.status_code, answer.json()["phase"]) == (202, "starting")


async def test_if_match(served: Served, http: httpx.AsyncClient) -> None:
    url = f"/v1/machines/{served.machine()}"
    old = {"if-match": '"7"'}
    for answer in (
        await http.patch(url, json={"autosleep": "1h"}, headers=old),
        await http.post(f"{url}/sleep", headers=old),
        await http.post(f"{url}/wake", headers=old),
        await http.delete(url, headers=old),
    ):
        assert (answer.status_code, answer.json()["error_code"]) == (412, "REVISION_MISMATCH")
        assert answer.headers["x-should-retry"] == "false"
    answer = await http.patch(url, json={"autosleep": "1h"}, headers={"if-match": '"1"'})
    assert answer.json()["status"]["revision"] == "2"


async def test_watch_ends_with_what_was_wanted(served: Served, http: httpx.AsyncClient) -> None:
    machine = served.machines.add(TENANT)
    url = f"/v1/machines/{machine.id}/status/stream"
    async with http.stream("GET", url) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = [each async for each in events(answer.aiter_lines())]
    assert [(name, data["status"]["revision"]) for name, data in found] == [("status", "1")]
    assert b"id: 1\n" in (await http.get(url)).content
    assert b"event" not in (await http.get(url, headers={"last-event-id": "1"})).content


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v1/machines/{other}", None, 404, "MACHINE_NOT_FOUND"),
        ("GET", "/v1/machines/none/executions", None, 404, "MACHINE_NOT_FOUND"),
        ("GET", "/v1/machines?limit=0", None, 422, "VALIDATION_FAILED"),
        ("GET", "/v1/machines?cursor=x", None, 422, "INVALID_CURSOR"),
        ("POST", "/v1/machines", {**SIZE, "vcpu": "two"}, 422, "VALIDATION_FAILED"),
        ("POST", "/v1/machines", {**SIZE, "autosleep": "soon"}, 422, "VALIDATION_FAILED"),
        ("POST", "/v1/machines/{own}/executions", {"command": []}, 422, "VALIDATION_FAILED"),
        ("POST", "/v1/machines/{own}/executions", {"command": "ls"}, 422, "VALIDATION_FAILED"),
        ("PUT", "/v1/machines/{own}", None, 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/v1/elsewhere", None, 404, "NOT_FOUND"),
        ("GET", "/v1/machines/{own}/artifacts", None, 501, "UNSUPPORTED"),
        ("DELETE", "/v1/machines/{own}/artifacts/a", None, 501, "UNSUPPORTED"),
        ("GET", "/v1/machines/{own}/executions/e/logs", None, 501, "UNSUPPORTED"),
        ("POST", "/v1/machines/{own}/executions/e/logs/token", None, 501, "UNSUPPORTED"),
        ("POST", "/v1/machines/{own}/executions/e/logs/reauthorize", None, 501, "UNSUPPORTED"),
        ("PUT", "/v1/machines/{own}/autoresizing", {"enabled": True}, 501, "UNSUPPORTED"),
        ("GET", "/v1/organization/autoresizing", None, 501, "UNSUPPORTED"),
        ("POST", "/v1/machines/{own}/ports", {"port": 1, "protocol": "https"}, 501, "UNSUPPORTED"),
    ],
)  # fmt: skip
async def test_refused(
    served: Served,
    http: httpx.AsyncClient,
    method: str,
    path: str,
    body: object,
    status: int,
    code: str,
) -> None:
    path = path.format(own=served.machine(), other=served.machine(OTHER))
    answer = await http.request(method, path, json=body)
    said = answer.json()
    assert (answer.status_code, said["error_code"], said["retryable"]) == (status, code, False)
    assert answer.headers["x-should-retry"] == "false"
    assert said["message"] and said["details"]["request_id"]


async def test_the_form_of_the_key_chooses(served: Served) -> None:
    mid = served.machine()
    wrong = "dsk_" + "0" * 64
    async with served.client(None) as nobody:
        native = await nobody.get(f"/v1/machines/{mid}", headers={"x-api-key": served.key})
        assert "isolation" in native.json()
        ours = await nobody.get(f"/v1/machines/{mid}", headers={"x-api-key": key(served)})
        assert "isolation" not in ours.json() and ours.json()["phase"] == "running"
        below = await nobody.get(f"/dedalus/v1/machines/{mid}", headers={"x-api-key": served.key})
        assert below.json() == ours.json()
        assert (await nobody.get(f"/dedalus/v1/machines/{mid}")).status_code == 401
        missing = await nobody.get("/dedalus/v1/nothing", headers={"x-api-key": served.key})
        assert (missing.status_code, missing.headers["x-should-retry"]) == (404, "false")
        refused = await nobody.get("/v1/machines", headers={"authorization": f"Bearer {wrong}"})
        assert (refused.status_code, refused.json()["error_code"]) == (401, "AUTH_INVALID")
        assert refused.headers["x-should-retry"] == "false"


async def test_once_for_a_key_of_idempotency(served: Served, http: httpx.AsyncClient) -> None:
    head = {"idempotency-key": "stainless-python-retry-1"}
    first = await http.post("/v1/machines", json=SIZE, headers=head)
    again = await http.post("/v1/machines", json=SIZE, headers=head)
    assert first.json() == again.json()
    other = await http.post("/v1/machines", json={**SIZE, "vcpu": 2}, headers=head)
    assert (other.status_code, other.json()["error_code"]) == (409, "IDEMPOTENCY_KEY_REUSED")
    assert other.headers["x-should-retry"] == "false"


async def test_in_the_audit_log(bare: Served) -> None:
    async with bare.client(key(bare)) as http:
        made = (await http.post("/v1/machines", json=SIZE)).json()
    await bare.audit.close()
    async with bare.client(bare.admin) as admin:
        found = (await admin.get("/v1/audit", params={"limit": 5})).json()["items"]
    assert found[0]["action"] == "dedalus_machines_create"
    assert found[0]["machine_id"] == made["machine_id"]


async def test_a_create_is_watched_until_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the real engine: answered while it starts, told as it comes on, and the stream ends."""
    monkeypatch.setattr("roost.dialects.dedalus.machines.PATIENCE_S", 0.1)
    async with daemon(tmp_path) as d, open_(tmp_path, None, engine=d) as served:
        may = d.host.driver.script.hangs["start"] = asyncio.Event()
        async with served.client(key(served)) as http:
            answer = await http.post("/v1/machines", json={**SIZE, "memory_mib": 64})
            made = answer.json()
            assert (answer.status_code, made["desired_state"]) == (202, "running"), made
            seen = []
            url = f"/v1/machines/{made['machine_id']}"
            async with http.stream("GET", f"{url}/status/stream") as stream:
                async for _, data in events(stream.aiter_lines()):
                    seen.append(data["status"]["phase"])
                    may.set()
            assert (seen[0], seen[-1]) == ("starting", "running")
            assert (await http.get(url)).json()["phase"] == "running"


async def test_one_that_fails_to_start_is_answered_so(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d, open_(tmp_path, None, engine=d) as served:
        d.host.driver.script.errors["start"] = [MachineError("no", code="MACHINE_FAILED")] * 9
        async with served.client(key(served)) as http:
            made = (await http.post("/v1/machines", json={**SIZE, "memory_mib": 64})).json()
            assert made["phase"] == "failed" and made["status"]["last_error"], made


async def test_a_key_that_may_only_read(served: Served) -> None:
    reader = f"dsk_{(await served.add_key(TENANT, Role.READ_ONLY)).rpartition('_')[2]}"
    url = f"/v1/machines/{served.machine()}"
    async with served.client(reader) as http:
        assert (await http.get(url)).status_code == 200
        refused = await http.post(f"{url}/sleep")
        assert (refused.status_code, refused.json()["error_code"]) == (403, "FORBIDDEN")


async def test_a_body_over_the_limit(served: Served, http: httpx.AsyncClient) -> None:
    url = f"/v1/machines/{served.machine()}/executions"
    answer = await http.post(url, json={"command": ["cat"], "stdin": "x" * (5 << 20)})
    assert (answer.status_code, answer.json()["error_code"]) == (413, "PAYLOAD_TOO_LARGE")
    assert answer.headers["x-should-retry"] == "false"
