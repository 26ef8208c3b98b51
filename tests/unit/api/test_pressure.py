"""A client that is slow, or goes away, costs the daemon nothing that grows."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from roost.agent.client import AgentClient
from roost.gateway.metrics import resident_bytes
from tests.attack.record import case
from tests.unit.api.kit import Served, events, until

MIB = 2**20


async def slow_get(served: Served, request: bytes, seconds: float) -> float:
    """Reads a kilobyte now and then; the most the daemon grew meanwhile, in MiB."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=4096)
    before = resident_bytes()
    writer.write(request)
    most = 0.0
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        await reader.read(1024)
        most = max(most, resident_bytes() - before)
        await asyncio.sleep(0.02)
    writer.close()
    return most / MIB


def head(served: Served, line: str, body: str = "") -> bytes:
    return (
        f"{line} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {served.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    ).encode()


@case(6)
async def test_endless_output_to_a_slow_reader(served: Served) -> None:
    mid = served.machine()
    body = '{"command": "yes"}'
    request = head(served, f"POST /v1/machines/{mid}/executions/stream", body)
    assert await slow_get(served, request, 3.0) < 40
    (row,) = await served.rows.running(mid)
    answer = await served.http.delete(f"/v1/machines/{mid}/executions/{row.id}")
    assert answer.json()["status"] == "cancelled"


async def counted(served: Served, mid: str, command: str, pause_s: float = 0.0) -> int:
    """Bytes of stdout that a streamed command's reader gets, which pauses at every 100th event."""
    count = number = 0
    async with served.http.stream(
        "POST", f"/v1/machines/{mid}/executions/stream", json={"command": command}
    ) as answer:
        async for name, data in events(answer.aiter_lines()):
            assert name != "dropped", data
            if name == "stdout":
                assert data["offset"] == count
                count += len(base64.b64decode(data["data_b64"]))
            if name == "exit":
                assert (data["status"], data["stdout_bytes"]) == ("succeeded", count)
            number += 1
            if number % 100 == 0:
                await asyncio.sleep(pause_s)
    return count


async def test_a_stream_has_every_byte_from_the_first(served: Served) -> None:
    mid = served.machine()
    for _ in range(3):
        assert await counted(served, mid, "head -c 100000000 /dev/zero") == 100_000_000


async def test_a_stream_has_every_byte_however_late_it_attaches(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach = AgentClient.attach

    async def late(self: AgentClient, *args: Any) -> AsyncGenerator[Any, None]:
        await asyncio.sleep(1.0)
        async for frame in attach(self, *args):
            yield frame

    monkeypatch.setattr(AgentClient, "attach", late)
    mid = served.machine()
    assert await counted(served, mid, "head -c 30000000 /dev/zero") == 30_000_000


async def test_a_slow_reader_gets_every_byte(served: Served) -> None:
    mid = served.machine()
    assert await counted(served, mid, "head -c 50000000 /dev/zero", pause_s=0.2) == 50_000_000


async def test_a_started_execution_waits_for_its_first_reader(served: Served) -> None:
    mid = served.machine()
    path = f"/v1/machines/{mid}/executions"
    body = {"command": "head -c 30000000 /dev/zero"}
    started = (await served.http.post(path, params={"wait": False}, json=body)).json()
    await asyncio.sleep(0.3)
    count = 0
    async with served.http.stream("GET", f"{path}/{started['execution_id']}/stream") as answer:
        async for name, data in events(answer.aiter_lines()):
            assert name != "dropped", data
            count += len(base64.b64decode(data["data_b64"])) if name == "stdout" else 0
    assert count == 30_000_000


async def test_a_large_file_to_a_slow_reader(served: Served, tmp_path: Path) -> None:
    mid = served.machine()
    path = tmp_path / "large"
    made = {"command": f"truncate -s 2G {path}"}
    await served.http.post(f"/v1/machines/{mid}/executions", json=made)
    request = head(served, f"GET /v1/machines/{mid}/files?path={path}")
    assert await slow_get(served, request, 2.0) < 40
    await served.http.delete(f"/v1/machines/{mid}/files", params={"path": str(path)})


@case(6)
async def test_a_gigabyte_of_output_waited_for(served: Served) -> None:
    mid = served.machine()
    before = resident_bytes()
    answer = await served.http.post(
        f"/v1/machines/{mid}/executions",
        json={"command": "head -c 1000000000 /dev/zero | tr '\\0' x"},
    )
    done = answer.json()
    assert done["stdout_bytes"] == 1_000_000_000 and done["stdout_truncated"]
    assert (resident_bytes() - before) / MIB < 60


@case(6)
async def test_clients_that_go_away_leave_nothing(served: Served) -> None:
    mid = served.machine()
    body = '{"command": "echo x; sleep 60"}'
    for _ in range(5):
        request = head(served, f"POST /v1/machines/{mid}/executions/stream", body)
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(request)
        await reader.readuntil(b"event: stdout")
        writer.close()
    await until(lambda: not served.front.state.tasks)
    assert not served.front._endless
    for row in await served.rows.running(mid):
        await served.http.delete(f"/v1/machines/{mid}/executions/{row.id}")
