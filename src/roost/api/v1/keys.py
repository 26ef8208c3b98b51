"""Keys of tenants and tokens of machines over HTTP."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from roost.api.v1 import answers, bodies, routes, shapes
from roost.api.v1.parse import until
from roost.api.v1.services import Services, principal, tenant
from roost.errors import ForbiddenError
from roost.gateway.respond import Json
from roost.services.models import Principal, Role

TenantQuery = Annotated[
    str | None, Query(max_length=63, description="Id or name; an admin's to name.")
]


SECRET = {"cache-control": "no-store"}  # nobody keeps it, Idempotency-Key's answers included


class Keys(answers.Answer):
    items: list[answers.Key]
    next_cursor: None


class Tokens(answers.Answer):
    items: list[answers.Token]
    next_cursor: None


def router(s: Services) -> APIRouter:
    r = routes.router("/v1")

    async def of(who: Principal, named: str | None) -> str:
        """The tenant meant. Raises FORBIDDEN, TENANT_NOT_FOUND."""
        if named is None:
            return who.tenant
        if who.role is not Role.ADMIN:
            raise ForbiddenError("Only an admin names a tenant: leave it out.")
        return await s.tenants.find(named)

    @r.get("/keys", tags=["keys"], response_model=Keys)
    async def keys(request: Request, tenant: TenantQuery = None) -> Response:
        found = await s.keys.list(await of(principal(request), tenant))
        return Json({"items": [shapes.key(each) for each in found], "next_cursor": None})

    @r.post("/keys", tags=["keys"], status_code=201, response_model=answers.NewKey)
    async def create_key(request: Request, body: bodies.CreateKey) -> Response:
        who = principal(request)
        owner = await of(who, body.tenant)
        own = who.role if owner == who.tenant else Role.TENANT
        made = await s.keys.create(
            owner,
            body.name,
            own if body.role is None else Role(body.role),
            expires_at=until(body.ttl, body.expires_at),
            by=who.role,
        )
        return Json(shapes.key(made), 201, SECRET)

    @r.delete("/keys/{key_id}", tags=["keys"], status_code=204, response_class=Response)
    async def revoke_key(request: Request, key_id: str) -> Response:
        who = principal(request)
        await s.keys.revoke(None if who.role is Role.ADMIN else who.tenant, key_id, who.role)
        return Response(status_code=204)

    @r.get("/machines/{machine_id}/tokens", tags=["tokens"], response_model=Tokens)
    async def tokens(request: Request, machine_id: str) -> Response:
        machine = await s.machines.get(tenant(request), machine_id)
        found = await s.keys.tokens(machine.id)
        return Json({"items": [shapes.token(each) for each in found], "next_cursor": None})

    @r.post(
        "/machines/{machine_id}/tokens",
        tags=["tokens"],
        status_code=201,
        response_model=answers.NewToken,
    )
    async def issue(request: Request, machine_id: str, body: bodies.CreateToken) -> Response:
        machine = await s.machines.get(tenant(request), machine_id)
        made = await s.keys.issue(
            machine.tenant_id,
            machine.id,
            Role(body.scope),
            port=body.port,
            name=body.name,
            expires_at=until(body.ttl, body.expires_at),
        )
        return Json(shapes.token(made), 201, SECRET)

    @r.delete(
        "/machines/{machine_id}/tokens/{token_id}",
        tags=["tokens"],
        status_code=204,
        response_class=Response,
    )
    async def revoke(request: Request, machine_id: str, token_id: str) -> Response:
        machine = await s.machines.get(tenant(request), machine_id)
        await s.keys.revoke_token(machine.tenant_id, machine.id, token_id)
        return Response(status_code=204)

    return r
