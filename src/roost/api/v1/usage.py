"""Usage over HTTP."""

from __future__ import annotations

from datetime import date
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from roost.api.v1 import answers, routes, shapes
from roost.api.v1.services import Services, caller, tenant
from roost.errors import ForbiddenError
from roost.gateway.respond import Json
from roost.services.models import Role

From = Annotated[date | None, Query(alias="from", description="First day (UTC); 29 before `to`.")]
To = Annotated[date | None, Query(description="Last day (UTC), included; today.")]
GroupBy = Annotated[
    list[str] | None, Query(description="Of day, machine, key; repeat, or commas between. day.")
]
Tenant = Annotated[
    str | None, Query(max_length=40, description="Another tenant's: the admin may ask.")
]


def router(s: Services) -> APIRouter:
    r = routes.router("/v1", "usage")

    @r.get("/usage", response_model=answers.UsageReport)
    async def usage(
        request: Request,
        first: From = None,
        to: To = None,
        group_by: GroupBy = None,
        of: Annotated[Tenant, Query(alias="tenant")] = None,
    ) -> Response:
        groups = ["day"]
        if group_by is not None:
            groups = [name for each in group_by for name in each.split(",") if name]
        found = await s.usage.report(_whose(request, of), first, to, groups)
        return Json(shapes.usage_report(found))

    return r


def _whose(request: Request, asked: str | None) -> str:
    """Raises FORBIDDEN, whether or not there is such a tenant."""
    own = tenant(request)
    if asked is None or asked == own:
        return own
    if not _is_admin(request):
        raise ForbiddenError("Only the admin may ask for another tenant's usage: leave out tenant.")
    return asked


def _is_admin(request: Request) -> bool:
    principal = caller(request).principal
    return principal is not None and principal.role is Role.ADMIN
