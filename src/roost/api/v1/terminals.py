"""Terminals over HTTP and WebSocket."""

from __future__ import annotations

from fastapi import APIRouter, Request, WebSocket
from starlette.requests import HTTPConnection
from starlette.responses import Response

from roost.api.v1 import answers, bodies, routes, shapes, sockets
from roost.api.v1.keys import SECRET
from roost.api.v1.parse import invalid
from roost.api.v1.services import Services, caller, principal, tenant
from roost.gateway.respond import Json
from roost.services.terminals import OpenTerminal, Terminal
from roost.services.tickets import TICKET_S


class TerminalList(answers.Answer):
    items: list[answers.Terminal]
    next_cursor: None


def router(s: Services) -> APIRouter:
    r = routes.router("/v1/machines/{machine_id}/terminals", "terminals")

    @r.post("", status_code=201, response_model=answers.Terminal)
    async def open_(request: Request, machine_id: str, body: bodies.OpenTerminal) -> Response:
        if body.command is not None and body.shell is not None:
            raise invalid("shell", "either command or shell")
        spec = OpenTerminal(
            width=body.width,
            height=body.height,
            command=[body.shell] if body.shell is not None else body.command,
            cwd=body.cwd,
            env=body.env,
            user=body.user,
            term=body.term,
        )
        found = await s.terminals.open(tenant(request), machine_id, spec)
        return Json(_shape(request, found), 201)

    @r.get("", response_model=TerminalList)
    async def list_(request: Request, machine_id: str) -> Response:
        found = await s.terminals.list(tenant(request), machine_id)
        return Json({"items": [_shape(request, each) for each in found], "next_cursor": None})

    @r.get("/{terminal_id}", response_model=answers.Terminal)
    async def get(request: Request, machine_id: str, terminal_id: str) -> Response:
        found = await s.terminals.get(tenant(request), machine_id, terminal_id)
        return Json(_shape(request, found))

    @r.patch("/{terminal_id}", response_model=answers.Terminal)
    async def resize(
        request: Request, machine_id: str, terminal_id: str, body: bodies.ResizeTerminal
    ) -> Response:
        found = await s.terminals.resize(
            tenant(request), machine_id, terminal_id, body.width, body.height
        )
        return Json(_shape(request, found))

    @r.delete("/{terminal_id}", status_code=204, response_class=Response)
    async def close(request: Request, machine_id: str, terminal_id: str) -> Response:
        await s.terminals.close(tenant(request), machine_id, terminal_id)
        return Response(status_code=204)

    @r.post("/{terminal_id}/links", status_code=201, response_model=answers.Link)
    async def link(
        request: Request,
        machine_id: str,
        terminal_id: str,
        body: bodies.CreateTerminalLink | None = None,
    ) -> Response:
        """A URL of a WebSocket (bytes both ways, as with ``binary``) that opens the terminal for whoever has it."""
        found = await s.terminals.get(tenant(request), machine_id, terminal_id)
        ttl = TICKET_S if body is None else body.ttl_seconds
        ticket = s.tickets.make(principal(request), machine_id, found.id, ttl)
        url = f"{stream_url(request, found)}?binary=true&{ticket.query}"
        return Json({"url": url, "expires_at": shapes.time(ticket.expires_at)}, 201, SECRET)

    @r.websocket("/{terminal_id}/stream")
    async def socket(
        ws: WebSocket, machine_id: str, terminal_id: str, binary: bool = False
    ) -> None:
        viewer = await s.terminals.attach(tenant(ws), machine_id, terminal_id)
        try:
            await ws.accept(caller(ws).subprotocol)
            await sockets.terminal(ws, viewer, binary)
        finally:
            await viewer.close()

    return r


def _shape(connection: HTTPConnection, found: Terminal) -> shapes.Object:
    return shapes.terminal(found, stream_url(connection, found))


def stream_url(connection: HTTPConnection, found: Terminal) -> str:
    """As whoever asks reaches it."""
    host = connection.headers.get("host") or "localhost"
    said = connection.headers.get("x-forwarded-proto")
    secure = said == "https" or connection.url.scheme in ("https", "wss")
    base = f"{'wss' if secure else 'ws'}://{host}/v1/machines/{found.machine_id}"
    return f"{base}/terminals/{found.id}/stream"
