"""Commands: waited for, as events, and many on one WebSocket.

    {"id", "cmd", "timeout_seconds"}  ->  {"id", "stream", "data"} ..., then {"id", "exit"} or {"id", "error"}
    {"id", "cancel": true}            ->  {"id", "exit": 137}

They are lines for a shell: bash where the sandbox has one, else sh.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from roost.api.v1.services import Services, caller, tenant
from roost.dialects import serving
from roost.dialects.pandastack import bodies, errors
from roost.dialects.pandastack.streams import Text, events
from roost.errors import InvalidRequestError, LimitError, MachineError, RoostError, TimeoutExpired
from roost.gateway import access
from roost.gateway.respond import Json, dumps, event
from roost.services.executions import Ended, Event, Output, StartExecution
from roost.store.executions import ExecutionRow

T = TypeVar("T")
AT_ONCE = 32  # commands of one WebSocket
SHELLS = ("/bin/bash", "/bin/sh")
KILLED = 137


class Commands:
    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[BaseRoute]:
        at = "/v1/sandboxes/{id}/exec"
        return [
            Route(at, self.exec, methods=["POST"]),
            Route(f"{at}/stream", self.stream, methods=["POST"]),
            WebSocketRoute(f"{at}/ws", self.socket),
        ]

    async def exec(self, request: Request) -> Response:
        asked = await serving.body(request, bodies.Exec)
        self._s.metrics.executions.labels("run").inc()
        who, machine_id = tenant(request), request.path_params["id"]
        row = await in_shell(asked, lambda spec: self._s.executions.run(who, machine_id, spec))
        said = {
            "stdout": (row.stdout or b"").decode(errors="replace"),
            "stderr": (row.stderr or b"").decode(errors="replace"),
            "exit_code": exit_code(row),
            "duration_ms": (row.duration_us or 0) // 1000,
        }
        if row.stdout_truncated or row.stderr_truncated:
            said["truncated"] = True
        return Json(said)

    async def stream(self, request: Request) -> Response:
        asked = await serving.body(request, bodies.Exec)
        self._s.metrics.executions.labels("stream").inc()
        who, machine_id = tenant(request), request.path_params["id"]
        _, heard = await self._start(who, machine_id, asked)
        return events(_events(heard), caller(request))

    async def socket(self, ws: WebSocket) -> None:
        await self._s.machines.get(tenant(ws), ws.path_params["id"])
        await ws.accept(caller(ws).subprotocol)
        await _Many(self._s, ws, self._start).serve()

    async def _start(
        self, who: str, machine_id: str, asked: bodies.Exec
    ) -> tuple[ExecutionRow, AsyncGenerator[Event, None]]:
        return await in_shell(
            asked, lambda spec: self._s.executions.start_stream(who, machine_id, spec)
        )


async def in_shell(asked: bodies.Exec, begin: Callable[[StartExecution], Awaitable[T]]) -> T:
    seconds = asked.timeout_seconds
    timeout_ms = None if seconds is None else max(1, int(seconds * 1000))
    for shell in SHELLS:
        try:
            return await begin(StartExecution([shell, "-c", asked.cmd], timeout_ms=timeout_ms))
        except RoostError as failure:
            if failure.code != "COMMAND_NOT_FOUND" or shell == SHELLS[-1]:
                raise
    raise AssertionError


def exit_code(row: ExecutionRow) -> int:
    """As a shell says it. Raises TIMEOUT, AGENT_LOST where its end is not known."""
    if row.status == "expired":
        after = f" after {(row.timeout_ms or 0) / 1000:g}s" if row.timeout_ms else ""
        raise TimeoutExpired(f"command timeout{after}", details={"execution_id": row.id})
    if row.exit_code is not None:
        return row.exit_code
    if row.signal is not None:
        return 128 + row.signal
    if row.status == "cancelled":
        return KILLED
    raise MachineError(
        f"The command's outcome is unknown ({row.reason or row.status}): its sandbox ended meanwhile.",
        details={"execution_id": row.id},
    )


async def _events(heard: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    texts = {"stdout": Text(), "stderr": Text()}
    async with contextlib.aclosing(heard):
        async for each in heard:
            if isinstance(each, Output):
                if chunk := texts[each.stream].take(each.data):
                    yield event(each.stream, {"chunk": chunk})
            elif isinstance(each, Ended):
                for stream, text in texts.items():
                    if chunk := text.rest():
                        yield event(stream, {"chunk": chunk})
                yield event("exit", {"exit_code": exit_code(each.execution)})


Start = Callable[
    [str, str, bodies.Exec],
    Awaitable[tuple[ExecutionRow, AsyncGenerator[Event, None]]],
]


class _Many:
    """The commands of one WebSocket, which end with it."""

    def __init__(self, services: Services, ws: WebSocket, start: Start) -> None:
        self._s = services
        self._ws = ws
        self._start = start
        self._who = tenant(ws)
        self._machine_id: str = ws.path_params["id"]
        self._running: dict[str, asyncio.Task[None]] = {}
        self._known: dict[str, str] = {}  # ids of executions, by theirs
        self._cancelled: set[str] = set()

    async def serve(self) -> None:
        try:
            while True:
                frame = await self._ws.receive()
                if frame["type"] == "websocket.disconnect":
                    return
                said = frame.get("text")
                await self._hear(
                    said
                    if said is not None
                    else (frame.get("bytes") or b"").decode(errors="replace")
                )
        finally:
            tasks = list(self._running.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            known = list(self._known.values())  # with what was just being started
            ends = (self._s.executions.cancel(self._who, self._machine_id, each) for each in known)
            await asyncio.gather(*ends, return_exceptions=True)

    async def _hear(self, text: str) -> None:
        named = ""
        try:
            message = _message(text)
            named = str(message.get("id", ""))
            if message.get("cancel") is True:
                await self._cancel(named)
            else:
                self._begin(named, message)
        except RoostError as failure:
            await self._fail(named, failure)

    def _begin(self, named: str, message: dict[str, Any]) -> None:
        if not named or named in self._running:
            raise InvalidRequestError("id: one that no running command of this connection has.")
        if len(self._running) >= AT_ONCE:
            raise LimitError(f"{AT_ONCE} commands run on this connection, the most there may be.")
        try:
            asked = bodies.Exec.model_validate(message)
        except ValidationError as failure:
            first = failure.errors()[0]
            raise InvalidRequestError(
                f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            ) from failure
        task = asyncio.get_running_loop().create_task(self._run(named, asked))
        self._running[named] = task

    async def _run(self, named: str, asked: bodies.Exec) -> None:
        texts = {"stdout": Text(), "stderr": Text()}
        try:
            self._s.metrics.executions.labels("stream").inc()
            row, heard = await self._started(named, asked)
            async with contextlib.aclosing(heard):
                if named in self._cancelled:
                    await self._s.executions.cancel(self._who, self._machine_id, row.id)
                async for each in heard:
                    if isinstance(each, Output):
                        await self._tell(named, each.stream, texts[each.stream].take(each.data))
                    elif isinstance(each, Ended):
                        self._known.pop(named, None)
                        for stream, text in texts.items():
                            await self._tell(named, stream, text.rest())
                        await self._send({"id": named, "exit": exit_code(each.execution)})
        except RoostError as failure:
            await self._fail(named, failure)
        finally:
            self._running.pop(named, None)
            self._cancelled.discard(named)

    async def _started(
        self, named: str, asked: bodies.Exec
    ) -> tuple[ExecutionRow, AsyncGenerator[Event, None]]:
        """One that is being started when all ends starts all the same, and is known to be ended."""
        starting = asyncio.ensure_future(self._start(self._who, self._machine_id, asked))
        try:
            row, heard = await asyncio.shield(starting)
        except asyncio.CancelledError:
            row, heard = await starting
            self._known[named] = row.id
            await heard.aclose()
            raise
        self._known[named] = row.id
        return row, heard

    async def _cancel(self, named: str) -> None:
        if named not in self._running:
            return  # it ended meanwhile
        self._cancelled.add(named)
        if (known := self._known.get(named)) is not None:
            await self._s.executions.cancel(self._who, self._machine_id, known)

    async def _tell(self, named: str, stream: str, data: str) -> None:
        if data:
            await self._send({"id": named, "stream": stream, "data": data})

    async def _fail(self, named: str, failure: RoostError) -> None:
        told = access.told(failure, caller(self._ws).principal)
        await self._send({"id": named, "error": errors.text(told)})

    async def _send(self, message: dict[str, Any]) -> None:
        await self._ws.send({"type": "websocket.send", "text": dumps(message).decode()})


def _message(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidRequestError("A message is a JSON object.", code="INVALID_BODY")
    return found
