"""Templates and the host over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from roost.api.v1 import answers, shapes
from roost.api.v1.services import Services, caller, only_admin, principal, tenant
from roost.gateway.respond import Events, Json, event
from roost.services.models import Role, Template

SSE: dict[str, Any] = {
    "content": answers.EVENTS,
    "description": "Events: progress, done, error.",
}


class Templates(answers.Answer):
    items: list[answers.Template]
    next_cursor: None


def router(s: Services) -> APIRouter:
    r = APIRouter(prefix="/v1")

    @r.get("/templates", tags=["templates"], response_model=Templates)
    async def templates(request: Request) -> Response:
        found = await s.templates.list(tenant(request))
        return Json({"items": [shapes.template(each) for each in found], "next_cursor": None})

    @r.get("/templates/{name}", tags=["templates"], response_model=answers.Template)
    async def template(request: Request, name: str) -> Response:
        return Json(shapes.template(await s.templates.get(tenant(request), name)))

    @r.post(
        "/templates/{name}/build",
        tags=["templates"],
        response_class=Response,
        responses={200: SSE},
    )
    async def build(request: Request, name: str, force: bool = False) -> Response:
        only_admin(request)
        await s.templates.get(tenant(request), name)
        return Events(
            _building(s, name, force), caller(request).request_id, caller(request).principal
        )

    @r.get("/host", tags=["host"], response_model=dict[str, Any])
    async def host(request: Request) -> Response:
        if principal(request).role is Role.ADMIN:
            return Json(await s.host.describe())
        return Json(await s.host.public())

    return r


async def _building(s: Services, name: str, force: bool) -> AsyncGenerator[bytes, None]:
    """Progress as it comes; a client that goes away stops hearing, not the build."""
    heard: asyncio.Queue[tuple[str, int | None, str]] = asyncio.Queue(256)
    loop = asyncio.get_running_loop()

    def progress(stage: str, percent: int | None, message: str) -> None:
        def put() -> None:
            with contextlib.suppress(asyncio.QueueFull):
                heard.put_nowait((stage, percent, message))

        loop.call_soon_threadsafe(put)

    build: asyncio.Task[Template] = loop.create_task(s.templates.build(name, force, progress))
    build.add_done_callback(lambda task: task.cancelled() or task.exception())
    while not build.done() or not heard.empty():
        waiting = asyncio.ensure_future(heard.get())
        await asyncio.wait({build, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            continue
        stage, percent, message = waiting.result()
        yield event("progress", {"stage": stage, "percent": percent, "message": message})
    yield event("done", shapes.template(build.result()))
