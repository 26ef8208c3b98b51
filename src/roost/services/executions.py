"""Executions: commands run in machines.

```
            the agent took it        its end, as the agent tells it
  (asked) --------------------> running ---------------------------> succeeded | failed | cancelled | expired
     |                             |  its machine sleeps with its memory: goes on with it
     |                             |  machine stopped or crashed ---> failed (machine_stopped)
     |                             |  the agent knows it no more ---> failed (lost)
     |-- cannot be started --> failed (exit_code 127 where there is no such command)
     '-- not on its machine's list of tools --> approval_required, nothing started (``services.approvals``)
           approved --> queued --> running, as it was asked for; denied, too late --> failed; cancelled
```

A row is written once it is worth one: an execution that is waited for and ends within a moment is one write.
Whoever waits may go away; the execution and its row do not.
"""

from __future__ import annotations

import asyncio
import base64
import builtins
import contextlib
import dataclasses
import re
from collections.abc import AsyncGenerator, AsyncIterable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import structlog

from roost import ids
from roost.agent.client import UNARY_S, AgentClient, Agents
from roost.agent.v1 import agent_pb2 as pb
from roost.clock import Clock
from roost.engine.roster import Running
from roost.errors import ConflictError, InvalidRequestError, MachineError, NotFoundError, RoostError
from roost.services import approvals, launching, outcome, starting
from roost.services.approvals import Approval, Approvals
from roost.services.bakes import NOBODY
from roost.services.going_on import goes_on
from roost.services.machines import Machines
from roost.services.models import Live, Machine, Page
from roost.services.overdue import Overdue
from roost.store.cursor import Cursors
from roost.store.executions import LIVE, QUEUED, WAITING, ExecutionRow
from roost.store.executions import Executions as Rows

log = structlog.get_logger(__name__)

STATUSES = (WAITING, QUEUED, "running", "succeeded", "failed", "cancelled", "expired")
MAX_STDIN = 3 * 2**20
MAX_TIMEOUT_MS = 604_800_000
QUICK_S = 0.015  # an execution that ends within this has one write
REATTACH = 3  # times in a row that a stream is asked for again without a byte between
LOST_PATIENCE_S = 60.0
ASK_AGAIN = 1500  # times that a start which was hung up on is looked for, 20 ms apart
YOUNG_S = (
    5.0  # what was under way for longer was started, and an agent forgets the oldest that ended
)
STARTS_TO_THE_END = 7  # the agent's contract from which it does so, whoever hangs up
REACHED_S = 5.0  # a call that lasted for so long had a connection
# What a started execution prints beyond what is kept waits this long for its first reader:
READER_S = 2.0  # who may never come
STREAM_READER_S = 30.0  # who comes at once
PRUNE_EVERY = 200
MET = 1000  # executions of a machine that run, beyond which its agent's word makes no more of them
_STARTED = re.compile(rf"{starting.NAME}[a-z2-7]{{26}}", re.ASCII)


@dataclass(frozen=True, slots=True)
class StartExecution:
    """A command as asked for; the service checks it."""

    command: list[str] | str
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    stdin: bytes = b""
    stdin_stream: bool = False
    timeout_ms: int | None = None
    keep_awake: bool = True  # while it runs its machine is not idle
    ours: bool = False  # nobody chose the program: no list of tools is asked

    def to_json(self) -> dict[str, Any]:
        """All of what was asked for; ``from_json`` gives it back."""
        said = {name: getattr(self, name) for name in self.__slots__ if name != "ours"}
        stdin = base64.b64encode(self.stdin).decode()
        return {**said, "env": dict(self.env), "stdin": stdin}

    @staticmethod
    def from_json(said: Mapping[str, Any]) -> StartExecution:
        return StartExecution(**{**said, "stdin": base64.b64decode(said["stdin"])})


