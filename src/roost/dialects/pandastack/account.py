"""Who asks, and the keys of their tenant."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from roost.api.v1.services import Services, principal
from roost.dialects import serving
from roost.dialects.pandastack import bodies, shapes
from roost.gateway.respond import Json


class Account:
    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/v1/me", self.me, methods=["GET"]),
            Route("/v1/me/tokens", self.tokens, methods=["GET"]),
            Route("/v1/me/tokens", self.create, methods=["POST"]),
            Route("/v1/me/tokens/{prefix}", self.revoke, methods=["DELETE"]),
        ]

    async def me(self, request: Request) -> Response:
        who = principal(request)
        return Json(
            {
                "id": who.tenant,
                "workspace": who.tenant,
                "role": who.role.value,
                "token_prefix": who.key_id,
            }
        )

    async def tokens(self, request: Request) -> Response:
        found = await self._s.keys.list(principal(request).tenant)
        return Json([shapes.token(each) for each in found])

    async def create(self, request: Request) -> Response:
        asked = await serving.body(request, bodies.Token, optional=True)
        who = principal(request)
        days = asked.expires_in_days
        until = None if days is None else datetime.now(UTC) + timedelta(days=days)
        name = asked.label or asked.name or "token"
        made = await self._s.keys.create(who.tenant, name, who.role, expires_at=until, by=who.role)
        return Json(shapes.token(made), 201, {"cache-control": "no-store"})

    async def revoke(self, request: Request) -> Response:
        who = principal(request)
        await self._s.keys.revoke(who.tenant, request.path_params["prefix"], who.role)
        return Response(status_code=204)
