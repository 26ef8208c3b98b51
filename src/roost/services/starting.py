"""What a template's machines run when they boot, and when that is ready.

```
  it boots from its disk --> start --> ready? --(again every interval_s)--> ready
                               |          '-- timeout_s, or start ended with an error --> TEMPLATE_NOT_READY
  it goes on from its memory --'-- start goes on in it, and is not run again
```

``start`` is an execution like any other, called "start", that does not keep its machine awake. A machine that is not
ready runs all the same: whoever made it is told why, and can look into it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import sqlalchemy as sa
import structlog

from roost import ids
from roost.agent.v1 import agent_pb2 as pb
from roost.engine.engine import Engine
from roost.engine.roster import Running
from roost.errors import MachineError, RoostError
from roost.services import launching, outcome
from roost.services.models import Live
from roost.store import machines

if TYPE_CHECKING:
    from roost.agent.client import AgentClient

log = structlog.get_logger(__name__)

NAME = "start"
Command = str | list[str]  # for a shell, or a program and its arguments

TIMEOUT_S = 60.0
INTERVAL_S = 0.2
LONGEST_S = 1800.0
TRY_S = 30.0  # one look whether it is ready
PIECE = 1 << 20
MAX_LINE = 4096
TOLD_LINES = 10
TOLD_CHARS = 1500
PATIENCE_S = 2.0  # for what a start that failed said
_HERE = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Ready:
    """Exactly one of the first three: a command that ends with 0, a port something listens on, a URL of the machine's
    own that answers below 400."""

    command: Command | None = None
    port: int | None = None
    url: str | None = None
    timeout_s: float = TIMEOUT_S
    interval_s: float = INTERVAL_S


@dataclass(frozen=True, slots=True)
class Startup:
    command: Command
    ready: Ready | None = None


def of(config: Mapping[str, Any]) -> Startup | None:
    """What a template's configuration says; None where it starts nothing. What is not of the form is not said."""
    command = _command(config.get("start"))
    return None if command is None else Startup(command, _ready(config.get("ready")))


def _ready(value: Any) -> Ready | None:
    if not isinstance(value, Mapping):
        return None
    plain = Ready(
        timeout_s=_seconds(value.get("timeout_s"), TIMEOUT_S, 1.0),
        interval_s=_seconds(value.get("interval_s"), INTERVAL_S, 0.05),
    )
    command, port, url = _command(value.get("command")), value.get("port"), value.get("url")
    if command is not None:
        return replace(plain, command=command)
    if isinstance(port, int) and not isinstance(port, bool) and 1 <= port <= 65535:
        return replace(plain, port=port)
    if isinstance(url, str) and url:
        return replace(plain, url=url)
    return None


def _command(value: Any) -> Command | None:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return list(value)
    return None


def _seconds(value: Any, default: float, least: float) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return min(max(float(value), least), LONGEST_S) if number else default


