"""Snapshots: machines at one instant, which E2B takes for templates."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from roost.dialects.e2b.control import bodies, names
from roost.dialects.e2b.control.sandboxes import LIMIT, Sandboxes, whole
from roost.dialects.serving import Json, Services, body, not_served, tenant
from roost.errors import RoostError
from roost.services.models import Snapshot


class Snapshots:
    def __init__(self, services: Services, sandboxes: Sandboxes) -> None:
        self._s = services
        self._sandboxes = sandboxes

    def routes(self) -> list[Route]:
        return [
            Route("/sandboxes/{machine_id}/snapshots", self.create, methods=["POST"]),
            Route("/snapshots", self.list_, methods=["GET"]),
        ]

    async def create(self, request: Request) -> Response:
        asked = await body(request, bodies.NewSnapshot, optional=True)
        if not asked.memory:
            raise not_served(
                "snapshots of the files alone", "Snapshots keep the memory where their rung can."
            )
        machine = await self._sandboxes.found(request)
        name = None if asked.name is None else names.ours(asked.name).partition(":")[0]
        made = await self._s.snapshots.create(machine.tenant_id, machine.id, name)
        return Json(_shape(made), 201)

    async def list_(self, request: Request) -> Response:
        query, whose = request.query_params, tenant(request)
        limit = whole(query.get("limit"), "limit", LIMIT, 1, 500)
        if query.get("name"):
            found = await self._named(whose, names.ours(query["name"]).partition(":")[0])
            of = query.get("sandboxID")
            return Json([_shape(each) for each in found if of in (None, each.machine_id)])
        page = await self._s.snapshots.list(
            whose, query.get("sandboxID") or None, limit, query.get("nextToken") or None
        )
        headers = {"x-next-token": page.next_cursor} if page.next_cursor else {}
        return Json([_shape(each) for each in page.items], 200, headers)

    async def _named(self, whose: str, name: str) -> list[Snapshot]:
        try:
            return [await self._s.snapshots.get(whose, name)]
        except RoostError as failure:
            if failure.code != "SNAPSHOT_NOT_FOUND":
                raise
            return []


def _shape(found: Snapshot) -> dict[str, Any]:
    called = [] if found.name is None else [f"{found.name}:{names.DEFAULT}"]
    return {"snapshotID": found.id, "names": called}
