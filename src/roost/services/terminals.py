"""Terminals: shells that live in a machine, watched and typed into by any number of viewers.

The agent holds them; they end with the machine's boot. A viewer that leaves does not end one.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from roost import ids
from roost.agent.streams import TerminalStream
from roost.agent.v1 import agent_pb2 as pb
from roost.errors import InvalidRequestError, MachineError, NotFoundError, RoostError, error
from roost.services import launching
from roost.services.going_on import goes_on
from roost.services.machines import Machines
from roost.services.models import Live, Machine

MAX_SIDE = 1000
REATTACH = 3  # times in a row that it is asked for again without a byte between


@dataclass(frozen=True, slots=True)
class OpenTerminal:
    """A terminal as asked for; the service checks it."""

    width: int = 80
    height: int = 24
    command: list[str] | None = None  # None: the user's login shell
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    term: str | None = None

    @property
    def ours(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Terminal:
    id: str
    machine_id: str
    alive: bool
    width: int
    height: int
    exit_code: int | None
    viewers: int
    created_at: datetime
    pid: int  # of what it runs, as its machine numbers it


class Terminals:
    """Every call takes the caller's tenant first; what is not theirs answers as missing."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines

    async def open(self, tenant: str, machine_id: str, spec: OpenTerminal) -> Terminal:
        """Wakes the machine. Raises VALIDATION_FAILED, COMMAND_NOT_FOUND, USER_NOT_FOUND, LIMIT_EXCEEDED; TOOL_DENIED
        for a program that its machine's list has not: what is typed later nobody could approve of."""
        _check(spec)
        if not self._machines.runs(machine_id):  # for what is refused none is woken
            _require(await self._machines.get(tenant, machine_id), spec)
        live = await self._machines.awake(tenant, machine_id)
        _require(live.machine, spec)
        request = pb.OpenTerminalRequest(
            terminal_id=ids.new(),
            cols=spec.width,
            rows=spec.height,
            argv=spec.command or [],
            cwd=launching.directory(live, spec.cwd, spec.user),
            env=launching.environment(live, spec.env),
            user=launching.user(live, spec.user),
            term=spec.term or "",
        )
        return _terminal(machine_id, await live.agent.open_terminal(request))

    async def list(self, tenant: str, machine_id: str) -> builtins.list[Terminal]:
        """Oldest first; of a machine that does not run none are told, and it is not woken."""
        return await self._list(await self._if_running(tenant, machine_id), machine_id)

    async def _list(self, live: Live | None, machine_id: str) -> builtins.list[Terminal]:
        if live is None:
            return []
        said = await live.agent.list_terminals()
        found = [_terminal(machine_id, each) for each in said]
        return sorted(found, key=lambda terminal: (terminal.created_at, terminal.id))

    async def get(self, tenant: str, machine_id: str, terminal_id: str) -> Terminal:
        """Wakes a machine that sleeps with its memory."""
        live = await self._if_there(tenant, machine_id)
        for terminal in await self._list(live, machine_id):
            if terminal.id == terminal_id:
                return terminal
        raise _missing()

    async def resize(
        self, tenant: str, machine_id: str, terminal_id: str, width: int, height: int
    ) -> Terminal:
        """For every viewer of it."""
        check_size(width, height)
        live = await self._if_there(tenant, machine_id)
        if live is None:
            raise _missing()
        return _terminal(machine_id, await live.agent.resize_terminal(terminal_id, width, height))

    async def write(self, tenant: str, machine_id: str, terminal_id: str, data: bytes) -> None:
        """Typed into it without a viewer: all of it was taken when this returns. Raises TERMINAL_NOT_FOUND,
        AGENT_LOST."""
        live = await self._if_there(tenant, machine_id)
        if live is None:
            raise _missing()
        with self._machines.using(machine_id):
            stream = live.agent.attach_terminal(terminal_id, scrollback=False)
            try:
                await stream.open()
                await stream.send(data)
                leaving = asyncio.ensure_future(stream.leave())
                try:
                    while await stream.read() is not None:
                        pass
                finally:
                    leaving.cancel()
            finally:
                stream.close()

    async def close(self, tenant: str, machine_id: str, terminal_id: str) -> None:
        """Hangs it up; what it ran gets SIGHUP."""
        live = await self._if_there(tenant, machine_id)
        if live is None:
            raise _missing()
        await live.agent.close_terminal(terminal_id)

    async def attach(
        self,
        tenant: str,
        machine_id: str,
        terminal_id: str,
        scrollback: bool = True,
        catches_up: bool = False,
    ) -> Viewer:
        """A viewer of it; close it. ``catches_up``: one that falls behind loses what fell out of the scrollback,
        instead of its place. Raises TERMINAL_NOT_FOUND."""
        await self.get(tenant, machine_id, terminal_id)
        live = await self._machines.awake(tenant, machine_id)
        stream = live.agent.attach_terminal(terminal_id, scrollback)
        await stream.open()
        return Viewer(self._machines, live, terminal_id, stream, catches_up)

    async def _if_there(self, tenant: str, machine_id: str) -> Live | None:
        """Its terminals sleep with its memory."""
        machine = await self._machines.get(tenant, machine_id)
        if not goes_on(machine):
            return None
        return await self._machines.awake(tenant, machine_id)

    async def _if_running(self, tenant: str, machine_id: str) -> Live | None:
        machine = await self._machines.get(tenant, machine_id)
        if machine.phase != "running":
            return None
        return await self._machines.awake(tenant, machine_id)


