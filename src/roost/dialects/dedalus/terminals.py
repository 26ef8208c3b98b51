"""Terminals, and their two conversations: JSON for a client that sends its key with the upgrade, bytes for whoever opens
``stream_url``."""

from __future__ import annotations

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from roost.api.v1 import sockets
from roost.dialects.dedalus import asked, shapes
from roost.dialects.dedalus.tickets import Tickets
from roost.dialects.serving import Json, Services, body, caller, principal, tenant
from roost.errors import ConflictError
from roost.services.terminals import OpenTerminal, Terminal

BELOW = "/dedalus"


class Terminals:
    def __init__(self, services: Services, tickets: Tickets) -> None:
        self._s = services
        self._tickets = tickets

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
            await sockets.terminal(ws, viewer, binary="ticket" in ws.query_params)
        finally:
            await viewer.close()

    def _shape(self, request: Request, found: Terminal) -> shapes.Object:
        host = request.headers.get("host") or "localhost"
        said = request.headers.get("x-forwarded-proto")
        secure = said == "https" or request.url.scheme == "https"
        query = self._tickets.query(principal(request), found.machine_id, found.id)
        path = f"{BELOW}/v1/machines/{found.machine_id}/terminals/{found.id}/stream"
        return shapes.terminal(found, f"{'wss' if secure else 'ws'}://{host}{path}?{query}")


def _machine(connection: HTTPConnection) -> str:
    return str(connection.path_params["machine_id"])


def _which(connection: HTTPConnection) -> tuple[str, str]:
    return _machine(connection), str(connection.path_params["terminal_id"])