@dataclass(frozen=True, slots=True)
class Begun:
    """One that waited for approval was started."""

    execution: ExecutionRow


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes of one stream from ``offset`` on."""

    stream: str  # stdout | stderr
    offset: int
    data: bytes

    @property
    def next(self) -> int:
        return self.offset + len(self.data)


@dataclass(frozen=True, slots=True)
class Dropped:
    stream: str
    next: int  # offset of what comes after the gap
    bytes: int


@dataclass(frozen=True, slots=True)
class Ended:
    execution: ExecutionRow


Event = Begun | Output | Dropped | Ended


@dataclass(frozen=True, slots=True)
class Process:
    """An execution that runs, with the number its command has in its machine."""

    pid: int
    execution: ExecutionRow


class Executions:
    """Every call takes the caller's tenant first; what is not theirs answers as missing."""

    def __init__(
        self,
        rows: Rows,
        machines: Machines,
        agents: Agents,
        cursors: Cursors,
        clock: Clock,
        approvals: Approvals,
    ) -> None:
        self._rows = rows
        self._machines = machines
        self._agents = agents
        self._cursors = cursors
        self._clock = clock
        self._overdue = Overdue(machines, clock)
        self._live: dict[str, tuple[str, asyncio.Task[Any]]] = {}  # id -> machine, follower
        self._tasks: set[asyncio.Task[Any]] = set()
        self._since_prune: dict[str, int] = {}
        self._fresh: dict[str, ExecutionRow] = {}  # that run and have no row yet
        self._approvals = approvals
        approvals.listener = self._decided
        self._approved: dict[str, asyncio.Future[Process]] = {}  # who waits for an approval
        self._asking: dict[str, asyncio.Event] = {}  # asked for once more, until that is over
        self._starting: set[str] = set()  # those approved of that the agent has not taken yet
        self._meeting = asyncio.Lock()
        self._closed = False

    # --- life of the service --------------------------------------------------------------------

    async def open(self) -> None:
        """At daemon start, once machines were adopted: follows what still runs, ends what does not."""
        by_machine: dict[tuple[str, str], list[ExecutionRow]] = {}
        for row in await self._rows.running():
            if row.status == QUEUED:  # approved of, and never begun: nobody knows of what any more
                await self._write_end(row.id, outcome.failed("lost"))
                continue
            by_machine.setdefault((row.tenant_id, row.machine_id), []).append(row)
        for (tenant, machine_id), rows in by_machine.items():
            self._spawn(self._reconcile(tenant, machine_id, rows))

    async def close(self) -> None:
        """Stops following; what runs is found again by the next daemon."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=5)

    @property
    def running(self) -> int:
        return len(self._live)

    # --- calls ----------------------------------------------------------------------------------

    async def run(
        self, tenant: str, machine_id: str, spec: StartExecution, patient: bool = True
    ) -> ExecutionRow:
        """Runs it to its end; the row comes with its output. Wakes the machine. Where it must be approved of it waits
        for that; not ``patient``: the row comes as it is then.

        Raises VALIDATION_FAILED, COMMAND_NOT_FOUND, USER_NOT_FOUND, ... (details.execution_id names the
        failed row), what ``Machines.awake`` raises, AGENT_LOST when the machine went away under it.
        """
        _check(spec)
        live = await self._admitted(tenant, machine_id, spec)
        if isinstance(live, ExecutionRow):
            return (
                live
                if not patient
                else await self._ended((await self._until_approved(live)).execution)
            )
        row, request = self._prepare(live, spec)
        task = self._spawn(self._run(live, row, request))
        self._live[row.id] = (machine_id, task)
        return await asyncio.shield(task)

    async def start(
        self,
        tenant: str,
        machine_id: str,
        spec: StartExecution,
        reader_within_s: float = READER_S,
    ) -> ExecutionRow:
        """Running when it returns, or waiting for approval. A ``stream`` of it from within that time on misses
        nothing. Raises as ``run``."""
        _check(spec)
        live = await self._admitted(tenant, machine_id, spec)
        if isinstance(live, ExecutionRow):
            return live
        row, request = self._prepare(live, spec)
        request.await_reader_ms = int(reader_within_s * 1000)
        return await asyncio.shield(self._spawn(self._start(live, row, request)))

    async def start_stream(
        self, tenant: str, machine_id: str, spec: StartExecution
    ) -> tuple[ExecutionRow, AsyncGenerator[Event, None]]:
        """As ``start``, and its stream from the first byte, none lost. Raises as ``run``."""
        row = await self.start(tenant, machine_id, spec, STREAM_READER_S)
        return row, self._stream(row, 0, 0)

    async def begin(
        self, tenant: str, machine_id: str, spec: StartExecution
    ) -> tuple[Process, AsyncGenerator[Event, None]]:
        """As ``start_stream``, for what may be over in a moment: its row is written then, once. The stream tells its
        end when the agent does, without what is kept of its output. It returns once it is approved of."""
        _check(spec)
        live = await self._admitted(tenant, machine_id, spec)
        if isinstance(live, ExecutionRow):
            process = await self._until_approved(live)
            return process, self._stream(process.execution, 0, 0, brief=True)
        row, request = self._prepare(live, spec)
        request.await_reader_ms = int(STREAM_READER_S * 1000)
        process = await asyncio.shield(self._spawn(self._begin(live, row, request)))
        return process, self._stream(process.execution, 0, 0, brief=True)

    async def join(
        self, tenant: str, machine_id: str, execution_id: str
    ) -> AsyncGenerator[Event, None]:
        """What a running one prints from now on, then its end as ``begin`` tells it."""
        row = await self._running(tenant, machine_id, execution_id)
        if self._not_begun(row):
            row = (await self._until_approved(row)).execution
        client = await self._reach(tenant, machine_id)
        now = await client.get_execution(row.agents_id)
        return self._stream(row, now.stdout_bytes, now.stderr_bytes, brief=True)

    async def processes(self, tenant: str, machine_id: str) -> builtins.list[Process]:
        """What runs, oldest first. What came along with the memory of the machine that this one was made from is an
        execution of this machine from then on. Wakes the machine."""
        live = await self._machines.awake(tenant, machine_id)
        said = await live.agent.list_executions()
        running = [each for each in said if each.state == pb.EXECUTION_STATE_RUNNING]
        # Before the rows are read: what gets its row meanwhile is in one of the two.
        fresh = {row.id: row for row in self._fresh.values() if row.machine_id == machine_id}
        known = fresh | await self._known(machine_id)
        if any(self._unknown(machine_id, each, known) for each in running):
            async with self._meeting:
                known |= await self._known(machine_id)
                for each in running:
                    if len(known) < MET and self._unknown(machine_id, each, known):
                        known[each.execution_id] = await self._met(live, each)
        found = [
            Process(each.pid, known[each.execution_id])
            for each in running
            if each.execution_id in known and each.pid > 0
        ]
        return sorted(found, key=lambda process: (process.execution.created_at, process.pid))

    async def _known(self, machine_id: str) -> dict[str, ExecutionRow]:
        """What runs and has a row, by the agent's name of it."""
        return {row.agents_id: row for row in await self._rows.running(machine_id)}

    async def get(self, tenant: str, machine_id: str, execution_id: str) -> ExecutionRow:
        """As it is now: of a running one, with the agent's counts."""
        row = await self._row(tenant, machine_id, execution_id)
        client = self._agents.peek(machine_id)
        if row.status in LIVE and client is not None and self._machines.runs(machine_id):
            with contextlib.suppress(RoostError):
                said = await client.get_execution(row.agents_id)
                return dataclasses.replace(row, **outcome.progress(said))
        return row

    async def list(
        self,
        tenant: str,
        machine_id: str,
        status: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[ExecutionRow]:
        """Newest first. Raises INVALID_CURSOR."""
        await self._machines.get(tenant, machine_id)
        scope = f"executions:{tenant}:{machine_id}:{status or ''}"
        after = self._cursors.decode(scope, cursor) if cursor else None
        rows = await self._rows.list(tenant, machine_id, status, limit + 1, after)
        more = len(rows) > limit
        rows = rows[:limit]
        last = rows[-1] if more and rows else None
        return Page(rows, self._cursors.encode(scope, last.created_at, last.id) if last else None)

    async def output(self, tenant: str, machine_id: str, execution_id: str) -> ExecutionRow:
        """With what is kept of its output so far."""
        row = await self._row(tenant, machine_id, execution_id, output=True)
        if row.status not in LIVE:
            return row
        try:
            result = await (await self._reach(tenant, machine_id)).output(row.agents_id)
        except RoostError as failure:
            row = await self._settled(row, 5.0)
            if row.status in LIVE:
                raise failure
            return row
        shown = outcome.ended(result)
        for name in ("status", "ended_at", "exit_code", "signal", "reason"):
            shown.pop(name)
        return dataclasses.replace(row, **shown)

    async def stream(
        self,
        tenant: str,
        machine_id: str,
        execution_id: str,
        stdout_offset: int = 0,
        stderr_offset: int = 0,
    ) -> AsyncGenerator[Event, None]:
        """Output from the offsets on, then ``Ended``. The pace is the consumer's: one that is slow holds the
        process back, and nothing piles up here. Close the generator."""
        row = await self._row(tenant, machine_id, execution_id, output=True)
        if row.status in LIVE and not self._machines.runs(machine_id):
            with contextlib.suppress(MachineError):  # it ended with its machine: the row will tell
                await self._reach(tenant, machine_id)
        return self._stream(row, stdout_offset, stderr_offset)

    async def _stream(
        self, row: ExecutionRow, stdout_offset: int, stderr_offset: int, brief: bool = False
    ) -> AsyncGenerator[Event, None]:
        if self._not_begun(row):
            row = (await self._until_approved(row)).execution
            yield Begun(row)
        if row.status in LIVE:
            at = {"stdout": stdout_offset, "stderr": stderr_offset}
            tries = 0
            while True:
                before = dict(at)
                try:
                    async with contextlib.aclosing(self._attached(row, at, brief)) as events:
                        async for event in events:
                            yield event
                    return
                except RoostError as failure:
                    if failure.code not in ("EXECUTION_NOT_FOUND", "AGENT_LOST"):
                        raise
                    lost = failure.code == "AGENT_LOST"
                    told = MachineError(failure.message, code=failure.code)
                tries = 0 if at != before else tries + 1
                # Not in the handler: what it caught holds on to a connection that a capture waits to see closed.
                if lost and tries < REATTACH and await self._again(row):
                    continue
                # It ended, or its machine did, while we looked: the row tells what there is.
                row = await self._settled(row, 5.0)
                if row.status in LIVE:
                    raise told
                stdout_offset, stderr_offset = at["stdout"], at["stderr"]
                break
        for event in _replay(row, stdout_offset, stderr_offset):
            yield event

    async def write_stdin(
        self,
        tenant: str,
        machine_id: str,
        execution_id: str,
        data: AsyncIterable[bytes],
        eof: bool = False,
    ) -> int:
        """Bytes written; waits for a process that is slow to read, and for its approval. Raises INVALID_STATE when
        it has ended or was not started with ``stdin_stream``."""
        row = await self._running(tenant, machine_id, execution_id)
        if self._not_begun(row):
            await self._until_approved(row)
        client = await self._reach(tenant, machine_id)
        return await client.write_stdin(row.agents_id, data, eof)

    async def signal(
        self, tenant: str, machine_id: str, execution_id: str, number: int
    ) -> ExecutionRow:
        """To the process group of its leader; one that waits for approval is given up. Raises INVALID_STATE when it
        has ended."""
        row = await self._running(tenant, machine_id, execution_id)
        if row.status == WAITING:
            return await self.cancel(tenant, machine_id, execution_id)
        client = await self._reach(tenant, machine_id)
        said = await client.signal(row.agents_id, number)
        return dataclasses.replace(row, **outcome.progress(said))

    async def cancel(self, tenant: str, machine_id: str, execution_id: str) -> ExecutionRow:
        """Kills everything it started; of one that has ended nothing changes."""
        row = await self._row(tenant, machine_id, execution_id)
        if row.status == WAITING:
            await self._approvals.cancel(row.id)
            row = await self._row(tenant, machine_id, execution_id)
        if self._not_begun(row):
            with contextlib.suppress(RoostError):
                row = (await self._until_approved(row)).execution
        if row.status not in LIVE:
            return row
        await self._asked(row)
        try:
            await self._overdue.kill(await self._reach(tenant, machine_id), row)
        except RoostError as failure:
            if failure.code not in ("EXECUTION_NOT_FOUND", "INVALID_STATE", "AGENT_LOST"):
                raise
        row = await self._settled(row, 10.0)
        if row.status in LIVE:
            raise MachineError(
                "The execution was killed, but its end has not been seen yet; ask again.",
                code="TIMEOUT",
                details={"execution_id": row.id},
            )
        return row

    # --- approvals ------------------------------------------------------------------------------

    async def _admitted(
        self, tenant: str, machine_id: str, spec: StartExecution
    ) -> Live | ExecutionRow:
        """The machine, woken; or the row of what waits for approval: no machine is woken for that. Raises
        TOOL_DENIED."""
        if not self._machines.runs(machine_id):
            machine = await self._machines.get(tenant, machine_id)
            if not launching.allowed(machine, spec):
                return await self._ask(machine, spec)
        live = await self._machines.awake(tenant, machine_id)
        return (
            live if launching.allowed(live.machine, spec) else await self._ask(live.machine, spec)
        )

    async def _ask(self, machine: Machine, spec: StartExecution) -> ExecutionRow:
        # Whose it is now: it may be another's by the time it is approved of.
        spec = dataclasses.replace(spec, user=spec.user or machine.run_as)
        row = ExecutionRow(
            id=ids.new(),
            tenant_id=machine.tenant_id,
            machine_id=machine.id,
            command=launching.argv(spec.command),
            status=WAITING,
            created_at=self._clock.now(),
            cwd=spec.cwd or None,
            user=spec.user or None,
            timeout_ms=spec.timeout_ms,
            keep_awake=spec.keep_awake,
        )
        shown = approvals.shown(
            row.command, row.cwd, row.user, spec.env, spec.stdin, spec.stdin_stream, spec.timeout_ms
        )
        await self._approvals.ask(row, spec.to_json(), shown)
        self._count(row.machine_id)
        return row

    async def _until_approved(self, row: ExecutionRow) -> Process:
        """Started by now. Raises APPROVAL_DENIED, APPROVAL_EXPIRED, INVALID_STATE (it was given up), and what its
        start raised."""
        waiting = self._approved.setdefault(row.id, asyncio.get_running_loop().create_future())
        approval = await self._approvals.get(row.tenant_id, row.id)
        now = await self._rows.get(row.tenant_id, row.machine_id, row.id, output=True)
        if not waiting.done() and now is not None and not self._not_begun(now):
            # It was decided, and begun, before anybody waited.
            self._approved.pop(row.id, None)
            if approval.status != "approved":
                raise approvals.refused(approval)
            return Process(0, now)
        return await asyncio.shield(waiting)

    def _not_begun(self, row: ExecutionRow) -> bool:
        """Whether it waits for approval, or was approved of a moment ago."""
        return row.status in (WAITING, QUEUED) or row.id in self._starting

    def _decided(self, approval: Approval, request: Mapping[str, Any] | None) -> None:
        if request is None:
            self._tell(approval.id, approvals.refused(approval))
        else:
            self._starting.add(approval.id)
            self._spawn(self._start_approved(approval, StartExecution.from_json(request)))

    async def _start_approved(self, approval: Approval, spec: StartExecution) -> None:
        told: Process | RoostError
        try:
            told = await self._begin_approved(approval, spec)
        except RoostError as failure:
            told = failure
            _let_go(failure)
        except BaseException:
            self._tell(approval.id, MachineError("It was approved of, and could not be started."))
            raise
        self._tell(approval.id, told)

    async def _begin_approved(self, approval: Approval, spec: StartExecution) -> Process:
        """From here on its time counts: ``created_at`` is now."""
        where = {name: getattr(approval, name) for name in ("id", "tenant_id", "machine_id")}
        row = ExecutionRow(
            **where, command=[], status=QUEUED, created_at=self._clock.now()
        )  # until more is known
        asked = False
        try:
            live = await self._machines.awake(row.tenant_id, row.machine_id)
            if not spec.user:  # nor had the machine one when it was asked for: the template's
                live = dataclasses.replace(
                    live, machine=dataclasses.replace(live.machine, run_as=None)
                )
            row, request = self._prepare(live, spec, row.id)
            request.await_reader_ms = int(READER_S * 1000)
            now = {name: getattr(row, name) for name in ("status", "created_at", "cwd", "user")}
            if not await self._rows.finish(row.id, now):
                raise MachineError("It ended before it was started.")
            asked = True
            row, said = await self._launched(live, row, request)
        except RoostError as failure:
            if asked and failure.code in ("AGENT_LOST", "TIMEOUT"):
                self._follow(live, row)
                failure.details["execution_id"] = row.id
            else:
                await self._refused(row, failure, inserted=True)
            raise
        self._count(row.machine_id)
        self._follow(live, row)
        return Process(said.pid, dataclasses.replace(row, **outcome.progress(said)))

    def _tell(self, execution_id: str, said: Process | RoostError) -> None:
        """Who waits for its approval."""
        self._starting.discard(execution_id)
        waiting = self._approved.pop(execution_id, None)
        if waiting is None or waiting.done():
            return
        if isinstance(said, RoostError):
            waiting.set_exception(said)
            waiting.exception()  # taken, so that one whom nobody awaits leaves no noise
        else:
            waiting.set_result(said)

    # --- starting -------------------------------------------------------------------------------

    def _prepare(
        self, live: Live, spec: StartExecution, id: str | None = None
    ) -> tuple[ExecutionRow, pb.StartRequest]:
        machine = live.machine
        user = launching.user(live, spec.user)
        cwd = launching.directory(live, spec.cwd, spec.user)
        shell = spec.command if isinstance(spec.command, str) else ""
        argv = [] if isinstance(spec.command, str) else spec.command
        row = ExecutionRow(
            id=id or ids.new(),
            tenant_id=machine.tenant_id,
            machine_id=machine.id,
            command=launching.argv(spec.command),
            status="running",
            created_at=self._clock.now(),
            cwd=cwd or None,
            user=user or None,
            timeout_ms=spec.timeout_ms,
            keep_awake=spec.keep_awake,
        )
        request = pb.StartRequest(
            execution_id=row.id,
            argv=argv,
            shell=shell,
            cwd=cwd,
            env=launching.environment(live, spec.env),
            user=user,
            stdin=spec.stdin,
            stdin_stream=spec.stdin_stream,
            timeout_ms=spec.timeout_ms or 0,
            ring_bytes=outcome.TAIL_BYTES,
            head_bytes=outcome.HEAD_BYTES,
        )
        return row, request

    async def _run(self, live: Live, row: ExecutionRow, request: pb.StartRequest) -> ExecutionRow:
        with self._awake(row):
            return await self._run_awake(live, row, request)

    async def _run_awake(
        self, live: Live, row: ExecutionRow, request: pb.StartRequest
    ) -> ExecutionRow:
        inserted = False
        began = self._clock.monotonic()
        lost: RoostError | None = None
        values: Mapping[str, Any] = {}
        try:
            call = asyncio.ensure_future(live.agent.run(request))
            try:
                if not (await asyncio.wait({call}, timeout=QUICK_S))[0]:
                    await self._rows.insert(row)
                    inserted = True
                values = await self._overdue.end(live.agent, row, call)
            finally:
                call.cancel()
                del call
        except RoostError as failure:
            if failure.code not in ("AGENT_LOST", "TIMEOUT"):
                await self._refused(row, failure, inserted)
                raise
            lost = MachineError(
                "The machine's agent was lost while the command ran; whether it ended is not known."
                " Ask for the execution.",
                code=failure.code,
                details={**failure.details, "execution_id": row.id},
                retryable=False,
            )
            _let_go(failure)
        finally:
            if lost is None:
                self._leave(row)
        if lost is not None:
            try:
                if not inserted:
                    await self._rows.insert(row)
                if self._clock.monotonic() - began < YOUNG_S:
                    row, _ = await self._anew(live, row, request) or (row, None)
            except RoostError as failure:
                await self._refused(row, failure, inserted=True)
                raise
            finally:
                self._leave(row)
            self._follow(live, row)
            if lost.code == "AGENT_LOST":  # a capture cuts connections, and no more
                now = await self._ended(row)
                if now.reason not in ("lost", "machine_stopped", "agent_lost"):
                    self._count(row.machine_id)
                    return now
            raise lost
        row = dataclasses.replace(row, **values)
        if inserted:
            await self._rows.finish(row.id, values)
        else:
            await self._rows.insert(row)
        self._count(row.machine_id)
        return row

    def _leave(self, row: ExecutionRow) -> None:
        """This task follows it no more."""
        if row.id in self._live and self._live[row.id][1] is asyncio.current_task():
            del self._live[row.id]

    async def _start(self, live: Live, row: ExecutionRow, request: pb.StartRequest) -> ExecutionRow:
        await self._rows.insert(row)
        self._count(row.machine_id)
        try:
            row, said = await self._launched(live, row, request)
        except RoostError as failure:
            if failure.code in ("AGENT_LOST", "TIMEOUT"):
                self._follow(live, row)
                failure.details["execution_id"] = row.id
            else:
                await self._refused(row, failure, inserted=True)
            raise
        self._follow(live, row)
        return dataclasses.replace(row, **outcome.progress(said))

    async def _begin(self, live: Live, row: ExecutionRow, request: pb.StartRequest) -> Process:
        try:
            row, said = await self._launched(live, row, request)
        except RoostError as failure:
            if failure.code in ("AGENT_LOST", "TIMEOUT"):
                await self._rows.insert(row)
                self._follow(live, row)
                failure.details["execution_id"] = row.id
            else:
                await self._refused(row, failure, inserted=False)
            raise
        row = dataclasses.replace(row, **outcome.progress(said))
        self._fresh[row.id] = row
        self._live[row.id] = (row.machine_id, self._spawn(self._until_settled(live, row)))
        return Process(said.pid, row)

    async def _launched(
        self, live: Live, row: ExecutionRow, request: pb.StartRequest
    ) -> tuple[ExecutionRow, pb.Execution]:
        """As the agent has it. Raises AGENT_LOST, TIMEOUT: it may run; anything else: it does not."""
        try:
            return row, await live.agent.start(request)
        except RoostError as failure:
            if failure.code != "AGENT_LOST":
                raise
            lost = MachineError(failure.message, code=failure.code, details=failure.details)
            _let_go(failure)
        task = asyncio.current_task()
        assert task is not None
        self._live[row.id] = (row.machine_id, task)
        try:
            found = await self._anew(live, row, request)
        finally:
            self._leave(row)
        if found is None:
            raise lost
        return found

    async def _anew(
        self, live: Live, row: ExecutionRow, request: pb.StartRequest
    ) -> tuple[ExecutionRow, pb.Execution] | None:
        """What a capture hung up on while it was asked for is asked for once more when that is over: by its id, which
        an agent starts once, of the agent that was asked. None where that cannot be, and it is not known whether it
        runs. Raises what the agent refuses it for."""
        if not live.agent.hung_up:
            return None
        over = self._asking[row.id] = asyncio.Event()
        try:
            for _ in range(ASK_AGAIN):
                agent = await self._same(live, row)
                if agent is None:
                    return None
                try:
                    return await self._once(agent, row, request)
                except RoostError as failure:
                    launching = failure.code == "ALREADY_EXISTS"
                    if failure.code not in ("ALREADY_EXISTS", "AGENT_LOST", "TIMEOUT"):
                        raise
                    _let_go(failure)
                if not launching and not agent.hung_up:
                    return None
                await asyncio.sleep(0.02)
            return None
        finally:
            del self._asking[row.id]
            over.set()

    async def _same(self, live: Live, row: ExecutionRow) -> AgentClient | None:
        """The agent that was asked, once it can be asked again; None where its machine runs no more, or anew. Nothing is
        woken: it may have been the command that ended the machine."""
        until = self._clock.monotonic() + LOST_PATIENCE_S
        pause = 0.01
        while self._clock.monotonic() < until:
            try:
                machine = await self._machines.get(row.tenant_id, row.machine_id)
            except RoostError:
                return None
            if machine.phase != "running" or machine.generation != live.machine.generation:
                return None
            agent = self._agents.peek(row.machine_id)
            if agent is not None and not agent.hung_up:
                return agent
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.1)
        return None

    async def _once(
        self, agent: AgentClient, row: ExecutionRow, request: pb.StartRequest
    ) -> tuple[ExecutionRow, pb.Execution]:
        """As it is, or started, its time counted from now. Raises ALREADY_EXISTS while its start is under way,
        AGENT_LOST for an agent that may have dropped one half done, and as ``start``."""
        try:
            return row, await agent.get_execution(row.agents_id)
        except NotFoundError as failure:
            _let_go(failure)
        hello = agent.hello or await agent.acquaint(UNARY_S)
        if hello.contract_minor < STARTS_TO_THE_END:
            raise MachineError("It is not known whether the command was started.")
        row = dataclasses.replace(row, created_at=self._clock.now())
        await self._rows.finish(row.id, {"created_at": row.created_at})
        log.info("execution.asked_again", execution=row.id, machine_id=row.machine_id)
        return row, await agent.start(request)

    async def _until_settled(self, live: Live, row: ExecutionRow) -> None:
        """Its one row where it ends within a moment; else as of any that is followed."""
        values: Mapping[str, Any] | None = None
        written = False
        try:
            with self._awake(row):
                call = asyncio.ensure_future(live.agent.wait(row.agents_id))
                try:
                    await asyncio.wait({call}, timeout=QUICK_S)
                    if call.done() and call.exception() is None:
                        values = outcome.ended(call.result())
                finally:
                    call.cancel()
                    del call  # by nothing here: one that failed holds a connection that a capture waits to see closed
                await self._rows.insert(dataclasses.replace(row, **(values or {})))
                written = True
        finally:
            self._fresh.pop(row.id, None)
            if not (self._closed or (written and values is None)):
                self._live.pop(row.id, None)
        self._count(row.machine_id)
        if values is None:
            await self._until_end(row, live.agent, live.machine.generation)

    def _unknown(
        self, machine_id: str, said: pb.Execution, known: Mapping[str, ExecutionRow]
    ) -> bool:
        """Whether the agent speaks of what no row of its machine does, and none is about to."""
        of = self._live.get(said.execution_id)
        about_to = of is not None and of[0] == machine_id
        return said.execution_id not in known and not about_to and ids.formed(said.execution_id)

    async def _met(self, live: Live, said: pb.Execution) -> ExecutionRow:
        now = self._clock.now()
        row = ExecutionRow(
            id=ids.new(),
            tenant_id=live.machine.tenant_id,
            machine_id=live.machine.id,
            known_as=said.execution_id,
            command=list(said.argv),
            status="running",
            created_at=now,
            keep_awake=False,
        )
        row = dataclasses.replace(row, **outcome.progress(said))
        await self._rows.insert(row)
        self._count(row.machine_id)
        self._follow(live, row)
        return row

    async def _refused(self, row: ExecutionRow, failure: RoostError, inserted: bool) -> None:
        """The agent did not start it."""
        failure.details["execution_id"] = row.id
        code = 127 if failure.code == "COMMAND_NOT_FOUND" else None
        values = outcome.failed(failure.code.lower(), code)
        if inserted:
            await self._rows.finish(row.id, values)
        else:
            await self._rows.insert(dataclasses.replace(row, **values))

    def began(self, running: Running, known_as: str | None) -> None:
        """A template's start runs in the machine, called so by its agent; None: it came with its memory. From now on
        it is an execution of the machine's."""
        startup = starting.of(running.config)
        if running.machine.tenant_id != NOBODY and startup is not None:
            self._spawn(self._take_up(running, startup, known_as))

    async def _take_up(
        self, running: Running, startup: starting.Startup, known_as: str | None
    ) -> None:
        machine, agent = running.machine, cast(AgentClient, running.agent)
        if known_as is None:
            if await self._rows.named(machine.tenant_id, machine.id, starting.NAME) is not None:
                return  # it slept, and goes on
            known_as = await _started(agent)
            if known_as is None:
                return
        command = startup.command
        row = ExecutionRow(
            id=ids.new(),
            tenant_id=machine.tenant_id,
            machine_id=machine.id,
            name=starting.NAME,
            known_as=known_as,
            command=["/bin/sh", "-c", command] if isinstance(command, str) else command,
            status="running",
            created_at=self._clock.now(),
            started_at=self._clock.now(),
            keep_awake=False,
        )
        await self._rows.insert(row)
        self._keep_following(row, agent, machine.generation)

    # --- following ------------------------------------------------------------------------------

    def _follow(self, live: Live, row: ExecutionRow) -> None:
        self._keep_following(row, live.agent, live.machine.generation)

    def _keep_following(
        self, row: ExecutionRow, client: AgentClient | None, generation: int
    ) -> None:
        task = self._spawn(self._until_end(row, client, generation))
        self._live[row.id] = (row.machine_id, task)

    async def _until_end(
        self, row: ExecutionRow, client: AgentClient | None, generation: int
    ) -> None:
        """Waits for the end and writes it, through lost connections and sleeps that keep memory."""
        lost_since: float | None = None
        pause = 0.05
        born = generation
        values: Mapping[str, Any]
        try:
            with self._awake(row):
                while True:
                    began = self._clock.monotonic()
                    try:
                        if client is None:
                            raise MachineError("No connection to the machine.")
                        values = await self._overdue.end(client, row, client.wait(row.agents_id))
                        break
                    except RoostError as failure:
                        lost = failure.code
                        _let_go(failure)
                    client = None
                    looked = self._clock.monotonic()
                    machine = await self._up(row)
                    same = machine is not None and machine.generation == generation
                    now = self._clock.monotonic()
                    if looked - began > REACHED_S or now - looked > REACHED_S or not same:
                        lost_since, pause = None, 0.05  # it was reached meanwhile, or slept
                    if lost == "EXECUTION_NOT_FOUND":
                        stayed = machine is not None and machine.generation == born
                        values = outcome.failed("lost" if stayed else "machine_stopped")
                        break
                    if lost not in ("AGENT_LOST", "TIMEOUT"):
                        values = outcome.failed(lost.lower())
                        break
                    if machine is None:
                        values = outcome.failed("machine_stopped")
                        break
                    generation = machine.generation
                    lost_since = now if lost_since is None else lost_since
                    if now - lost_since > LOST_PATIENCE_S:
                        values = outcome.failed("agent_lost")
                        break
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, 2.0)
                    client = self._agents.peek(row.machine_id)
            await self._write_end(row.id, values)
        finally:
            if not self._closed:
                self._live.pop(row.id, None)

    async def _write_end(self, execution_id: str, values: Mapping[str, Any]) -> None:
        for pause in (0.2, 1.0, 5.0):
            try:
                await self._rows.finish(execution_id, values)
                return
            except RoostError as failure:
                if failure.code == "SHUTTING_DOWN":
                    return
                log.warning("execution.write", execution=execution_id, error=failure.code)
                await asyncio.sleep(pause)
        await self._rows.finish(execution_id, values)

    async def _up(self, row: ExecutionRow) -> Machine | None:
        """Its machine once it runs, for however long it sleeps with its memory; None: the process is gone."""
        with self._machines.changing(row.machine_id) as changed:
            while True:
                changed.clear()
                try:
                    machine = await self._machines.get(row.tenant_id, row.machine_id)
                except NotFoundError:
                    return None
                except RoostError as failure:
                    log.warning("execution.look", machine=row.machine_id, error=failure.code)
                    await asyncio.sleep(2.0)
                    continue
                if machine.phase == "running":
                    return machine
                if not goes_on(machine):
                    return None
                await changed.wait()

    async def _ended(self, row: ExecutionRow) -> ExecutionRow:
        """The row once its follower has written the end. Raises INVALID_STATE where its machine is put to sleep
        before that."""
        with self._machines.changing(row.machine_id) as changed:
            while (following := self._live.get(row.id)) is not None:
                changed.clear()
                await self._asleep(row)
                waiting = asyncio.ensure_future(changed.wait())
                try:
                    first = asyncio.FIRST_COMPLETED
                    await asyncio.wait({following[1], waiting}, return_when=first)
                finally:
                    waiting.cancel()
        return await self._settled(row, 0)

    async def _asleep(self, row: ExecutionRow) -> None:
        """Raises INVALID_STATE, for who waits, where its machine sleeps and will go on with it."""
        machine = await self._machines.get(row.tenant_id, row.machine_id)
        if machine.phase == "sleeping" and goes_on(machine):
            raise ConflictError(
                f"The machine was put to sleep ({machine.tier}) while the command ran, which goes on when it"
                " wakes: wake it, then ask for the execution.",
                details={"execution_id": row.id, "phase": machine.phase},
            )

    def _awake(self, row: ExecutionRow) -> contextlib.AbstractContextManager[None]:
        return self._machines.using(row.machine_id) if row.keep_awake else contextlib.nullcontext()

    async def _reconcile(
        self, tenant: str, machine_id: str, rows: builtins.list[ExecutionRow]
    ) -> None:
        known: set[str] = set()
        live: Live | None = None
        reason = "machine_stopped"
        try:
            machine = await self._machines.get(tenant, machine_id)
            if machine.phase != "running" and goes_on(machine):
                for row in rows:
                    self._keep_following(row, None, machine.generation)
                return
            if machine.phase == "running":
                live = await self._machines.awake(tenant, machine_id)
                known = {said.execution_id for said in await live.agent.list_executions()}
                reason = "lost"
        except RoostError as failure:
            log.warning("execution.reconcile", machine_id=machine_id, error=failure.code)
        for row in rows:
            if live is not None and row.agents_id in known:
                self._follow(live, row)
            else:
                await self._write_end(row.id, outcome.failed(reason))

    async def _attached(
        self, row: ExecutionRow, at: dict[str, int], brief: bool
    ) -> AsyncGenerator[Event, None]:
        frames = self._client(row.machine_id).attach(row.agents_id, at["stdout"], at["stderr"])
        async with contextlib.aclosing(frames):
            async for frame in frames:
                stream = "stderr" if frame.stream == pb.OutputFrame.STREAM_STDERR else "stdout"
                if frame.dropped:
                    at[stream] += frame.dropped
                    yield Dropped(stream, at[stream], frame.dropped)
                if frame.data:
                    at[stream] += len(frame.data)
                    yield Output(stream, frame.offset, frame.data)
                if frame.HasField("exit"):
                    if brief:
                        yield Ended(dataclasses.replace(row, **outcome.over(frame.exit)))
                        return
                    break
        yield Ended(await self._settled(row, 10.0))

    async def _again(self, row: ExecutionRow) -> bool:
        """Whether its machine runs and can be asked once more; waits for a capture to be over. Raises
        INVALID_STATE where it was put to sleep."""
        try:
            now = await self._machines.get(row.tenant_id, row.machine_id)
            if now.phase != "running":
                if now.phase == "sleeping":
                    await self._asleep(row)
                return False
            await self._machines.awake(row.tenant_id, row.machine_id)
        except ConflictError:
            raise
        except RoostError:
            return False
        return True

    # --- small things ---------------------------------------------------------------------------

    async def _row(
        self, tenant: str, machine_id: str, execution_id: str, output: bool = False
    ) -> ExecutionRow:
        await self._machines.get(tenant, machine_id)
        if execution_id == starting.NAME:
            newest = await self._rows.named(tenant, machine_id, starting.NAME)
            execution_id = newest or execution_id
        fresh = self._fresh.get(execution_id)
        if fresh is not None and (fresh.tenant_id, fresh.machine_id) == (tenant, machine_id):
            return fresh
        row = await self._rows.get(tenant, machine_id, execution_id, output)
        if row is None:
            raise NotFoundError(
                "This machine has no such execution; those that ended long ago are forgotten.",
                code="EXECUTION_NOT_FOUND",
            )
        return row

    async def _running(self, tenant: str, machine_id: str, execution_id: str) -> ExecutionRow:
        row = await self._row(tenant, machine_id, execution_id)
        if row.status not in (*LIVE, WAITING):
            raise ConflictError(f"The execution has ended: it {row.status}.")
        await self._asked(row)
        return row

    async def _asked(self, row: ExecutionRow) -> None:
        """Once its agent knows of it, where a capture hung up on its start."""
        if (over := self._asking.get(row.id)) is not None:
            await over.wait()

    async def _settled(self, row: ExecutionRow, timeout_s: float | None) -> ExecutionRow:
        """The row once its follower has written the end, or as it is when that takes too long."""
        following = self._live.get(row.id)
        if following is not None:
            await asyncio.wait({following[1]}, timeout=timeout_s)
        now = await self._rows.get(row.tenant_id, row.machine_id, row.id, output=True)
        return row if now is None else now

    async def _reach(self, tenant: str, machine_id: str) -> AgentClient:
        """Of a machine in which something goes on, which is woken for it."""
        if not goes_on(await self._machines.get(tenant, machine_id)):
            raise MachineError("The machine is not running.")
        return (await self._machines.awake(tenant, machine_id)).agent

    def _client(self, machine_id: str) -> AgentClient:
        client = self._agents.peek(machine_id)
        if client is None:
            raise MachineError("The machine is not running.")
        return client

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        failure = task.exception()  # taken, so that a caller who went away leaves no noise
        if failure is not None and not isinstance(failure, RoostError):
            log.error("execution.task", exc_info=failure)

    def _count(self, machine_id: str) -> None:
        count = self._since_prune.get(machine_id, 0) + 1
        self._since_prune[machine_id] = count % PRUNE_EVERY
        if count == PRUNE_EVERY:
            self._spawn(self._rows.prune(machine_id))
            self._spawn(self._approvals.prune(machine_id))


