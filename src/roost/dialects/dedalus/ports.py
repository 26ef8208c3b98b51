"""Ports that are shown outside; the older client calls them previews, and the calls are the same."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from roost.dialects.dedalus import asked, shapes
from roost.dialects.serving import Json, Services, body, tenant
from roost.errors import UnsupportedError, error
from roost.services.models import Port


class Ports:
    """``noun``: port or preview."""

    def __init__(self, services: Services, noun: str) -> None:
        self._s = services
        self._id = f"{noun}_id"

    async def create(self, request: Request) -> Response:
        """``org`` is what a private port is here: whoever has a key of the tenant may open it."""
        said = await body(request, asked.CreatePort)
        if said.protocol == "https":
            raise UnsupportedError(
                "Servers in machines are reached by plain HTTP here: show the port with protocol http."
            )
        made = await self._s.ports.create(
            tenant(request),
            _machine(request),
            said.port,
            visibility="public" if said.visibility == "public" else "private",
        )
        return Json(self._shape(made))

    async def list(self, request: Request) -> Response:
        asked.page(request)
        found = await self._s.ports.list(tenant(request), _machine(request))
        return Json(shapes.page([self._shape(each) for each in found]))

    async def retrieve(self, request: Request) -> Response:
        return Json(self._shape(await self._find(request)))

    async def delete(self, request: Request) -> Response:
        found = await self._find(request)
        await self._s.ports.delete(tenant(request), found.machine_id, found.port)
        return Json(self._shape(found, "closed"))

    async def _find(self, request: Request) -> Port:
        """Raises PORT_NOT_FOUND."""
        which = str(request.path_params[self._id])
        for each in await self._s.ports.list(tenant(request), _machine(request)):
            if each.id == which:
                return each
        raise error("PORT_NOT_FOUND", "This machine shows no such port outside.")

    def _shape(self, port: Port, status: str = "ready") -> shapes.Object:
        return shapes.port(port, self._s.ports.url(port), self._id, status)


def _machine(request: Request) -> str:
    return str(request.path_params["machine_id"])
