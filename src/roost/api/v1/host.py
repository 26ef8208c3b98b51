"""The host over HTTP."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from roost.api.v1 import answers, routes
from roost.api.v1.services import Services, principal, tenant
from roost.gateway.respond import Json
from roost.services.models import Role


def router(s: Services) -> APIRouter:
    r = routes.router("/v1")

    @r.get("/host", tags=["host"], response_model=dict[str, Any])
    async def host(request: Request) -> Response:
        if principal(request).role is Role.ADMIN:
            return Json(await s.host.describe())
        return Json(await s.host.public())

    @r.get("/capabilities", tags=["host"], response_model=answers.Capabilities)
    async def capabilities(request: Request) -> Response:
        """What each rung can on this host, what it defends against and what not, and how that is known."""
        admin = principal(request).role is Role.ADMIN
        return Json(await s.host.capabilities(tenant(request), admin))

    return r