async def _started(agent: AgentClient) -> str | None:
    """What the agent of a machine that goes on from memory calls what was started in it; the newest, should there be
    others."""
    said = [each for each in await agent.list_executions() if _STARTED.fullmatch(each.execution_id)]
    return max(said, key=lambda each: each.started_at_unix_ms).execution_id if said else None


def _let_go(failure: RoostError) -> None:
    """What failed holds its frames, and those a connection that a capture waits to see closed."""
    failure.__traceback__ = failure.__cause__ = failure.__context__ = None


def _check(spec: StartExecution) -> None:
    launching.check_command(spec.command)
    launching.check_env(spec.env)
    launching.check_place(spec.cwd, spec.user)
    if spec.timeout_ms is not None and not 1 <= spec.timeout_ms <= MAX_TIMEOUT_MS:
        raise InvalidRequestError(f"timeout_ms: from 1 to {MAX_TIMEOUT_MS}.")
    if len(spec.stdin) > MAX_STDIN:
        raise InvalidRequestError(
            "stdin: at most 3 MiB in the request; write more with stdin_stream and POST .../stdin.",
            code="PAYLOAD_TOO_LARGE",
        )


def _replay(row: ExecutionRow, stdout_offset: int, stderr_offset: int) -> Iterator[Event]:
    """The events of one that has ended, from its row."""
    for stream, data, total, cut, start in (
        ("stdout", row.stdout or b"", row.stdout_bytes or 0, row.stdout_truncated, stdout_offset),
        ("stderr", row.stderr or b"", row.stderr_bytes or 0, row.stderr_truncated, stderr_offset),
    ):
        head = data[: outcome.HEAD_BYTES] if cut else data
        tail = data[len(head) :]
        if start < len(head):
            yield from _pieces(stream, start, head[start:])
            start = len(head)
        tail_at = total - len(tail)
        if start < tail_at:
            yield Dropped(stream, tail_at, tail_at - start)
            start = tail_at
        if start < total:
            yield from _pieces(stream, start, tail[start - tail_at :])
    yield Ended(row)


def _pieces(stream: str, at: int, data: bytes) -> Iterator[Event]:
    for start in range(0, len(data), 64 * 1024):
        yield Output(stream, at + start, data[start : start + 64 * 1024])
