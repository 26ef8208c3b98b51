"""Executions, terminals, ports, SSH and usage in this client's words."""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from roost.clock import SystemClock
from tests.unit.agent import process
from tests.unit.api.kit import Served
from tests.unit.dialects.dedalus.conftest import key, open_

SSH_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43


async def run(http: httpx.AsyncClient, url: str, *command: str, **more: Any) -> dict[str, Any]:
    """To its end."""
    answer = await http.post(f"{url}/executions", json={"command": command, **more})
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    one = f"{url}/executions/{said['execution_id']}"
    async with asyncio.timeout(10):
        while said["status"] in ("queued", "running"):
            await asyncio.sleep(0.02)
            said = (await http.get(one)).json()
    return said


async def test_executions(served: Served, http: httpx.AsyncClient) -> None:
    url = f"/v1/machines/{served.machine()}"
    script = 'cat; echo "$A" >&2; pwd; exit 3'
    said = await run(
        http, url, "sh", "-c", script, stdin="in\n", env={"A": "b"}, cwd="/tmp", timeout_ms=9000
    )
    assert (said["status"], said["exit_code"], said["cwd"]) == ("failed", 3, "/tmp")
    assert said["log_capture"] == {"state": "unavailable"} and said["completed_at"]
    one = f"{url}/executions/{said['execution_id']}"
    out = (await http.get(f"{one}/output")).json()
    assert (out["stdout"], out["stderr"], out["stdout_bytes"]) == ("in\n/tmp\n", "b\n", 8)
    found = (await http.get(f"{one}/events", params={"limit": 2})).json()
    assert [e["type"] for e in found["items"]] == ["lifecycle", "stdout"]
    rest = (await http.get(f"{one}/events", params={"cursor": found["next_cursor"]})).json()
    assert [e["type"] for e in rest["items"]] == ["stderr", "lifecycle"]
    assert (rest["items"][-1]["exit_code"], rest["next_cursor"]) == (3, None)
    listed = (await http.get(f"{url}/executions")).json()["items"]
    assert [each["execution_id"] for each in listed] == [said["execution_id"]]
    assert (await http.get(f"{one}/events?cursor=x")).json()["error_code"] == "INVALID_CURSOR"


async def test_executions_that_end_otherwise(served: Served, http: httpx.AsyncClient) -> None:
    url = f"/v1/machines/{served.machine()}"
    said = await run(http, url, "sleep", "60", timeout_ms=100)
    assert (said["status"], said["error_code"]) == ("expired", "TIMEOUT")
    answer = await http.post(f"{url}/executions", json={"command": ["no-such-command"]})
    said = answer.json()
    assert (answer.status_code, said["status"], said["exit_code"]) == (200, "failed", 127)
    assert said["error_code"] == "COMMAND_NOT_FOUND"
    said = (await http.post(f"{url}/executions", json={"command": ["sleep", "60"]})).json()
    assert (said["status"], said.get("exit_code")) == ("running", None)
    one = f"{url}/executions/{said['execution_id']}"
    running = (await http.get(f"{one}/events")).json()
    assert [e["status"] for e in running["items"]] == ["running"] and running["next_cursor"]
    assert (await http.delete(one)).json()["status"] == "cancelled"


async def opened(http: httpx.AsyncClient, served: Served) -> tuple[str, dict[str, Any]]:
    url = f"/v1/machines/{served.machine()}/terminals"
    body = {"width": 90, "height": 20, "shell": "/bin/sh", "env": {"PS1": "$ "}}
    answer = await http.post(url, json=body)
    assert answer.status_code == 200, answer.text
    return url, answer.json()


async def test_terminal_in_json(served: Served, http: httpx.AsyncClient) -> None:
    url, said = await opened(http, served)
    assert (said["status"], said["protocol"], said["width"]) == ("ready", "websocket", 90)
    ws_url = f"ws://127.0.0.1:{served.port}{url}/{said['terminal_id']}/stream"
    headers = {"authorization": f"Bearer {key(served)}"}
    async with connect(ws_url, additional_headers=headers) as ws:
        await ws.send(json.dumps({"type": "resize", "width": 71, "height": 8}))
        typed = base64.b64encode(b"stty size; exit\n").decode()
        await ws.send(json.dumps({"type": "input", "data": typed}))
        text, last = b"", {}
        async with asyncio.timeout(10):
            async for message in ws:
                last = json.loads(message)
                text += base64.b64decode(last.get("data", ""))
        assert b"8 71" in text and last["type"] == "closed"


async def test_stream_url_needs_no_header(served: Served, http: httpx.AsyncClient) -> None:
    url, said = await opened(http, served)
    async with connect(said["stream_url"]) as ws:
        await ws.send(json.dumps({"cols": 66, "rows": 9}))
        await ws.send(b"stty size\n")
        text = b""
        async with asyncio.timeout(10):
            while b"9 66" not in text:
                piece = await ws.recv()
                assert isinstance(piece, bytes)
                text += piece
    listed = (await http.get(url)).json()["items"]
    assert said["terminal_id"] in [each["terminal_id"] for each in listed]
    one = f"{url}/{said['terminal_id']}"
    assert (await http.get(one)).json()["width"] == 66
    gone = (await http.delete(one)).json()
    assert gone["status"] == "closed" and "stream_url" not in gone


