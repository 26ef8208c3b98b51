"""Executions over HTTP, server-sent events and WebSocket."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, WebSocket
from starlette.responses import Response

from roost.api.v1 import answers, bodies, routes, shapes, sockets
from roost.api.v1.parse import decode_b64, invalid, signal_number
from roost.api.v1.services import Services, caller, tenant
from roost.gateway.respond import Events, Json, event
from roost.services.executions import Dropped, Event, Output, StartExecution
from roost.store.executions import WAITING, ExecutionRow

Limit = Annotated[int, Query(ge=1, le=500)]
Cursor = Annotated[str | None, Query(max_length=512)]
Offset = Annotated[int, Query(ge=0, le=1 << 62)]
Status = Literal[
    "approval_required", "queued", "running", "succeeded", "failed", "cancelled", "expired"
]
_LAST_ID = re.compile(r"(\d{1,18}):(\d{1,18})", re.ASCII)
SSE = {
    "content": answers.EVENTS,
    "description": "Events: started (or first approval_required), stdout, stderr, dropped, exit, error.",
}
RAW_BODY = {
    "requestBody": {
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    }
}


def router(s: Services) -> APIRouter:
    r = routes.router("/v1/machines/{machine_id}/executions", "executions")

    @r.post(
        "",
        status_code=200,
        response_model=answers.Finished,
        responses={201: {"model": answers.Execution}, 202: {"model": answers.Execution}},
    )
    async def start(
        request: Request,
        machine_id: str,
        body: bodies.StartExecution,
        wait: bool = True,
        approval: Annotated[
            Literal["wait", "return"],
            Query(description="Where it must be approved: wait for that, or answer 202."),
        ] = "wait",
    ) -> Response:
        spec = _spec(body)
        if wait:
            s.metrics.executions.labels("run").inc()
            patient = approval == "wait"
            row = await s.executions.run(tenant(request), machine_id, spec, patient)
            if row.status == WAITING:
                return Json(shapes.execution(row), 202)
            return Json(shapes.finished(row))
        s.metrics.executions.labels("start").inc()
        row = await s.executions.start(tenant(request), machine_id, spec)
        return Json(shapes.execution(row), 201)

    @r.post("/stream", response_class=Response, responses={200: SSE})
    async def start_stream(
        request: Request, machine_id: str, body: bodies.StartExecution
    ) -> Response:
        s.metrics.executions.labels("stream").inc()
        row, events = await s.executions.start_stream(tenant(request), machine_id, _spec(body))
        return Events(
            _sse(events, 0, 0, row), caller(request).request_id, caller(request).principal
        )

    @r.get("", response_model=answers.Page[answers.Execution])
    async def list_(
        request: Request,
        machine_id: str,
        status: Status | None = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        found = await s.executions.list(tenant(request), machine_id, status, limit, cursor)
        return Json(shapes.page(found, shapes.execution))

    @r.get("/{execution_id}", response_model=answers.Execution)
    async def get(request: Request, machine_id: str, execution_id: str) -> Response:
        row = await s.executions.get(tenant(request), machine_id, execution_id)
        return Json(shapes.execution(row))

    @r.delete("/{execution_id}", response_model=answers.Execution)
    async def cancel(request: Request, machine_id: str, execution_id: str) -> Response:
        row = await s.executions.cancel(tenant(request), machine_id, execution_id)
        return Json(shapes.execution(row))

    @r.get("/{execution_id}/output", response_model=answers.Output)
    async def output(request: Request, machine_id: str, execution_id: str) -> Response:
        row = await s.executions.output(tenant(request), machine_id, execution_id)
        return Json(shapes.output(row))

    @r.get("/{execution_id}/stream", response_class=Response, responses={200: SSE})
    async def stream(
        request: Request,
        machine_id: str,
        execution_id: str,
        stdout_offset: Offset = 0,
        stderr_offset: Offset = 0,
    ) -> Response:
        last = _LAST_ID.fullmatch(request.headers.get("last-event-id", ""))
        if last is not None:
            stdout_offset, stderr_offset = int(last[1]), int(last[2])
        events = await s.executions.stream(
            tenant(request), machine_id, execution_id, stdout_offset, stderr_offset
        )
        return Events(
            _sse(events, stdout_offset, stderr_offset),
            caller(request).request_id,
            caller(request).principal,
        )

    @r.post("/{execution_id}/stdin", response_model=answers.Written, openapi_extra=RAW_BODY)
    async def stdin(
        request: Request, machine_id: str, execution_id: str, eof: bool = False
    ) -> Response:
        written = await s.executions.write_stdin(
            tenant(request), machine_id, execution_id, request.stream(), eof
        )
        return Json({"written": written})

    @r.post("/{execution_id}/signal", response_model=answers.Execution)
    async def signal(
        request: Request, machine_id: str, execution_id: str, body: bodies.Signal
    ) -> Response:
        number = signal_number(body.signal)
        row = await s.executions.signal(tenant(request), machine_id, execution_id, number)
        return Json(shapes.execution(row))

    @r.websocket("/{execution_id}/stream")
    async def socket(
        ws: WebSocket,
        machine_id: str,
        execution_id: str,
        stdout_offset: Offset = 0,
        stderr_offset: Offset = 0,
    ) -> None:
        who = tenant(ws)
        events = await s.executions.stream(
            who, machine_id, execution_id, stdout_offset, stderr_offset
        )
        await ws.accept(caller(ws).subprotocol)
        async with contextlib.aclosing(events):
            await sockets.execution(ws, s.executions, who, machine_id, execution_id, events)

    return r


def _spec(body: bodies.StartExecution) -> StartExecution:
    stdin = b""
    if body.stdin is not None and body.stdin_b64 is not None:
        raise invalid("stdin", "either stdin or stdin_b64")
    if body.stdin is not None:
        stdin = body.stdin.encode()
    elif body.stdin_b64 is not None:
        stdin = decode_b64("stdin_b64", body.stdin_b64)
    return StartExecution(
        command=body.command,
        cwd=body.cwd,
        env=body.env,
        user=body.user,
        stdin=stdin,
        stdin_stream=body.stdin_stream,
        timeout_ms=body.timeout_ms,
        keep_awake=body.keep_awake,
    )


async def _sse(
    events: AsyncGenerator[Event, None],
    stdout_at: int,
    stderr_at: int,
    started: ExecutionRow | None = None,
) -> AsyncGenerator[bytes, None]:
    """With the offsets reached as each event's id."""
    at = {"stdout": stdout_at, "stderr": stderr_at}
    async with contextlib.aclosing(events):
        if started is not None:
            name = WAITING if started.status == WAITING else "started"
            yield event(name, shapes.execution(started), f"{stdout_at}:{stderr_at}")
        async for each in events:
            if isinstance(each, Output | Dropped):
                at[each.stream] = each.next
            name, data = shapes.stream_event(each)
            yield event(name, data, f"{at['stdout']}:{at['stderr']}")
