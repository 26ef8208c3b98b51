"""The streams on which machines ask: whose they are, when they stand, and what a hostile one can cost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from roost.agent.client import AgentClient
from roost.agent.v1 import agent_pb2 as pb
from roost.engine.machine import Machine
from roost.engine.roster import Roster
from roost.errors import RoostError, error
from roost.services.inside import links
from roost.services.inside.links import Links
from roost.services.inside.said import Answer, Asked
from tests.attack.record import case
from tests.unit.agent.process import TOKEN, running
from tests.unit.agent.test_hostile import lying
from tests.unit.engine.kit import TENANT, until


class Stream:
    """What an agent sends, and what it was told."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.told: list[tuple[int, int]] = []
        self.reads = 0
        self.stuck = asyncio.Event()
        self.stuck.set()
        self.over = ""

    def ask(self, number: int, path: str = "/v1/status") -> None:
        self.incoming.put_nowait(pb.InsideRequest(id=number, method="GET", path=path))

    async def read(self) -> Any:
        asked = await self.incoming.get()
        self.reads += 1
        if isinstance(asked, BaseException):
            raise asked
        return asked

    async def answer(self, request_id: int, status: int, body: bytes) -> None:
        await self.stuck.wait()
        self.told.append((request_id, status))

    async def leave(self) -> None:
        self.over = "left"
        self.incoming.put_nowait(None)

    def close(self) -> None:
        self.over = self.over or "closed"


class Agent:
    def __init__(self) -> None:
        self.streams: list[Stream] = []

    def inside(self) -> Stream:
        self.streams.append(Stream())
        return self.streams[-1]


class Driver:
    async def wait(self, handle: Any) -> Any:
        await asyncio.Event().wait()


class Answers:
    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.hold = asyncio.Event()
        self.hold.set()

    async def answer(self, machine: Machine, asked: Asked) -> Answer:
        self.asked.append((machine.id, asked.path))
        await self.hold.wait()
        return Answer(200, {"machine_id": machine.id}, machine.id)


class Kit:
    def __init__(self) -> None:
        self.roster = Roster(time.monotonic, lambda *_: None)
        self.answers = Answers()
        self.links = Links(self.roster, self.answers, time.monotonic)

    def add(self, machine_id: str, agent: Any = None, tenant: str = TENANT) -> Any:
        agent = agent or Agent()
        machine: Any = SimpleNamespace(id=machine_id, tenant_id=tenant, generation=1)
        live: Any = SimpleNamespace(machine=machine, agent=agent, config={}, handle=None)
        self.roster.add(live, Driver())  # type: ignore[arg-type]
        return agent

    async def stream(self, agent: Agent, number: int = 1) -> Stream:
        await until(lambda: len(agent.streams) >= number)
        return agent.streams[number - 1]


@pytest.fixture
async def k(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kit]:
    monkeypatch.setattr(links, "SETTLE_S", 0.0)
    monkeypatch.setattr(links, "PAUSE_S", 0.01)
    kit = Kit()
    kit.links.open()
    yield kit
    await kit.links.close()
    kit.roster.clear()


@case(30)
async def test_who_asks_is_whose_stream_it_is(k: Kit) -> None:
    first, second = k.add("a"), k.add("b")
    one, two = await k.stream(first), await k.stream(second)
    one.ask(1, "/v1/machines/b")
    two.ask(1)
    await until(lambda: one.told and two.told)
    assert sorted(k.answers.asked) == [("a", "/v1/machines/b"), ("b", "/v1/status")]
    assert (one.told, two.told) == ([(1, 200)], [(1, 200)])