async def test_a_terminal_that_has_closed(served: Served, http: httpx.AsyncClient) -> None:
    """It is told as long as it is known; no stream of it is begun."""
    url, said = await opened(http, served)
    async with connect(said["stream_url"]) as ws:
        await ws.send(b"exit\n")
        async with asyncio.timeout(10):
            async for _ in ws:
                pass
    one = f"{url}/{said['terminal_id']}"
    assert (await http.get(one)).json()["status"] == "closed"
    assert await refused(said["stream_url"]) == (409, "INVALID_STATE")
    assert (await http.delete(one)).json()["status"] == "closed"


async def refused(url: str) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as failure:
        async with connect(url):
            pass
    return failure.value.response.status_code, json.loads(failure.value.response.body)["error_code"]


async def test_what_proves_nothing(tmp_path: Path, agent: process.AgentProcess) -> None:
    shift = [timedelta()]
    clock = SimpleNamespace(now=lambda: datetime.now(UTC) + shift[0], sleep=SystemClock().sleep)
    async with open_(tmp_path, agent.target, clock) as served:
        async with served.client(key(served)) as http:
            url, said = await opened(http, served)
            _, other = await opened(http, served)
            good = said["stream_url"]
            assert await refused(good.partition("?")[0]) == (401, "AUTH_REQUIRED")
            assert await refused(good[:-3] + "abc") == (401, "AUTH_INVALID")
            crossed = good.replace(said["terminal_id"], other["terminal_id"])
            assert await refused(crossed) == (401, "AUTH_INVALID")
            query = good.partition("?")[2]
            below = f"http://127.0.0.1:{served.port}/dedalus{url}?{query}"
            assert (await httpx.AsyncClient().get(below)).status_code == 401
            shift[0] = timedelta(minutes=11)
            assert await refused(good) == (401, "AUTH_INVALID")
            shift[0] = timedelta()
            spare = await served.add_key("tenant-a")
            mine = (await http.get("/v1/machines")).status_code
            assert mine == 200 and spare
            keys = await served.keys.list("tenant-a")
            await served.keys.revoke(None, keys[0].id)
            assert await refused(good) == (401, "AUTH_INVALID")


@pytest.mark.parametrize("noun", ["port", "preview"])
async def test_ports(served: Served, http: httpx.AsyncClient, noun: str) -> None:
    url = f"/v1/machines/{served.machine()}/{noun}s"
    made = (await http.post(url, json={"port": 8000, "visibility": "public"})).json()
    assert (made["port"], made["visibility"], made["status"]) == (8000, "public", "ready")
    assert made["url"].startswith("http://8000-") and made["protocol"] == "http"
    again = await http.post(url, json={"port": 8000})
    assert (again.status_code, again.json()["error_code"]) == (409, "ALREADY_EXISTS")
    private = (await http.post(url, json={"port": 8001, "visibility": "org"})).json()
    assert private["visibility"] == "private"
    one = f"{url}/{made[f'{noun}_id']}"
    assert (await http.get(one)).json() == made
    assert (await http.get(url)).json()["items"] == [made, private]
    assert (await http.delete(one)).json()["status"] == "closed"
    assert (await http.get(one)).json()["error_code"] == "PORT_NOT_FOUND"


async def test_ssh(served: Served, http: httpx.AsyncClient) -> None:
    mid = served.machine()
    url = f"/v1/machines/{mid}/ssh"
    made = (await http.post(url, json={"public_key": SSH_KEY})).json()
    assert made["connection"] == {"endpoint": "127.0.0.1", "port": 2222, "ssh_username": mid}
    assert (await http.post(url, json={"public_key": SSH_KEY})).json() == made
    assert (await http.get(url)).json()["items"] == [made]
    one = f"{url}/{made['session_id']}"
    assert (await http.get(one)).json() == made
    assert (await http.delete(one)).json()["status"] == "closed"
    assert (await http.get(one)).status_code == 404
    assert await served.ssh_keys.list("tenant-a") == []
    own = await served.ssh_keys.add("tenant-a", SSH_KEY, "mine")
    assert (await http.get(url)).json()["items"] == []
    assert (await http.delete(f"{url}/{own.id}")).json()["error_code"] == "INVALID_STATE"
    bad = await http.post(url, json={"public_key": "nonsense"})
    assert bad.json()["error_code"] == "VALIDATION_FAILED"


async def test_usage(served: Served, http: httpx.AsyncClient) -> None:
    served.machine()
    said = (await http.get("/v1/usage?period_start=2026-01-01")).json()
    assert (said["provisioned_storage_gib"], said["billed_awake_seconds"]) == (10, 0)
    assert said["plan_slug"] == "self-hosted"
    for what in ("compute", "storage"):
        rows = (await http.get(f"/v1/usage/machines/{what}?period_start=2026-01-01")).json()
        assert rows["rows"] == [] and rows["period_start"] == "2026-01-01T00:00:00.000Z"
    wrong = await http.get("/v1/usage?period_start=yesterday")
    assert wrong.json()["error_code"] == "VALIDATION_FAILED"
    wrong = await http.get("/v1/usage/machines/compute?granularity=week")
    assert wrong.json()["error_code"] == "VALIDATION_FAILED"
