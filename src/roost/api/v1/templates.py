"""Templates and builds over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from roost.api.v1 import answers, bodies, routes, shapes
from roost.api.v1.services import Services, caller, key_id, only_admin, principal, tenant
from roost.api.v1.transfer import decoded
from roost.gateway.respond import Events, Json, event
from roost.services.build_log import Event
from roost.services.builds import StartBuild
from roost.services.models import Role, Template

SSE: dict[str, Any] = {
    "content": answers.EVENTS,
    "description": "Events: progress, done, error.",
}
LOG: dict[str, Any] = {
    "content": answers.EVENTS,
    "description": "Events: step, log, end; the id of each is the place to go on from.",
}
TAR: dict[str, Any] = {
    "requestBody": {
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    }
}
Limit = Annotated[int, Query(ge=1, le=500)]
Cursor = Annotated[str | None, Query(max_length=512)]
Status = Literal["waiting", "queued", "running", "succeeded", "failed", "cancelled"]


class Templates(answers.Answer):
    items: list[answers.Template]
    next_cursor: None


def router(s: Services) -> APIRouter:
    r = routes.router("/v1", "templates")

    @r.get("/templates", response_model=Templates)
    async def templates(request: Request, unnamed: bool = False) -> Response:
        found = await s.templates.list(tenant(request), unnamed)
        return Json({"items": [shapes.template(each) for each in found], "next_cursor": None})

    @r.post("/templates/gc", response_model=answers.Collected)
    async def gc(
        request: Request,
        dry_run: bool = False,
        older_than: Annotated[int, Query(ge=0, le=10 * 365 * 86400)] = 86400,
    ) -> Response:
        admin = principal(request).role is Role.ADMIN
        return Json(await s.builds.gc(tenant(request), older_than, dry_run, shipped=admin))

    @r.get("/templates/{name}", response_model=answers.Template)
    async def template(request: Request, name: str) -> Response:
        return Json(shapes.template(await s.templates.get(tenant(request), name)))

    @r.delete("/templates/{name}", response_model=answers.Untagged)
    async def delete(request: Request, name: str) -> Response:
        removed, whole = await s.templates.delete(tenant(request), name)
        return Json({"removed": removed, "deleted": whole})

    @r.post("/templates/{name}/tags", response_model=answers.Template)
    async def tag(request: Request, name: str, body: bodies.Tag) -> Response:
        return Json(shapes.template(await s.templates.tag(tenant(request), name, body.name)))

    @r.post("/templates/{name}/build", response_class=Response, responses={200: SSE})
    async def build(
        request: Request,
        name: str,
        force: bool = False,
        driver: Annotated[str | None, Query(max_length=32)] = None,
    ) -> Response:
        only_admin(request)
        await s.templates.get(tenant(request), name)
        return Events(
            _building(s, name, force, driver),
            caller(request).request_id,
            caller(request).principal,
        )

    return r


def builds(s: Services) -> APIRouter:
    r = routes.router("/v1/builds", "builds")

    @r.post("", status_code=201, response_model=answers.Build)
    async def start(request: Request, body: bodies.StartBuild) -> Response:
        made, _ = await s.builds.start(tenant(request), _asked(body, key_id(request)))
        return Json(shapes.build(made), 201)

    @r.get("", response_model=answers.Page[answers.Build])
    async def list_(
        request: Request,
        status: Status | None = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        found = await s.builds.list(tenant(request), status, limit, cursor)
        return Json(shapes.page(found, shapes.build))

    @r.get("/{build_id}", response_model=answers.Build)
    async def get(request: Request, build_id: str) -> Response:
        return Json(shapes.build(await s.builds.get(tenant(request), build_id)))

    @r.delete("/{build_id}", response_model=answers.Build)
    async def cancel(request: Request, build_id: str) -> Response:
        return Json(shapes.build(await s.builds.cancel(tenant(request), build_id)))

    @r.put("/{build_id}/context", response_model=answers.Build, openapi_extra=TAR)
    async def context(request: Request, build_id: str) -> Response:
        made = await s.builds.give(tenant(request), build_id, decoded(request))
        return Json(shapes.build(made))

    @r.get("/{build_id}/stream", response_class=Response, responses={200: LOG})
    async def stream(
        request: Request,
        build_id: str,
        after: Annotated[int, Query(ge=0, le=1 << 53)] = 0,
    ) -> Response:
        last = request.headers.get("last-event-id", "")
        if last.isascii() and last.isdecimal() and len(last) < 17:
            after = int(last)
        events = await s.builds.follow(tenant(request), build_id, after)
        return Events(_log(events), caller(request).request_id, caller(request).principal)

    return r


def _asked(body: bodies.StartBuild, created_by: str | None) -> StartBuild:
    return StartBuild(
        tags=tuple(body.tags),
        dockerfile=body.dockerfile,
        roost_toml=body.roost_toml,
        args=body.build_args,
        secrets=body.secrets,
        credentials={
            host: {"username": each.username, "password": each.password}
            for host, each in body.credentials.items()
        },
        driver=body.driver,
        no_cache=body.no_cache,
        keep_failed=body.keep_failed,
        created_by=created_by,
    )


async def _log(events: AsyncGenerator[tuple[int, Event], None]) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(events):
        async for place, each in events:
            data = {name: value for name, value in each.items() if name != "event"}
            yield event(str(each.get("event")), data, str(place))


async def _building(
    s: Services, name: str, force: bool, driver: str | None
) -> AsyncGenerator[bytes, None]:
    """Progress as it comes; a client that goes away stops hearing, not the build."""
    heard: asyncio.Queue[tuple[str, int | None, str]] = asyncio.Queue(256)
    loop = asyncio.get_running_loop()

    def progress(stage: str, percent: int | None, message: str) -> None:
        def put() -> None:
            with contextlib.suppress(asyncio.QueueFull):
                heard.put_nowait((stage, percent, message))

        loop.call_soon_threadsafe(put)

    build: asyncio.Task[Template] = loop.create_task(
        s.templates.build(name, force, progress, driver)
    )
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
