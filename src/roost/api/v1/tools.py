"""Which programs may be run in a machine, over HTTP."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from roost.api.v1 import answers, bodies, parse, routes, shapes
from roost.api.v1.services import Services, tenant
from roost.gateway.respond import Json
from roost.services.models import Machine


def router(s: Services) -> APIRouter:
    r = routes.router("/v1/machines/{machine_id}/tools", "tools")

    @r.get("", response_model=answers.Tools)
    async def show(request: Request, machine_id: str) -> Response:
        return _tools(await s.machines.get(tenant(request), machine_id))

    @r.put("", response_model=answers.Tools)
    async def replace(request: Request, machine_id: str, body: bodies.Tools) -> Response:
        """In place of what there was; it holds for what is begun from then on."""
        if not body.model_fields_set:
            raise parse.invalid("mode", "off, ask or deny; this replaces what there was")
        wanted = parse.tools(body)
        changed = await s.toolsets.replace(
            tenant(request), machine_id, wanted, parse.if_match(request)
        )
        return _tools(changed)

    return r


def _tools(machine: Machine) -> Response:
    return Json(shapes.tools(machine.tools), 200, {"etag": f'"{machine.revision}"'})