class Viewer:
    """One viewer: a task may ``send`` while another ``read``s, which must go on for either. Its presence keeps the
    machine awake. Where a capture hangs up, the viewer is attached again at the byte it had come to."""

    def __init__(
        self,
        machines: Machines,
        live: Live,
        terminal_id: str,
        stream: TerminalStream,
        catches_up: bool = False,
    ) -> None:
        self._comes_back = ("AGENT_LOST", "LIMIT_EXCEEDED") if catches_up else ("AGENT_LOST",)
        self._machines = machines
        self._machine = live.machine
        self._terminal_id = terminal_id
        self._stream = stream
        self._at = 0  # in the terminal's output: the next byte
        self._resumed = self._closed = False
        self._attached = asyncio.Event()
        self._attached.set()
        self._over: RoostError | None = None
        self._present = contextlib.ExitStack()
        self._present.enter_context(machines.using(live.machine.id))

    async def send(self, data: bytes) -> None:
        """All of it or, with an error, nothing that is known."""
        while not await self._stream.send(data):
            await self._back()

    async def resize(self, width: int, height: int) -> None:
        check_size(width, height)
        while not await self._stream.resize(width, height):
            await self._back()

    async def read(self) -> pb.TerminalOutput | None:
        """None when the terminal is gone. Raises LIMIT_EXCEEDED for a viewer that cannot keep up."""
        tries = 0
        while not self._closed:
            frame, failure = await self._next()
            if frame is None:
                tries += 1
                if tries > REATTACH or not await self._again():
                    raise self._end(failure)
                continue
            if self._resumed and frame.data and frame.offset != self._at + frame.dropped:
                # An agent of before, which knows of no offsets.
                raise self._end(None)
            if frame.data:
                self._at = frame.offset + len(frame.data)
            self._closed = frame.HasField("closed")
            return frame
        return None

    async def _next(self) -> tuple[pb.TerminalOutput | None, RoostError | None]:
        """A frame, or what was heard instead. No error that was caught is kept: it would hold the connection that a
        capture waits to see closed."""
        try:
            return await self._stream.read(), None
        except RoostError as failure:
            if failure.code not in self._comes_back:
                self._end(failure)
                raise
            return None, error(failure.code, failure.message)

    async def _again(self) -> bool:
        """Attached once more, when a capture is over. False where there is nothing to come back to: the machine
        ended or sleeps."""
        tenant, machine_id = self._machine.tenant_id, self._machine.id
        self._stream.close()
        try:
            now = await self._machines.get(tenant, machine_id)
            if now.phase != "running" or now.generation != self._machine.generation:
                return False
            live = await self._machines.awake(tenant, machine_id)
            if live.machine.generation != self._machine.generation:
                return False
            stream = live.agent.attach_terminal(self._terminal_id, resume=self._at)
            await stream.open()
        except RoostError:
            return False
        self._stream, self._resumed = stream, True
        self._attached.set()
        return True

    async def _back(self) -> None:
        """Until it is attached again. Raises what it ended with."""
        if self._stream.left and self._over is None:
            self._attached.clear()
            await self._attached.wait()
        if self._over is not None:
            raise self._over

    def _end(self, failure: RoostError | None) -> RoostError:
        self._over = failure or MachineError(
            "The connection to the terminal was lost; attach again.", code="AGENT_LOST"
        )
        self._attached.set()
        return self._over

    async def close(self) -> None:
        self._stream.close()
        self._present.close()


def check_size(width: int, height: int) -> None:
    """Raises VALIDATION_FAILED."""
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise InvalidRequestError(f"width and height: from 1 to {MAX_SIDE}.")


def _check(spec: OpenTerminal) -> None:
    check_size(spec.width, spec.height)
    if spec.command is not None:
        launching.check_command(spec.command)
    launching.check_env(spec.env)
    launching.check_place(spec.cwd, spec.user)
    if spec.term and (len(spec.term) > 64 or not (spec.term.isascii() and spec.term.isprintable())):
        raise InvalidRequestError("term: a terminal type like xterm-256color.")


def _require(machine: Machine, spec: OpenTerminal) -> None:
    """Raises TOOL_DENIED."""
    if not launching.allowed(machine, spec):
        program = launching.argv(spec.command)[0]
        raise launching.denied(
            machine.tools, program, "no terminal is approved of one by one, for what is typed in it"
        )


def _terminal(machine_id: str, said: pb.Terminal) -> Terminal:
    return Terminal(
        id=said.terminal_id,
        machine_id=machine_id,
        alive=said.alive,
        width=said.cols,
        height=said.rows,
        exit_code=said.exit_code if said.HasField("exit_code") else None,
        viewers=said.viewers,
        created_at=datetime.fromtimestamp(max(0, said.created_at_unix_ms) / 1000, UTC),
        pid=said.pid,
    )


def _missing() -> NotFoundError:
    return NotFoundError(
        "This machine has no such terminal; terminals end with their machine's memory.",
        code="TERMINAL_NOT_FOUND",
    )