async def test_it_stands_while_the_machine_runs_and_is_somebodys(k: Kit) -> None:
    nobodys = k.add("n", tenant=links.NOBODY)
    agent = k.add("a")
    stream = await k.stream(agent)
    assert not nobodys.streams and len(k.links) == 1
    k.roster.freeze("a")
    await until(lambda: stream.over)
    assert stream.over == "left" and len(k.links) == 0
    machine: Any = SimpleNamespace(id="a", tenant_id=TENANT, generation=2)
    k.roster.thaw(machine)
    again = await k.stream(agent, 2)
    k.roster.touch("a")
    another = k.add("a")  # from a capture on, with another way to its agent
    await until(lambda: again.over == "left")
    await k.stream(another)
    k.roster.remove("a")
    await until(lambda: another.streams[0].over == "left")
    assert len(k.links) == 0


async def test_an_open_stream_is_no_use_of_the_machine(k: Kit) -> None:
    agent = k.add("a")
    stream = await k.stream(agent)
    before = k.roster.idle_for("a")
    k.answers.hold.clear()
    stream.ask(1)
    await until(lambda: k.answers.asked)
    assert before is not None and (k.roster.idle_for("a") or 0.0) > before
    k.answers.hold.set()
    await until(lambda: stream.told)


async def test_a_broken_stream_is_opened_again_ever_later(k: Kit) -> None:
    agent = k.add("a")
    for number in (1, 2, 3):
        stream = await k.stream(agent, number)
        stream.incoming.put_nowait(error("AGENT_LOST", "gone") if number < 3 else None)
    await k.stream(agent, 4)
    assert [each.over for each in agent.streams[:3]] == ["closed"] * 3


async def test_an_agent_of_before_is_asked_once(k: Kit) -> None:
    agent = k.add("a")
    (await k.stream(agent)).incoming.put_nowait(error("UNSUPPORTED", "too old"))
    await asyncio.sleep(0.1)
    assert len(agent.streams) == 1


@case(32)
async def test_a_flood_is_read_slowly_and_refused(k: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "READS", 100.0)
    monkeypatch.setattr(links, "READS_AT_ONCE", 50.0)
    flood, calm = k.add("flood"), k.add("calm")
    stream, other = await k.stream(flood), await k.stream(calm)
    for number in range(1, 5000):
        stream.ask(number)
    other.ask(1)
    await until(lambda: other.told)
    await asyncio.sleep(0.3)
    assert stream.reads < 150
    refused = [status for _, status in stream.told if status == 429]
    assert len(refused) >= 20 and len(k.answers.asked) < 50


async def test_few_are_under_way_at_once(k: Kit) -> None:
    agent = k.add("a")
    stream = await k.stream(agent)
    k.answers.hold.clear()
    for number in range(1, 20):
        stream.ask(number)
    await until(lambda: stream.reads == 19)
    await until(lambda: len(k.answers.asked) == links.AT_ONCE)
    await until(lambda: len(stream.told) == 19 - links.AT_ONCE)
    assert {status for _, status in stream.told} == {429}
    k.answers.hold.set()
    await until(lambda: len(stream.told) == 19)


@case(32)
async def test_a_tenants_machines_hold_up_nobody_elses(
    k: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "ALL_AT_ONCE", 2)
    mine = [await k.stream(k.add(name)) for name in ("a", "b", "c")]
    k.answers.hold.clear()
    for stream in mine:
        stream.ask(1)
    await until(lambda: len(k.answers.asked) == 2)
    (await k.stream(k.add("x", tenant="other"))).ask(1)
    await until(lambda: ("x", "/v1/status") in k.answers.asked)
    assert len(k.answers.asked) == 3
    k.answers.hold.set()


@case(29)
async def test_a_number_used_twice_ends_the_stream(k: Kit) -> None:
    agent = k.add("a")
    stream = await k.stream(agent)
    k.answers.hold.clear()
    stream.ask(7)
    stream.ask(7)
    await until(lambda: stream.over)
    assert len(k.answers.asked) == 1
    k.answers.hold.set()


@case(32)
async def test_who_takes_no_answer_is_hung_up_on(k: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "TAKE_S", 0.05)
    stuck, calm = k.add("stuck"), k.add("calm")
    stream, other = await k.stream(stuck), await k.stream(calm)
    stream.stuck.clear()
    stream.ask(1)
    other.ask(1)
    await until(lambda: other.told)
    await until(lambda: stream.over == "closed")


