"""A command without a terminal: an execution of the machine, its three streams as they are.

Its row is in the machine's executions like any other. A channel that is closed before the command has ended takes it
along: SIGHUP to its process group, and after a moment the end of all it started.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator, Mapping

from roost.errors import MachineError, RoostError
from roost.services import asking
from roost.services.executions import Ended, Event, Output, StartExecution
from roost.ssh.outcome import Outcome
from roost.ssh.pipe import Pipe
from roost.ssh.shell import Controls
from roost.ssh.visit import Visit
from roost.store.executions import WAITING, ExecutionRow

HANGUP_S = 1.0  # between SIGHUP and the end of what did not heed it
SHELL = 'exec "${SHELL:-/bin/sh}" -l'  # a shell without a terminal
_OVER = ("INVALID_STATE", "EXECUTION_NOT_FOUND")  # of input that nobody takes any more


async def run(
    visit: Visit, pipe: Pipe, controls: Controls, command: str | None, env: Mapping[str, str]
) -> Outcome:
    """Until the command ends. Raises RoostError; BrokenPipeError when the channel went first."""
    spec = StartExecution(
        command=SHELL if command is None else command, env=env, user=visit.user, stdin_stream=True
    )
    asking.by(visit.who.key_id)
    starting = asyncio.ensure_future(
        visit.inside.executions.start_stream(visit.tenant, visit.machine_id, spec)
    )
    try:
        row, events = await asyncio.shield(starting)
    except asyncio.CancelledError:
        visit.later(_abandon(visit, starting))
        raise
    try:
        if row.status == WAITING:
            said = f"roost: waits for approval (roost approve {row.id})\r\n"
            await pipe.write(said.encode(), stderr=True)
        async with contextlib.aclosing(events):
            ended = await _carry(visit, pipe, controls, row, events)
    except BaseException:
        visit.later(_hang_up(visit, row.id))
        raise
    if ended.exit_code is None:
        with contextlib.suppress(BrokenPipeError):
            said = f"roost: the command's end is not known ({ended.reason or ended.status})\r\n"
            await pipe.write(said.encode(), stderr=True)
        return Outcome(255)
    return Outcome(ended.exit_code, ended.signal)


async def _carry(
    visit: Visit,
    pipe: Pipe,
    controls: Controls,
    row: ExecutionRow,
    events: AsyncGenerator[Event, None],
) -> ExecutionRow:
    executions = visit.inside.executions
    where = (visit.tenant, visit.machine_id, row.id)

    async def given() -> AsyncGenerator[bytes, None]:
        while data := await pipe.read():
            yield data

    async def feed() -> None:
        try:
            await executions.write_stdin(*where, given(), eof=True)
        except RoostError as failure:
            if failure.code in _OVER:
                while await pipe.read():  # nobody takes it: it must not hold the channel up
                    pass
                return
            raise

    async def heed() -> None:
        while True:
            numbers, _ = await controls.next()
            for number in numbers:
                with contextlib.suppress(RoostError):
                    await executions.signal(*where, number)

    loop = asyncio.get_running_loop()
    feeding, heeding = loop.create_task(feed()), loop.create_task(heed())
    try:
        async for event in events:
            if isinstance(event, Output):
                await pipe.write(event.data, stderr=event.stream == "stderr")
            elif isinstance(event, Ended):
                return event.execution
        raise MachineError("The command's output broke off.")
    finally:
        heeding.cancel()
        # Not cancelled: grpcio's call would be held by its own error, and a capture waits to see it gone. Its input
        # has ended now, and whatever takes none is about to.
        pipe.feed_eof()
        visit.later(_over(feeding))
        with contextlib.suppress(asyncio.CancelledError, RoostError):
            await heeding


async def _over(task: asyncio.Task[None]) -> None:
    await task


async def _abandon(
    visit: Visit, starting: asyncio.Future[tuple[ExecutionRow, AsyncGenerator[Event, None]]]
) -> None:
    row, events = await starting
    await events.aclose()
    await _hang_up(visit, row.id)


async def _hang_up(visit: Visit, execution_id: str) -> None:
    executions = visit.inside.executions
    where = (visit.tenant, visit.machine_id, execution_id)
    with contextlib.suppress(RoostError):
        await executions.signal(*where, signal.SIGHUP)
        await asyncio.sleep(HANGUP_S)
    await executions.cancel(*where)