class Starting:
    """``began`` hears of each machine in which a start runs, with what the agent calls that execution: of one that
    goes on from memory None, for only its agent knows."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.began: list[Callable[[Running, str | None], None]] = []
        engine.begin = self.begin

    async def begin(self, running: Running, booted: bool, interrupt: asyncio.Event) -> None:
        """Of a machine that came up, in its line. Returns once it is ready, or as soon as ``interrupt`` is set. Raises
        TEMPLATE_NOT_READY (the machine runs on)."""
        machine = running.machine
        if booted and machine.snapshot_id is None:
            await self._give(running)
        startup = of(running.config)
        if startup is None:
            return
        if not booted:
            self._tell(running, None)
            return
        starting = asyncio.ensure_future(self._start(running, startup))
        destroyed = asyncio.ensure_future(interrupt.wait())
        try:
            with self._engine.roster.using(machine.id):
                await asyncio.wait({starting, destroyed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            destroyed.cancel()
            starting.cancel()  # of no effect on one that is done
            await asyncio.wait({starting})
        if not starting.cancelled():
            starting.result()

    def _tell(self, running: Running, known_as: str | None) -> None:
        for listener in self.began:
            listener(running, known_as)

    async def _give(self, running: Running) -> None:
        """What its driver could not lay on its disk."""
        driver = self._engine.rungs.driver(running.machine.driver)
        for path, content in driver.given().items():
            header = pb.WriteFileHeader(path=path.encode(), permissions=0o644, make_parents=True)
            await cast("AgentClient", running.agent).write_file(header, _pieces(content))

    async def _start(self, running: Running, startup: Startup) -> None:
        machine = running.machine
        told = self._engine.parts.boundary.environment(machine.id, machine.capabilities.one_user)
        live = Live(machine, cast("AgentClient", running.agent), running.config, told)
        since = time.monotonic()
        request = _request(live, startup.command)
        request.execution_id = f"{NAME}{ids.new()}"
        request.ring_bytes, request.head_bytes = outcome.TAIL_BYTES, outcome.HEAD_BYTES
        try:
            await live.agent.start(request)
        except RoostError as failure:
            why = f"it could not be started: {failure.message}"
            raise await self._not_ready(live, startup, why, "") from failure
        self._tell(running, request.execution_id)
        if startup.ready is not None:
            await self._until_ready(live, startup, startup.ready, request.execution_id)
        await self._record(machine.id, "ready", f"after {time.monotonic() - since:.1f} s")

    async def _until_ready(
        self, live: Live, startup: Startup, ready: Ready, execution_id: str
    ) -> None:
        looking = asyncio.ensure_future(_until(live, ready))
        ended = asyncio.ensure_future(_failed(live.agent, execution_id))
        tasks = {looking, ended}
        why = f"it was not within {ready.timeout_s:g} s"
        try:
            async with asyncio.timeout(ready.timeout_s):
                while not looking.done():
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    if ended in tasks and ended.done():
                        tasks.discard(ended)
                        if (why_ended := ended.result()) is not None:
                            why = why_ended
                            break
            if looking.done():
                looking.result()
                return
        except TimeoutError:
            pass
        except RoostError as failure:
            why = failure.message
        finally:
            for each in (looking, ended):
                each.cancel()
            await asyncio.gather(looking, ended, return_exceptions=True)
        raise await self._not_ready(live, startup, why, await _said(live.agent, execution_id))

    async def _not_ready(self, live: Live, startup: Startup, why: str, said: str) -> MachineError:
        machine = live.machine
        await self._record(machine.id, "not_ready", why)
        log.warning("machine.not_ready", machine_id=machine.id, template=machine.template)
        details: dict[str, Any] = {"machine_id": machine.id, "template": machine.template}
        if said:
            details["output"] = said
        last = f" It said: {said.splitlines()[-1][:300]}" if said else ""
        return MachineError(
            f"What {machine.template} starts is not ready: {why}.{last} The machine runs: see the output of its"
            f" execution {NAME}, or delete it.",
            code="TEMPLATE_NOT_READY",
            details=details,
        )

    async def _record(self, machine_id: str, event: str, message: str) -> None:
        now = self._engine.clock.now()

        def fn(connection: sa.Connection) -> None:
            machines.record(connection, machine_id, now, event, message[:400])

        await self._engine.store.write(fn)


# --- whether it is ready ---------------------------------------------------------------------------


async def _until(live: Live, ready: Ready) -> None:
    while True:
        if await _is_ready(live, ready):
            return
        await asyncio.sleep(ready.interval_s)


async def _is_ready(live: Live, ready: Ready) -> bool:
    """Raises what ends the asking: AGENT_LOST, or a URL that is not the machine's own."""
    if ready.command is not None:
        request = _request(live, ready.command)
        request.execution_id = ids.new()
        request.timeout_ms = int(TRY_S * 1000)
        result = await live.agent.run(request)
        with contextlib.suppress(RoostError):  # or the agent remembers all that were not ready
            await live.agent.forget(request.execution_id)
        return result.execution.exit_code == 0 and not result.execution.HasField("signal")
    try:
        async with asyncio.timeout(TRY_S):
            if ready.url is not None:
                return await _answers(live.agent, ready.url)
            return await _listens(live.agent, ready.port or 0)
    except TimeoutError:
        return False
    except RoostError as failure:
        if failure.code != "PORT_CLOSED":
            raise
        return False


async def _listens(agent: AgentClient, port: int) -> bool:
    stream = agent.dial(port)
    try:
        await stream.open()
        await stream.connected()
        return True
    finally:
        stream.close()


async def _answers(agent: AgentClient, url: str) -> bool:
    """One GET, of whose answer only the first line counts."""
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname not in _HERE or "\r" in url or "\n" in url:
        raise MachineError(
            f"its ready.url {url[:100]!r} is not one of the machine's own: http://localhost:PORT/...",
            code="TEMPLATE_NOT_READY",
        )
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    stream = agent.dial(parts.port or 80)
    try:
        await stream.open()
        head = f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
        await stream.write(head.encode())
        line = b""
        while b"\n" not in line and len(line) < MAX_LINE:
            piece = await stream.read()
            if not piece:
                break
            line += piece
        words = line.split(b"\n", 1)[0].split()
        status = words[1] if len(words) > 1 and words[0].startswith(b"HTTP/") else b""
        return len(status) == 3 and status[:1] in (b"1", b"2", b"3") and status.isdigit()
    finally:
        stream.close()


async def _failed(agent: AgentClient, execution_id: str) -> str | None:
    """Once it ended: how, or None where that is no error (it went to the background)."""
    result = await agent.wait(execution_id)
    said = result.execution
    if said.HasField("signal"):
        return f"it was ended by signal {said.signal}"
    return f"it ended with {said.exit_code}" if said.exit_code else None


async def _said(agent: AgentClient, execution_id: str) -> str:
    """The last lines of it."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            result = await agent.output(execution_id)
    except (RoostError, TimeoutError):
        return ""
    text = (result.stdout + b"\n" + result.stderr).decode(errors="replace")
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-TOLD_LINES:])[-TOLD_CHARS:]


def _request(live: Live, command: Command) -> pb.StartRequest:
    """As the template's user, where and with what its executions have."""
    return pb.StartRequest(
        argv=[] if isinstance(command, str) else command,
        shell=command if isinstance(command, str) else "",
        cwd=launching.directory_of_start(live),
        env=launching.environment(live, {}),
        user=launching.user_of_start(live),
    )


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(content), PIECE):
        yield content[at : at + PIECE]
