"""Snapshots over HTTP."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from roost.api.v1 import answers, bodies, routes, shapes
from roost.api.v1.services import Services, tenant
from roost.gateway.respond import Json

Limit = Annotated[int, Query(ge=1, le=500)]
Cursor = Annotated[str | None, Query(max_length=512)]


def router(s: Services) -> APIRouter:
    r = routes.router("/v1", "snapshots")

    @r.post("/machines/{machine_id}/snapshots", status_code=201, response_model=answers.Snapshot)
    async def create(
        request: Request, machine_id: str, body: bodies.CreateSnapshot | None = None
    ) -> Response:
        made = await s.snapshots.create(tenant(request), machine_id, body.name if body else None)
        return Json(shapes.snapshot(made), 201)

    @r.get("/snapshots", response_model=answers.Page[answers.Snapshot])
    async def list_(
        request: Request,
        machine_id: Annotated[str | None, Query(max_length=40)] = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        found = await s.snapshots.list(tenant(request), machine_id, limit, cursor)
        return Json(shapes.page(found, shapes.snapshot))

    @r.get("/snapshots/{snapshot}", response_model=answers.Snapshot)
    async def get(request: Request, snapshot: str) -> Response:
        return Json(shapes.snapshot(await s.snapshots.get(tenant(request), snapshot)))

    @r.delete("/snapshots/{snapshot}", status_code=204)
    async def delete(request: Request, snapshot: str) -> Response:
        await s.snapshots.delete(tenant(request), snapshot)
        return Response(status_code=204)

    return r