async def test_what_takes_too_long_is_told_and_goes_on(
    k: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "ANSWER_S", 0.05)
    agent = k.add("a")
    stream = await k.stream(agent)
    k.answers.hold.clear()
    stream.ask(1)
    await until(lambda: stream.told == [(1, 504)])
    k.answers.hold.set()
    stream.ask(2)
    await until(lambda: (2, 200) in stream.told)
    assert stream.told == [(1, 504), (2, 200)]


# --- a real agent -------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def real(tmp_path: Path) -> AsyncIterator[tuple[AgentClient, Path]]:
    with running(tmp_path) as agent:
        client = AgentClient(agent.target, TOKEN)
        await client.wait_ready(20)
        try:
            yield client, tmp_path / "inside.sock"
        finally:
            await client.close()


async def ask(socket: Path, path: str) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: roost\r\n\r\n".encode())
    said = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return int(said.split()[1]), said.partition(b"\r\n\r\n")[2]


async def test_from_a_program_to_the_answer(k: Kit, tmp_path: Path) -> None:
    async with real(tmp_path) as (client, socket):
        k.add("a", client)
        assert await ask(socket, "/v1/status") == (200, b'{"machine_id": "a"}')
        k.answers.hold.clear()
        waiting = asyncio.ensure_future(ask(socket, "/v1/slow"))
        await until(lambda: len(k.answers.asked) == 2)
        k.roster.freeze("a")  # who waits is told, before anything stands still
        status, body = await waiting
        assert status == 503 and b"DAEMON_UNREACHABLE" in body
        k.answers.hold.set()
        k.roster.thaw(SimpleNamespace(id="a", tenant_id=TENANT, generation=2))  # type: ignore[arg-type]
        assert (await ask(socket, "/v1/status"))[0] == 200


async def test_a_closed_client_takes_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As before a capture, which must find no connection."""
    monkeypatch.setattr("roost.agent.client.LEAVE_S", 60.0)
    async with real(tmp_path) as (client, socket):
        stream = client.inside()
        reading = asyncio.ensure_future(stream.read())
        waiting = asyncio.ensure_future(ask(socket, "/"))
        asked = await asyncio.wait_for(reading, 15)
        assert asked is not None and asked.path == "/"
        reading = asyncio.ensure_future(stream.read())
        began = time.monotonic()
        await client.close()
        assert time.monotonic() - began < 30  # not for want of an end
        assert await reading is None
        assert (await waiting)[0] == 503
        await stream.answer(asked.id, 200, b"late")  # to nobody


async def test_an_agent_of_another_release_says_so(tmp_path: Path) -> None:
    async with lying(tmp_path) as client:  # it knows of no such call
        stream = client.inside()
        with pytest.raises(RoostError) as found:
            await stream.read()
        assert found.value.code == "UNSUPPORTED"
        stream.close()


@case(29)
@pytest.mark.parametrize(
    "frame",
    [
        b"\xff\xff\xff",
        b"\x12\xff\xff\xff\xff\x7f",
        b"\x12\x02\xff\xfe",
        pb.InsideRequest(id=1, method="get", path="/").SerializeToString(),
        pb.InsideRequest(id=1, method="GET", path="status").SerializeToString(),
        pb.InsideRequest(id=1, method="GET", path="/\r\nx").SerializeToString(),
        pb.InsideRequest(id=1, method="GET", path="/" + "x" * 2000).SerializeToString(),
        pb.InsideRequest(id=1, method="GET", path="/", body=bytes(20_000)).SerializeToString(),
        pb.InsideRequest(id=1, method="GET", path="/", body=bytes(8 << 20)).SerializeToString(),
    ],
)
async def test_frames_that_cannot_be(tmp_path: Path, frame: bytes) -> None:
    async with lying(tmp_path, Inside=(frame,)) as client:
        stream = client.inside()
        with pytest.raises(RoostError) as found:
            await stream.read()
        assert found.value.code == "MACHINE_FAILED"
        stream.close()
