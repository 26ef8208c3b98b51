"""``process.Process``: executions and terminals, both by the number their command has in its machine.

What a client leaves goes on; who connects again hears what is printed from then on, as E2B has it. A start's deadline
is its command's: that is killed at it, whoever listens by then.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from roost.api.v1.services import Services
from roost.dialects.e2b.envd import messages
from roost.dialects.e2b.envd.accounts import Account, Accounts
from roost.dialects.e2b.envd.connect import Call, Said, Service
from roost.dialects.e2b.envd.place import Place
from roost.dialects.e2b.envd.refusals import Refused
from roost.errors import RoostError
from roost.services.executions import MAX_TIMEOUT_MS, Ended, Event, Output, Process, StartExecution
from roost.services.terminals import OpenTerminal, Terminal, Viewer
from roost.store.executions import ExecutionRow

NOTES = 4096
NOTE_BYTES = 4096
NOTE_ARGS = 256
DEADLINES = 4096  # of terminals
_ALIVE: Said = {"event": {"keepalive": {}}}
_SIGNALS = {
    1: "hangup",
    2: "interrupt",
    3: "quit",
    4: "illegal instruction",
    6: "aborted",
    7: "bus error",
    8: "floating point exception",
    9: "killed",
    11: "segmentation fault",
    13: "broken pipe",
    14: "alarm clock",
    15: "terminated",
}


@dataclass(slots=True)
class Note:
    """What a start said that nothing below keeps."""

    tag: str | None
    envs: dict[str, str]
    command: list[str]
    cwd: str | None
    killed: bool = False
    viewers: list[Viewer] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Run:
    pid: int
    row: ExecutionRow


@dataclass(frozen=True, slots=True)
class _Tty:
    pid: int
    terminal: Terminal


_Found: TypeAlias = _Run | _Tty


class Processes:
    def __init__(self, services: Services, accounts: Accounts) -> None:
        self._executions = services.executions
        self._terminals = services.terminals
        self._accounts = accounts
        self._notes: OrderedDict[str, Note] = OrderedDict()  # of an execution or a terminal
        self._ending: OrderedDict[str, asyncio.Task[None]] = OrderedDict()  # terminals

    def service(self) -> Service:
        s = Service("process.Process")
        s.unary("List", messages.List, self.list_)
        s.unary("Update", messages.Update, self.update)
        s.unary("SendInput", messages.SendInput, self.send_input)
        s.unary("SendSignal", messages.SendSignal, self.send_signal)
        s.unary("CloseStdin", messages.CloseStdin, self.close_stdin)
        s.server_stream("Start", messages.Start, self.start, _ALIVE)
        s.server_stream("Connect", messages.Connect, self.connect, _ALIVE)
        s.client_stream("StreamInput", messages.StreamInput, self.stream_input)
        return s

    # --- what runs ------------------------------------------------------------------------------

    async def list_(self, call: Call, asked: messages.List) -> Said:
        shown = [self._shown(each) for each in await self._all(call.place)]
        return {"processes": shown}

    async def start(self, call: Call, asked: messages.Start) -> AsyncGenerator[Said, None]:
        account = await self._accounts.of(call.place, call.user)
        config = asked.process
        cwd = account.path(config.cwd).decode() if config.cwd else None
        timeout_ms = None
        if call.timeout_s is not None:
            timeout_ms = min(MAX_TIMEOUT_MS, max(1, round(call.timeout_s * 1000)))
        note = Note(asked.tag or None, dict(config.envs), [config.cmd, *config.args], cwd)
        told = self._run if asked.pty is None else self._open
        try:
            async with contextlib.aclosing(told(call, asked, account, note, timeout_ms)) as events:
                async for each in events:
                    yield each
        except RoostError as failure:
            if failure.code == "FILE_NOT_FOUND" and cwd is not None:
                raise Refused("invalid_argument", f"cwd '{cwd}' does not exist") from None
            raise

    async def connect(self, call: Call, asked: messages.Connect) -> AsyncGenerator[Said, None]:
        found = await self._find(call.place, asked.process)
        where = (call.place.tenant, call.place.machine_id)
        if isinstance(found, _Run):
            events = await self._executions.join(*where, found.row.id)
            async with contextlib.aclosing(_process(found.pid, events)) as told:
                async for each in told:
                    yield each
        else:
            viewer = await self._terminals.attach(*where, found.terminal.id, scrollback=False)
            async with contextlib.aclosing(self._watched(found, viewer)) as told:
                async for each in told:
                    yield each

    # --- what is said to it ---------------------------------------------------------------------

    async def update(self, call: Call, asked: messages.Update) -> Said:
        found = await self._find(call.place, asked.process)
        if asked.pty is None or asked.pty.size is None:
            return {}
        if isinstance(found, _Run):
            raise Refused("failed_precondition", "tty not assigned to process")
        size = asked.pty.size
        await self._terminals.resize(
            call.place.tenant, call.place.machine_id, found.terminal.id, size.cols, size.rows
        )
        return {}

    async def send_input(self, call: Call, asked: messages.SendInput) -> Said:
        found = await self._find(call.place, asked.process)
        await self._put(call.place, found, _one(asked.input))
        return {}

    async def stream_input(
        self, call: Call, said: AsyncGenerator[messages.StreamInput, None]
    ) -> Said:
        first = await anext(said, None)
        if first is None or first.start is None:
            raise Refused("invalid_argument", "the first message of the stream is start")
        found = await self._find(call.place, first.start.process)
        if isinstance(found, _Tty):
            async for each in said:
                if each.data is not None:
                    await self._put(call.place, found, _one(each.data.input))
            return {}

        async def pieces() -> AsyncIterator[bytes]:
            async for each in said:
                if each.data is not None:
                    for piece in _cut(_stdin(_one(each.data.input))):
                        yield piece

        with _written():
            await self._executions.write_stdin(
                call.place.tenant, call.place.machine_id, found.row.id, pieces()
            )
        return {}

    async def close_stdin(self, call: Call, asked: messages.CloseStdin) -> Said:
        found = await self._find(call.place, asked.process)
        if isinstance(found, _Tty):
            raise Refused(
                "internal",
                "error closing stdin: cannot close stdin for PTY process - send Ctrl+D (0x04) instead",
            )
        with _written("closing"):
            await self._executions.write_stdin(
                call.place.tenant, call.place.machine_id, found.row.id, _none(), eof=True
            )
        return {}

    async def send_signal(self, call: Call, asked: messages.SendSignal) -> Said:
        if asked.signal not in (9, 15):
            raise Refused("unimplemented", "invalid signal: SIGTERM and SIGKILL are served")
        found = await self._find(call.place, asked.process)
        where = (call.place.tenant, call.place.machine_id)
        if isinstance(found, _Tty):
            if found.terminal.id in self._notes:
                self._notes[found.terminal.id].killed = True
            await self._terminals.close(*where, found.terminal.id)
            self._ended(found.terminal.id)
            return {}
        try:
            await self._executions.signal(*where, found.row.id, asked.signal)
        except RoostError as failure:
            if failure.code in ("INVALID_STATE", "EXECUTION_NOT_FOUND"):
                raise _missing(asked.process) from None
            raise
        return {}

    # --- helpers --------------------------------------------------------------------------------

    async def _run(
        self,
        call: Call,
        asked: messages.Start,
        account: Account,
        note: Note,
        timeout_ms: int | None,
    ) -> AsyncGenerator[Said, None]:
        spec = StartExecution(
            command=note.command,
            cwd=note.cwd,
            env=note.envs,
            user=account.runs_as,
            stdin_stream=asked.stdin,
            timeout_ms=timeout_ms,
        )
        process, events = await self._executions.begin(
            call.place.tenant, call.place.machine_id, spec
        )
        self._keep(process.execution.id, note)
        async with contextlib.aclosing(_process(process.pid, events)) as told:
            async for each in told:
                if "end" in each["event"]:
                    self._ended(process.execution.id)
                yield each

    async def _open(
        self,
        call: Call,
        asked: messages.Start,
        account: Account,
        note: Note,
        timeout_ms: int | None,
    ) -> AsyncGenerator[Said, None]:
        size = (asked.pty.size if asked.pty else None) or messages.Size()
        where = (call.place.tenant, call.place.machine_id)
        spec = OpenTerminal(
            width=size.cols or 80,
            height=size.rows or 24,
            command=note.command,
            cwd=note.cwd,
            env={name: value for name, value in note.envs.items() if name != "TERM"},
            user=account.runs_as,
            term=note.envs.get("TERM"),
        )
        terminal = await self._terminals.open(*where, spec)
        self._keep(terminal.id, note)  # from here on not what was asked, but what is told of it
        if timeout_ms is not None:
            self._end_later(call.place, terminal.id, timeout_ms / 1000)
        viewer = await self._terminals.attach(*where, terminal.id)
        async with contextlib.aclosing(self._watched(_Tty(terminal.pid, terminal), viewer)) as told:
            async for each in told:
                yield each

    def _end_later(self, place: Place, terminal_id: str, after_s: float) -> None:
        ending = asyncio.ensure_future(self._end(place, terminal_id, after_s))
        self._ending[terminal_id] = ending
        ending.add_done_callback(lambda _: self._ending.pop(terminal_id, None))
        if len(self._ending) > DEADLINES:  # the oldest goes on without
            self._ending.pop(next(iter(self._ending))).cancel()

    def _ended(self, of: str) -> None:
        """What was kept for its sake."""
        self._notes.pop(of, None)
        ending = self._ending.pop(of, None)
        if ending is not None:
            ending.cancel()

    async def _end(self, place: Place, terminal_id: str, after_s: float) -> None:
        """A terminal at its deadline; of a machine that sleeps by then, nothing is ended: it would be woken for it."""
        await asyncio.sleep(after_s)
        with contextlib.suppress(RoostError):
            for terminal in await self._terminals.list(place.tenant, place.machine_id):
                if terminal.id == terminal_id and terminal.alive:
                    await self._terminals.close(place.tenant, place.machine_id, terminal_id)

    async def _watched(self, found: _Tty, viewer: Viewer) -> AsyncGenerator[Said, None]:
        note = self._notes.get(found.terminal.id)
        if note is not None:
            note.viewers.append(viewer)
        try:
            yield _started(found.pid)
            while (shown := await viewer.read()) is not None:
                if shown.data:
                    yield _data("pty", shown.data)
                if shown.HasField("closed"):
                    code = shown.closed.exit_code
                    signal = 9 if note is not None and note.killed else None
                    self._ended(found.terminal.id)
                    yield _over(code, signal)
                    return
            raise Refused("unavailable", _LOST)
        finally:
            if note is not None and viewer in note.viewers:
                note.viewers.remove(viewer)
            await viewer.close()

    async def _put(self, place: Place, found: _Found, said: tuple[str, bytes]) -> None:
        kind, data = said
        if isinstance(found, _Run):
            with _written():
                await self._executions.write_stdin(
                    place.tenant, place.machine_id, found.row.id, _pieces(_stdin(said))
                )
            return
        if kind != "pty":
            raise Refused(
                "internal",
                "error writing to stdin: can't write stdin to pty process - it should be in the pty input",
            )
        note = self._notes.get(found.terminal.id)
        if note is not None and note.viewers:
            with contextlib.suppress(RoostError):
                await note.viewers[0].send(data)
                return
        await self._terminals.write(place.tenant, place.machine_id, found.terminal.id, data)

    async def _all(self, place: Place) -> list[_Found]:
        where = (place.tenant, place.machine_id)
        running: list[Process] = await self._executions.processes(*where)
        opened = await self._terminals.list(*where)
        return [
            *(_Run(each.pid, each.execution) for each in running),
            *(_Tty(each.pid, each) for each in opened if each.alive),
        ]

    async def _find(self, place: Place, wanted: messages.Selector) -> _Found:
        """Raises Refused (not_found)."""
        if wanted.pid is None and wanted.tag is None:
            raise Refused("invalid_argument", "a process is named by its pid or its tag")
        for each in await self._all(place):
            if each.pid == wanted.pid if wanted.pid is not None else self._tag(each) == wanted.tag:
                return each
        raise _missing(wanted)

    def _tag(self, found: _Found) -> str | None:
        note = self._notes.get(_id(found))
        if note is not None:
            return note.tag
        return found.row.name if isinstance(found, _Run) else None

    def _keep(self, of: str, note: Note) -> None:
        """Bounded: what is long is not told again, and the oldest are forgotten."""
        size = sum(len(name) + len(value) for name, value in note.envs.items())
        if size > NOTE_BYTES:
            note.envs = {}
        if len(note.command) > NOTE_ARGS or sum(map(len, note.command)) > NOTE_BYTES:
            note.command = [each[:256] for each in note.command[:8]]
        self._notes[of] = note
        if len(self._notes) > NOTES:
            self._notes.popitem(last=False)

    def _shown(self, found: _Found) -> Said:
        note = self._notes.get(_id(found))
        command, cwd = (note.command, note.cwd) if note is not None else ([], None)
        if isinstance(found, _Run) and note is None:
            command, cwd = found.row.command, found.row.cwd
        config: Said = {"cmd": command[0] if command else "", "args": command[1:]}
        if note is not None:
            config["envs"] = note.envs
        if cwd is not None:
            config["cwd"] = cwd
        shown: Said = {"config": config, "pid": found.pid}
        tag = self._tag(found)
        return shown if tag is None else {**shown, "tag": tag}


_LOST = "the connection to the sandbox ended before the stream completed"
PIECE = 256 * 1024


async def _process(pid: int, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Said, None]:
    """Raises Refused."""
    async with contextlib.aclosing(events):
        yield _started(pid)
        try:
            async for each in events:
                if isinstance(each, Output):
                    yield _data(each.stream, each.data)
                elif isinstance(each, Ended):
                    yield _ended(each.execution)
                    return
        except RoostError as failure:
            if failure.code == "INVALID_STATE":  # it was put to sleep, and its process with it
                raise Refused("canceled", "the sandbox was paused") from None
            if failure.code in ("AGENT_LOST", "EXECUTION_NOT_FOUND"):
                raise Refused("unavailable", _LOST) from None
            raise
    raise Refused("unavailable", _LOST)


def _ended(row: ExecutionRow) -> Said:
    if row.status == "expired":
        raise Refused("deadline_exceeded", "the command did not end within its timeout")
    if row.status == "cancelled":
        return _over(-1, 9)
    if row.exit_code is None and row.signal is None:
        raise Refused("unavailable", _LOST)
    return _over(row.exit_code or 0, row.signal)


def _over(code: int, signal: int | None) -> Said:
    status = f"exit status {code}"
    if signal is not None:
        status = f"signal: {_SIGNALS.get(signal, f'signal {signal}')}"
    end: Said = {
        "exitCode": code if signal is None else -1,
        "exited": signal is None,
        "status": status,
    }
    if code or signal is not None:
        end["error"] = status
    return {"event": {"end": end}}


def _started(pid: int) -> Said:
    return {"event": {"start": {"pid": pid}}}


def _data(stream: str, data: bytes) -> Said:
    return {"event": {"data": {stream: base64.b64encode(data).decode("ascii")}}}


def _one(said: messages.Input) -> tuple[str, bytes]:
    if said.pty is not None:
        return "pty", said.pty
    if said.stdin is not None:
        return "stdin", said.stdin
    raise Refused("unimplemented", "invalid input type")


def _stdin(said: tuple[str, bytes]) -> bytes:
    kind, data = said
    if kind != "stdin":
        raise Refused("internal", "error writing to tty: tty not assigned to process")
    return data


@contextlib.contextmanager
def _written(doing: str = "writing to") -> Iterator[None]:
    try:
        yield
    except RoostError as failure:
        if failure.code == "INVALID_STATE":
            raise Refused("internal", f"error {doing} stdin: {failure.message}") from None
        raise


def _cut(data: bytes) -> list[bytes]:
    return [data[at : at + PIECE] for at in range(0, len(data), PIECE)]


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for piece in _cut(data):
        yield piece


async def _none() -> AsyncIterator[bytes]:
    return
    yield b""


def _missing(wanted: messages.Selector) -> Refused:
    named = f"pid {wanted.pid}" if wanted.pid is not None else f"tag {wanted.tag!r}"
    return Refused("not_found", f"process with {named} not found")


def _id(found: _Found) -> str:
    return found.row.id if isinstance(found, _Run) else found.terminal.id
