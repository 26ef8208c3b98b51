"""Terminals, and their two conversations: JSON here, for a client that sends its key with the upgrade; bytes for whoever
opens ``stream_url``, which is the native API's own, with a ticket."""

from __future__ import annotations

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from roost.api.v1 import sockets
from roost.api.v1.terminals import stream_url
from roost.dialects.dedalus import asked, shapes
from roost.dialects.serving import Json, Services, body, caller, principal, tenant
from roost.errors import ConflictError
from roost.services.terminals import OpenTerminal, Terminal


class Terminals:
    def __init__(self, services: Services) -> None:
        self._s = services

    async def create(self, request: Request) -> Response:
        said = await body(request, asked.CreateTerminal)
        spec = OpenTerminal(
            width=said.width,
            height=said.height,
            command=None if said.shell is None else [said.shell],
            cwd=said.cwd,
            env=said.env,
        )
        found = await self._s.terminals.open(tenant(request), _machine(request), spec)
        return Json(self._shape(request, found))

    async def list(self, request: Request) -> Response:
        """All of them, whatever is asked: a machine has few."""
        asked.page(request)
        found = await self._s.terminals.list(tenant(request), _machine(request))
        return Json(shapes.page([self._shape(request, each) for each in found]))

    async def retrieve(self, request: Request) -> Response:
        found = await self._s.terminals.get(tenant(request), *_which(request))
        return Json(self._shape(request, found))

    async def delete(self, request: Request) -> Response:
        found = await self._s.terminals.get(tenant(request), *_which(request))
        await self._s.terminals.close(tenant(request), *_which(request))
        shown = {**self._shape(request, found), "status": "closed"}
        shown.pop("stream_url", None)
        return Json(shown)

    async def stream(self, ws: WebSocket) -> None:
        machine_id, terminal_id = _which(ws)
        found = await self._s.terminals.get(tenant(ws), machine_id, terminal_id)
        if not found.alive:
            raise ConflictError("The terminal has closed: create another one.")
        viewer = await self._s.terminals.attach(tenant(ws), machine_id, terminal_id)
        try:
            await ws.accept(caller(ws).subprotocol)
            await sockets.terminal(ws, viewer, binary=False)
        finally:
            await viewer.close()

    def _shape(self, request: Request, found: Terminal) -> shapes.Object:
        ticket = self._s.tickets.make(principal(request), found.machine_id, found.id)
        return shapes.terminal(found, f"{stream_url(request, found)}?binary=true&{ticket.query}")


def _machine(connection: HTTPConnection) -> str:
    return str(connection.path_params["machine_id"])


def _which(connection: HTTPConnection) -> tuple[str, str]:
    return _machine(connection), str(connection.path_params["terminal_id"])
