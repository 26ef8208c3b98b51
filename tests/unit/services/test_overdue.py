"""An execution past its timeout ends, whatever its agent does."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from roost.agent.v1 import agent_pb2 as pb
from roost.clock import SystemClock
from roost.errors import MachineError, RoostError
from roost.services import overdue
from roost.services.overdue import Overdue
from roost.store.executions import ExecutionRow


class Agent:
    """Never ends what it started by itself. ``answers``: whether it says anything at all."""

    def __init__(self, answers: bool = True) -> None:
        self.answers = answers
        self.over: asyncio.Future[pb.ExecutionResult] = asyncio.get_running_loop().create_future()

    async def get_execution(self, execution_id: str) -> pb.Execution:
        if not self.answers:
            await asyncio.Event().wait()
        return pb.Execution(execution_id=execution_id, supervisor_pid=7)

    async def output(self, execution_id: str) -> pb.ExecutionResult:
        await self.get_execution(execution_id)
        said = pb.Execution(execution_id=execution_id, state=pb.EXECUTION_STATE_RUNNING)
        return pb.ExecutionResult(execution=said, stdout=b"so far")


class Host:
    def __init__(self, agent: Agent | None = None) -> None:
        self.agent = agent
        self.asked: list[int] = []

    async def end_tree(self, machine_id: str, pid: int) -> bool:
        self.asked.append(pid)
        if self.agent is None:
            raise MachineError("it cannot", code="UNSUPPORTED")
        said = pb.Execution(state=pb.EXECUTION_STATE_EXITED, signal=9, exit_code=137)
        self.agent.over.set_result(pb.ExecutionResult(execution=said))
        return True


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overdue, "FORCE_S", 0.05)
    monkeypatch.setattr(overdue, "ANSWER_S", 0.05)


def row(timeout_ms: int | None = 50) -> ExecutionRow:
    clock = SystemClock()
    return ExecutionRow(
        id="e", tenant_id="t", machine_id="m", command=["x"], status="running",
        created_at=clock.now(), timeout_ms=timeout_ms,
    )  # fmt: skip


async def end(agent: Agent, host: Host, **kw: Any) -> dict[str, Any]:
    fake: Any = agent
    return await asyncio.wait_for(Overdue(host, SystemClock()).end(fake, row(**kw), agent.over), 30)


async def test_the_host_ends_what_the_agent_does_not() -> None:
    agent = Agent()
    host = Host(agent)
    values = await end(agent, host)
    assert host.asked == [7]
    assert (values["status"], values["reason"]) == ("expired", "timeout")


async def test_where_the_host_cannot_the_row_ends_with_what_there_is() -> None:
    host = Host()
    values = await end(Agent(), host)
    assert host.asked == [7] * overdue.TRIES
    assert (values["status"], values["stdout"]) == ("expired", b"so far")
    assert values["ended_at"] is not None


async def test_what_is_over_waits_for_its_reader() -> None:
    class Over(Agent):
        async def get_execution(self, execution_id: str) -> pb.Execution:
            return pb.Execution(execution_id=execution_id, state=pb.EXECUTION_STATE_EXITED)

    agent, host = Over(), Host()
    said = pb.Execution(state=pb.EXECUTION_STATE_EXITED, exit_code=0)
    result = pb.ExecutionResult(execution=said)
    asyncio.get_running_loop().call_later(0.6, agent.over.set_result, result)
    values = await end(agent, host)
    assert (values["status"], host.asked) == ("succeeded", [])


async def test_a_silent_agent_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overdue, "FORCE_S", 0.6)
    monkeypatch.setattr(overdue, "ANSWER_S", 0.6)
    begun = time.monotonic()
    values = await end(Agent(answers=False), Host())
    # Its silence is part of the patience (3.05 s), not on top of it (6.05 s).
    assert time.monotonic() - begun < 5.5
    assert (values["status"], values["reason"]) == ("expired", "timeout")


async def test_what_ends_in_time_is_told_as_it_was() -> None:
    agent = Agent()
    agent.over.set_result(pb.ExecutionResult(execution=pb.Execution(exit_code=0)))
    assert (await end(agent, Host()))["status"] == "succeeded"
    agent = Agent()
    agent.over.set_exception(MachineError("gone", code="AGENT_LOST"))
    with pytest.raises(RoostError):
        await end(agent, Host())


async def test_without_a_timeout_there_is_no_end_but_its_own() -> None:
    agent = Agent()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(
            Overdue(Host(), SystemClock()).end(agent, row(None), agent.over),  # type: ignore[arg-type]
            0.4,
        )
