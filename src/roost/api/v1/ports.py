"""Ports over HTTP."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from roost.api.v1 import answers, bodies, routes, shapes
from roost.api.v1.keys import SECRET
from roost.api.v1.parse import invalid
from roost.api.v1.services import Services, tenant
from roost.gateway.respond import Json
from roost.services.models import UNSET, Port
from roost.services.ports import LINK_S

Number = Annotated[int, Path(ge=0, le=65535, description="0: every port not shown by itself.")]


def listening(s: Services) -> APIRouter:
    r = routes.router("/v1/machines/{machine_id}/listening", "ports")

    @r.get("", response_model=answers.ListeningPorts)
    async def list_listening(request: Request, machine_id: str) -> Response:
        """The TCP ports programs in the machine listen on, shown outside or not."""
        found = await s.listening.list(tenant(request), machine_id)
        return Json({"items": [asdict(each) for each in found], "next_cursor": None})

    return r


def router(s: Services) -> APIRouter:
    r = routes.router("/v1/machines/{machine_id}/ports", "ports")

    def shown(port: Port) -> shapes.Object:
        return shapes.port(port, s.ports.url(port))

    @r.post("", status_code=201, response_model=answers.Port)
    async def create(request: Request, machine_id: str, body: bodies.CreatePort) -> Response:
        made = await s.ports.create(
            tenant(request),
            machine_id,
            body.port,
            protocol=body.protocol,
            visibility=body.visibility,
            name=body.name,
        )
        return Json(shown(made), 201)

    @r.get("", response_model=answers.Ports)
    async def list_(request: Request, machine_id: str) -> Response:
        found = await s.ports.list(tenant(request), machine_id)
        return Json({"items": [shown(each) for each in found], "next_cursor": None})

    @r.get("/{port}", response_model=answers.Port)
    async def get(request: Request, machine_id: str, port: Number) -> Response:
        return Json(shown(await s.ports.get(tenant(request), machine_id, port)))

    @r.patch("/{port}", response_model=answers.Port)
    async def patch(
        request: Request, machine_id: str, port: Number, body: bodies.PatchPort
    ) -> Response:
        named = body.model_fields_set
        if "visibility" in named and body.visibility is None:
            raise invalid("visibility", "is private or public")
        changed = await s.ports.patch(
            tenant(request),
            machine_id,
            port,
            visibility=UNSET if body.visibility is None else body.visibility,
            name=body.name if "name" in named else UNSET,
        )
        return Json(shown(changed))

    @r.delete("/{port}", status_code=204, response_class=Response)
    async def delete(request: Request, machine_id: str, port: Number) -> Response:
        await s.ports.delete(tenant(request), machine_id, port)
        return Response(status_code=204)

    @r.post("/{port}/links", status_code=201, response_model=answers.Link)
    async def link(
        request: Request, machine_id: str, port: Number, body: bodies.CreateLink | None = None
    ) -> Response:
        """A URL that opens the port for whoever has it, until it expires."""
        ttl = LINK_S if body is None else body.ttl_seconds
        made = await s.ports.link(tenant(request), machine_id, port, ttl)
        return Json({"url": made.url, "expires_at": shapes.time(made.expires_at)}, 201, SECRET)

    @r.delete("/{port}/links", status_code=204, response_class=Response)
    async def end_links(request: Request, machine_id: str, port: Number) -> Response:
        """No link made so far opens the port any more."""
        await s.ports.end_links(tenant(request), machine_id, port)
        return Response(status_code=204)

    return r
