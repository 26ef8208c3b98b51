"""Volumes: disks of their own, which a sandbox has under ``/mnt/{name}``. Their sizes are whole GiB."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from roost.api.v1.services import Services, key_id, tenant
from roost.dialects import serving
from roost.dialects.pandastack import bodies, shapes
from roost.gateway.respond import Json
from roost.services.models import Attach

_GIB = 1024


class Volumes:
    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/v1/volumes", self.list, methods=["GET"]),
            Route("/v1/volumes", self.create, methods=["POST"]),
            Route("/v1/volumes/{name}", self.get, methods=["GET"]),
            Route("/v1/volumes/{name}", self.delete, methods=["DELETE"]),
        ]

    async def create(self, request: Request) -> Response:
        asked = await serving.body(request, bodies.Volume)
        gib = -(-asked.size_mb // _GIB)
        made = await self._s.volumes.create(tenant(request), asked.name, gib, key_id(request))
        return Json(shapes.volume(made), 201)

    async def list(self, request: Request) -> Response:
        found = []
        cursor: str | None = None
        while True:
            page = await self._s.volumes.list(tenant(request), 500, cursor)
            found += [shapes.volume(each) for each in page.items]
            cursor = page.next_cursor
            if cursor is None:
                return Json(found)

    async def get(self, request: Request) -> Response:
        found = await self._s.volumes.get(tenant(request), request.path_params["name"])
        return Json(shapes.volume(found))

    async def delete(self, request: Request) -> Response:
        await self._s.volumes.delete(tenant(request), request.path_params["name"])
        return Response(status_code=204)


def attached(asked: Sequence[bodies.Mount] | None) -> tuple[Attach, ...]:
    """What a sandbox is made with."""
    return tuple(
        Attach(each.name, each.mount or f"/mnt/{each.name}", bool(each.read_only))
        for each in asked or ()
    )
