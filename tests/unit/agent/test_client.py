"""The client against a real agent."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from roost import ids
from roost.agent.client import AgentClient, Agents
from roost.agent.v1 import agent_pb2 as pb
from roost.errors import RoostError
from tests.unit.agent import process
from tests.unit.agent.process import TOKEN, AgentProcess
from tests.unit.engine.kit import until


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    with process.running(tmp_path / "agent") as found:
        yield found


@pytest.fixture
async def client(agent: AgentProcess) -> AsyncIterator[AgentClient]:
    found = AgentClient(agent.target, TOKEN)
    await found.wait_ready(10)
    yield found
    await found.close()


def started(**kw: object) -> pb.StartRequest:
    return pb.StartRequest(execution_id=ids.new(), **kw)  # type: ignore[arg-type]


async def code(call: object) -> str:
    with pytest.raises(RoostError) as found:
        await call  # type: ignore[misc]
    return found.value.code


async def test_waits_for_an_agent_that_comes_up_late(tmp_path: Path) -> None:
    took = []
    for n in range(5):
        directory = tmp_path / str(n)
        client = AgentClient(f"unix:{directory}/a.sock", TOKEN)
        assert await code(client.wait_ready(0.1)) == "TIMEOUT"
        waiting = asyncio.create_task(client.wait_ready(60))
        await asyncio.sleep(0.3)
        with process.running(directory) as agent:
            while not (agent.directory / "a.sock").exists():
                await asyncio.sleep(0.001)
            there = time.monotonic()
            await waiting
            took.append(time.monotonic() - there)
        await client.close()
        if took[-1] < 0.5:  # grpc's own pause between attempts is a second
            return
    pytest.fail(f"not once at once: {took}")


async def test_a_wrong_token_is_told_at_once(agent: AgentProcess) -> None:
    good = AgentClient(agent.target, TOKEN)
    await good.wait_ready(10)
    bad = AgentClient(agent.target, "another")
    begun = time.monotonic()
    assert await code(bad.wait_ready(60)) == "MACHINE_FAILED"
    assert time.monotonic() - begun < 20
    await bad.close()
    await good.close()


async def test_runs(client: AgentClient) -> None:
    result = await client.run(started(shell="echo out; echo err >&2; exit 3"))
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")
    assert result.execution.exit_code == 3


async def test_codes_of_the_agent(client: AgentClient) -> None:
    assert await code(client.run(started(argv=["no-such"]))) == "COMMAND_NOT_FOUND"
    assert await code(client.run(started(argv=["id"], user="nobody-here"))) == "USER_NOT_FOUND"
    assert await code(client.stat(b"/nowhere")) == "FILE_NOT_FOUND"
    assert await code(client.list_dir(b"/etc/passwd", 10, b"")) == "NOT_A_DIRECTORY"
    assert await code(client.wait("z" * 26)) == "EXECUTION_NOT_FOUND"
    again = started(argv=["true"])
    await client.run(again)
    assert await code(client.run(again)) == "ALREADY_EXISTS"


async def test_attached_from_the_middle(client: AgentClient) -> None:
    request = started(shell="printf 0123456789; sleep 0.1; printf abc")
    await client.start(request)
    while (await client.get_execution(request.execution_id)).stdout_bytes < 10:
        await asyncio.sleep(0.005)
    text = b""
    async for frame in client.attach(request.execution_id, stdout_offset=5):
        text += frame.data
        if frame.HasField("exit"):
            assert frame.exit.exit_code == 0
    assert text == b"56789abc"


async def test_a_reader_that_stops_holds_the_process_back(client: AgentClient) -> None:
    request = started(shell="yes | head -c 200000000; echo done >&2", ring_bytes=65536)
    await client.start(request)
    frames = client.attach(request.execution_id)
    await anext(frames)
    await asyncio.sleep(0.5)
    now = await client.get_execution(request.execution_id)
    assert now.state == pb.EXECUTION_STATE_RUNNING
    assert now.stdout_bytes < 50_000_000
    await frames.aclose()
    assert (await client.wait(request.execution_id)).execution.stdout_bytes == 200_000_000


async def test_files_both_ways(client: AgentClient, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "f")
    content = os.urandom(3 << 20)

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(content), 700_000):
            yield content[at : at + 700_000]

    info = await client.write_file(pb.WriteFileHeader(path=path), pieces())
    assert info.size == len(content)
    head, body = await client.read_file(path, offset=100, length=1_500_000)
    assert head.info.size == len(content)
    assert b"".join([piece async for piece in body]) == content[100:1_500_100]


async def test_an_upload_that_fails_leaves_the_old_file(
    client: AgentClient, tmp_path: Path
) -> None:
    (tmp_path / "f").write_text("old")

    async def breaks() -> AsyncIterator[bytes]:
        yield b"new"
        raise ConnectionError("the client went away")

    header = pb.WriteFileHeader(path=os.fsencode(tmp_path / "f"))
    with pytest.raises(ConnectionError):
        await client.write_file(header, breaks())
    await until(lambda: [p.name for p in tmp_path.iterdir() if p.is_file()] == ["f"])
    assert (tmp_path / "f").read_text() == "old"


async def test_a_refused_upload_says_why(client: AgentClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 20)

    call = client.write_file(pb.WriteFileHeader(path=b"/proc/nope/x"), endless())
    assert await asyncio.wait_for(code(call), 10) in ("FILE_NOT_FOUND", "PERMISSION_DENIED")


async def test_a_killed_agent_is_lost(client: AgentClient, agent: AgentProcess) -> None:
    running = asyncio.create_task(client.run(started(argv=["sleep", "60"])))
    await asyncio.sleep(0.2)
    agent.kill()
    assert await asyncio.wait_for(code(running), 15) == "AGENT_LOST"
    assert await code(client.stat(b"/")) == "AGENT_LOST"


async def test_agents_keep_one_client_a_machine(agent: AgentProcess) -> None:
    agents = Agents()
    one = agents.get("m", agent.target, TOKEN)
    assert agents.get("m", agent.target, TOKEN) is one is agents.peek("m")
    await one.wait_ready(10)
    waiting = asyncio.create_task(one.run(started(argv=["sleep", "60"])))
    await asyncio.sleep(0.1)
    assert agents.get("m", agent.target, "other") is not one
    assert await asyncio.wait_for(code(waiting), 15) == "AGENT_LOST"
    assert await code(one.stat(b"/")) == "AGENT_LOST"
    agents.drop("m")
    assert agents.peek("m") is None
    await agents.close()


async def test_it_syncs_and_runs_on(client: AgentClient) -> None:
    await client.sync()
    assert (await client.run(started(argv=["true"]))).execution.exit_code == 0
