"""Tenants over HTTP: the admin's, and to each its own quotas."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from roost.api.v1 import answers, bodies, routes, shapes
from roost.api.v1.services import Services, only_admin, tenant
from roost.gateway.respond import Json
from roost.services.models import UNSET


class Tenants(answers.Answer):
    items: list[answers.Tenant]
    next_cursor: None


def router(s: Services) -> APIRouter:
    r = routes.router("/v1", "tenants")

    @r.post("/tenants", status_code=201, response_model=answers.Tenant)
    async def create(request: Request, body: bodies.CreateTenant) -> Response:
        only_admin(request)
        quotas = body.quotas.model_dump(exclude_unset=True)
        made = await s.tenants.create(body.name, quotas, body.isolation)
        return Json(shapes.tenant(made), 201)

    @r.get("/tenants", response_model=Tenants)
    async def list_(request: Request) -> Response:
        only_admin(request)
        found = await s.tenants.list()
        return Json({"items": [shapes.tenant(each) for each in found], "next_cursor": None})

    @r.get("/tenants/{tenant_id}", response_model=answers.Tenant)
    async def get(request: Request, tenant_id: str) -> Response:
        only_admin(request)
        return Json(shapes.tenant(await s.tenants.get(tenant_id)))

    @r.patch("/tenants/{tenant_id}", response_model=answers.Tenant)
    async def patch(request: Request, tenant_id: str, body: bodies.PatchTenant) -> Response:
        only_admin(request)
        quotas = body.quotas.model_dump(exclude_unset=True)
        isolation = body.isolation if "isolation" in body.model_fields_set else UNSET
        return Json(shapes.tenant(await s.tenants.set(tenant_id, body.name, quotas, isolation)))

    @r.delete("/tenants/{tenant_id}", status_code=204, response_class=Response)
    async def delete(request: Request, tenant_id: str) -> Response:
        only_admin(request)
        await s.tenants.delete(tenant_id)
        return Response(status_code=204)

    @r.get("/quotas", response_model=answers.Tenant)
    async def quotas(request: Request) -> Response:
        """The caller's own."""
        return Json(shapes.tenant(await s.tenants.get(tenant(request))))

    return r
