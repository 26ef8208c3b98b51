"""Code in a machine's Jupyter kernels over HTTP, whole or as events."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import asdict

from fastapi import APIRouter, Request
from starlette.responses import Response

from roost.api.v1 import answers, bodies, routes, shapes
from roost.api.v1.services import Services, caller, tenant
from roost.gateway.respond import Events, Json, event, primed
from roost.services.code import Began, Ended, Event, Raised, Result, RunCode, Shown, Text

SSE = {
    "content": answers.EVENTS,
    "description": "Events: started, stdout, stderr, result, raised, end, error.",
}


def router(s: Services) -> APIRouter:
    r = routes.router("/v1/machines/{machine_id}/code", "code")

    @r.post("", response_model=answers.CodeResult)
    async def run(request: Request, machine_id: str, body: bodies.RunCode) -> Response:
        """Runs code to its end; what it made is there for the next. An exception of the code is a result."""
        return Json(_result(await s.code.run(tenant(request), machine_id, _spec(body))))

    @r.post("/stream", response_class=Response, responses={200: SSE})
    async def stream(request: Request, machine_id: str, body: bodies.RunCode) -> Response:
        """As it comes. Who leaves before the end has it interrupted."""
        said = s.code.stream(tenant(request), machine_id, _spec(body))
        events = await primed(_sse(said))
        return Events(events, caller(request).request_id, caller(request).principal)

    @r.get("/contexts", response_model=answers.CodeContexts)
    async def contexts(request: Request, machine_id: str) -> Response:
        found = await s.code.contexts(tenant(request), machine_id)
        return Json({"items": [asdict(each) for each in found]})

    @r.post("/contexts/{context}/restart", status_code=204, response_class=Response)
    async def restart(request: Request, machine_id: str, context: str) -> Response:
        """A new kernel; what it knew is gone."""
        await s.code.restart(tenant(request), machine_id, context)
        return Response(status_code=204)

    @r.post("/contexts/{context}/interrupt", status_code=204, response_class=Response)
    async def interrupt(request: Request, machine_id: str, context: str) -> Response:
        await s.code.interrupt(tenant(request), machine_id, context)
        return Response(status_code=204)

    @r.delete("/contexts/{context}", status_code=204, response_class=Response)
    async def delete(request: Request, machine_id: str, context: str) -> Response:
        await s.code.delete(tenant(request), machine_id, context)
        return Response(status_code=204)

    return r


def _spec(body: bodies.RunCode) -> RunCode:
    return RunCode(body.code, body.language, body.context or "", body.timeout_ms / 1000)


async def _sse(events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(events):
        async for each in events:
            yield event(*_shown(each))


def _shown(said: Event) -> tuple[str, shapes.Object]:
    match said:
        case Began():
            return "started", {}
        case Text(stream, text):
            return stream, {"text": text}
        case Shown():
            return "result", asdict(said)
        case Raised():
            return "raised", asdict(said)
        case Ended():
            return "end", asdict(said)


def _result(result: Result) -> shapes.Object:
    return {
        "status": result.ended.status,
        "execution_count": result.ended.execution_count,
        "stdout": result.stdout,
        "stderr": result.stderr,
        "results": [asdict(each) for each in result.results],
        "error": None if result.raised is None else asdict(result.raised),
        "truncated": result.truncated,
        "restarted": result.ended.restarted,
    }
