"""Snapshots: sandboxes at one instant, with their memory where their rung keeps it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from roost.api.v1.services import Services, tenant
from roost.dialects.pandastack import shapes
from roost.dialects.pandastack.sandboxes import present
from roost.gateway.respond import Json


class Snapshots:
    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/v1/sandboxes/{id}/snapshots", self.create, methods=["POST"]),
            Route("/v1/sandboxes/{id}/snapshots", self.list, methods=["GET"]),
            Route("/v1/snapshots", self.list, methods=["GET"]),
            Route("/v1/snapshots/{snapshot}", self.get, methods=["GET"]),
            Route("/v1/snapshots/{snapshot}", self.delete, methods=["DELETE"]),
        ]

    async def create(self, request: Request) -> Response:
        machine = await present(self._s, request)
        made = await self._s.snapshots.create(tenant(request), machine.id)
        return Json(shapes.snapshot(made), 201)

    async def list(self, request: Request) -> Response:
        """All of them, newest first."""
        of = request.path_params.get("id") or request.query_params.get("sandbox_id")
        found = []
        cursor: str | None = None
        while True:
            page = await self._s.snapshots.list(tenant(request), of, 500, cursor)
            found += [shapes.snapshot(each) for each in page.items]
            cursor = page.next_cursor
            if cursor is None:
                return Json({"snapshots": found})

    async def get(self, request: Request) -> Response:
        named = request.path_params["snapshot"]
        return Json(shapes.snapshot(await self._s.snapshots.get(tenant(request), named)))

    async def delete(self, request: Request) -> Response:
        await self._s.snapshots.delete(tenant(request), request.path_params["snapshot"])
        return Response(status_code=204)
