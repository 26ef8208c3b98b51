"""What a machine may reach, over HTTP."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from roost.api.v1 import answers, bodies, routes, shapes
from roost.api.v1.parse import if_match, invalid, policy
from roost.api.v1.services import Services, tenant
from roost.egress.policy import Policy
from roost.gateway.respond import Json
from roost.services.models import Machine
from roost.services.policies import PatchPolicy


def router(s: Services) -> APIRouter:
    r = routes.router("/v1/machines/{machine_id}/egress", "egress")

    @r.get("", response_model=answers.Egress)
    async def show(request: Request, machine_id: str) -> Response:
        return Json(shapes.egress(await s.policies.report(tenant(request), machine_id)))

    @r.put("", response_model=answers.EgressPolicy)
    async def replace(request: Request, machine_id: str, body: bodies.Egress) -> Response:
        if not {"mode", "allow"} & body.model_fields_set:
            raise invalid("mode", "open, allowlist or off; this replaces what there was")
        wanted = policy(body) or Policy()
        return _policy(
            await s.policies.replace(tenant(request), machine_id, wanted, if_match(request))
        )

    @r.patch("", response_model=answers.EgressPolicy)
    async def patch(request: Request, machine_id: str, body: bodies.PatchEgress) -> Response:
        wanted = PatchPolicy(body.mode, body.allow, body.observe, body.add, body.remove)
        return _policy(
            await s.policies.patch(tenant(request), machine_id, wanted, if_match(request))
        )

    return r


def _policy(changed: Machine) -> Response:
    return Json(changed.egress.to_json(), 200, {"etag": f'"{changed.revision}"'})
