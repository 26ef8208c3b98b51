"""Volumes over HTTP."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from roost.api.v1 import answers, bodies, routes, shapes
from roost.api.v1.services import Services, key_id, tenant
from roost.gateway.respond import Json

Limit = Annotated[int, Query(ge=1, le=500)]
Cursor = Annotated[str | None, Query(max_length=512)]


def router(s: Services) -> APIRouter:
    r = routes.router("/v1/volumes", "volumes")

    @r.post("", status_code=201, response_model=answers.Volume)
    async def create(request: Request, body: bodies.CreateVolume) -> Response:
        made = await s.volumes.create(tenant(request), body.name, body.size_gib, key_id(request))
        return Json(shapes.volume(made), 201)

    @r.get("", response_model=answers.Page[answers.Volume])
    async def list_(request: Request, limit: Limit = 100, cursor: Cursor = None) -> Response:
        found = await s.volumes.list(tenant(request), limit, cursor)
        return Json(shapes.page(found, shapes.volume))

    @r.get("/{volume}", response_model=answers.Volume)
    async def get(request: Request, volume: str) -> Response:
        return Json(shapes.volume(await s.volumes.get(tenant(request), volume)))

    @r.delete("/{volume}", status_code=204)
    async def delete(request: Request, volume: str) -> Response:
        await s.volumes.delete(tenant(request), volume)
        return Response(status_code=204)

    return r
