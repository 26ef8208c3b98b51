"""Executions that should be over: what is done when their agent does not get them to end.

```
  timeout, or cancelled: the agent kills --- 2 s ---> the host kills, every 2 s --- 8 s ---> given up: the
                                                                                    row ends without them
```
A machine's root can fork faster than its agent kills, or stop the agent's helpers; so from outside the whole
machine is frozen and what belongs to the execution is killed, where the rung lets the host see it.

One that is over, and whose output waits for a slow reader, is not overdue: the reader sets the pace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Protocol

import structlog

from roost.agent.client import AgentClient
from roost.agent.v1 import agent_pb2 as pb
from roost.clock import Clock
from roost.errors import RoostError
from roost.services import outcome
from roost.store.executions import ExecutionRow

log = structlog.get_logger(__name__)

FORCE_S = 2.0
TRIES = 4
ANSWER_S = 2.0
_OVER = (pb.EXECUTION_STATE_EXITED, pb.EXECUTION_STATE_TIMED_OUT, pb.EXECUTION_STATE_KILLED)


class Host(Protocol):
    async def end_tree(self, machine_id: str, pid: int) -> bool: ...


class Overdue:
    def __init__(self, host: Host, clock: Clock) -> None:
        self._host = host
        self._clock = clock

    async def end(
        self, agent: AgentClient, row: ExecutionRow, call: Awaitable[pb.ExecutionResult]
    ) -> dict[str, Any]:
        """The columns of its end: as ``call`` tells it, or at the latest ten seconds after its timeout without
        that. Raises what ``call`` raises."""
        if row.timeout_ms is None:
            return outcome.ended(await call)
        waiting = asyncio.ensure_future(call)
        loop = asyncio.get_running_loop()
        took = 0.0
        try:
            age = (self._clock.now() - row.created_at).total_seconds()
            pause = max(0.0, row.timeout_ms / 1000 - age) + FORCE_S
            for tried in range(TRIES + 1):
                done, _ = await asyncio.wait({waiting}, timeout=pause)
                if done:
                    result = waiting.result()
                    return outcome.expired(result) if tried else outcome.ended(result)
                begun = loop.time()
                if tried < TRIES and await self.force(agent, row):
                    result = await waiting
                    return outcome.expired(result) if tried else outcome.ended(result)
                if tried < TRIES:
                    took = loop.time() - begun
                pause = max(
                    0.0, FORCE_S - took
                )  # an agent that was stopped lets each try take long
        finally:
            waiting.cancel()
        log.error("execution.given_up", execution=row.id, machine_id=row.machine_id)
        return outcome.expired(None if took >= ANSWER_S else await self._output(agent, row))

    async def kill(self, agent: AgentClient, row: ExecutionRow) -> None:
        """Everything it started, by its agent; by the host where that takes long. Raises as ``signal``."""
        killing = asyncio.ensure_future(agent.signal(row.agents_id, 9, tree=True))
        try:
            done, _ = await asyncio.wait({killing}, timeout=FORCE_S)
            if not done:
                await self.force(agent, row)
            await killing
        finally:
            killing.cancel()

    async def force(self, agent: AgentClient, row: ExecutionRow) -> bool:
        """True, and nothing done, where it is over and only its output is not yet read."""
        try:
            async with asyncio.timeout(ANSWER_S):
                said = await agent.get_execution(row.agents_id)
            if said.state in _OVER:
                return True
            found = await self._host.end_tree(row.machine_id, said.supervisor_pid)
        except (RoostError, TimeoutError) as failure:
            code = failure.code if isinstance(failure, RoostError) else "TIMEOUT"
            log.warning("execution.force", execution=row.id, machine_id=row.machine_id, error=code)
        else:
            log.warning("execution.force", execution=row.id, machine_id=row.machine_id, found=found)
        return False

    async def _output(self, agent: AgentClient, row: ExecutionRow) -> pb.ExecutionResult | None:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await agent.output(row.agents_id)
        except (RoostError, TimeoutError):
            return None  # the row ends without it: that is what it is asked for here
