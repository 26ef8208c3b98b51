"""Interactive shells: ``/exec/pty`` and ``/ssh``, which are the same.

Binary frames are keystrokes and output. Text from the client resizes (``{"resize": {"rows", "cols"}}`` or
``{"type": "resize", "rows", "cols"}``) or types (``{"stdin": "text"}``); text to it ends: ``{"exit": code}`` or ``{"error": "text"}``. The shell ends with its
connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from typing import Any

from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket

from roost.api.v1.services import Services, caller, tenant
from roost.dialects.pandastack import errors
from roost.errors import InvalidRequestError, RoostError
from roost.gateway import access
from roost.gateway.respond import dumps
from roost.services.terminals import OpenTerminal, Viewer

ROWS, COLS = 24, 80
_NORMAL, _FAILED = 1000, 1011


class Terminals:
    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[BaseRoute]:
        at = "/v1/sandboxes/{id}"
        return [
            WebSocketRoute(f"{at}/exec/pty", self.shell),
            WebSocketRoute(f"{at}/ssh", self.shell),
        ]

    async def shell(self, ws: WebSocket) -> None:
        who, machine_id = tenant(ws), ws.path_params["id"]
        command = ws.query_params.get("cmd")
        spec = OpenTerminal(
            width=_side(ws.query_params.get("cols"), COLS),
            height=_side(ws.query_params.get("rows"), ROWS),
            command=["/bin/sh", "-c", command] if command else None,
            term="xterm-256color",
        )
        opened = await self._s.terminals.open(who, machine_id, spec)
        try:
            viewer = await self._s.terminals.attach(who, machine_id, opened.id)
            try:
                await ws.accept(caller(ws).subprotocol)
                await _talk(ws, viewer)
            finally:
                await viewer.close()
        finally:
            with contextlib.suppress(RoostError):
                await asyncio.shield(self._s.terminals.close(who, machine_id, opened.id))


async def _talk(ws: WebSocket, viewer: Viewer) -> None:
    loop = asyncio.get_running_loop()
    speaking, hearing = loop.create_task(_out(ws, viewer)), loop.create_task(_into(ws, viewer))
    try:
        await asyncio.wait({speaking, hearing}, return_when=asyncio.FIRST_COMPLETED)
        ended, code = (speaking if speaking.done() else hearing), _NORMAL
        try:
            ended.result()
        except RoostError as failure:
            told = access.told(failure, caller(ws).principal)
            code = _FAILED
            with contextlib.suppress(Exception):
                await _send(ws, {"error": errors.text(told)})
        if ended is speaking or code == _FAILED:
            with contextlib.suppress(RuntimeError):
                await ws.send({"type": "websocket.close", "code": code, "reason": ""})
    finally:
        for task in (speaking, hearing):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _out(ws: WebSocket, viewer: Viewer) -> None:
    while (frame := await viewer.read()) is not None:
        if frame.data:
            await ws.send({"type": "websocket.send", "bytes": frame.data})
        if frame.HasField("closed"):
            closed = frame.closed
            await _send(ws, {"exit": closed.exit_code if closed.HasField("exit_code") else 0})
            return


async def _into(ws: WebSocket, viewer: Viewer) -> None:
    while True:
        frame = await ws.receive()
        if frame["type"] == "websocket.disconnect":
            return
        if (data := frame.get("bytes")) is not None:
            await viewer.send(data)
            continue
        said = control(frame.get("text") or "")
        if isinstance(typed := said.get("stdin"), str):
            await viewer.send(typed.encode(errors="replace"))
        if (size := resize(said)) is None:
            continue
        with contextlib.suppress(InvalidRequestError):  # a window of no size, which will have one
            await viewer.resize(*size)


def control(text: str) -> dict[str, Any]:
    """What is none is passed over."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def resize(said: Mapping[str, Any]) -> tuple[int, int] | None:
    """(columns, rows), in either form."""
    size = said.get("resize", said if said.get("type") == "resize" else None)
    if not isinstance(size, dict):
        return None
    cols, rows = size.get("cols"), size.get("rows")
    if isinstance(cols, int) and isinstance(rows, int):
        return cols, rows
    return None


def _side(text: str | None, default: int) -> int:
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 6):
        raise InvalidRequestError("rows and cols: whole numbers.", details={"field": "rows"})
    return int(text) or default


async def _send(ws: WebSocket, message: dict[str, Any]) -> None:
    await ws.send({"type": "websocket.send", "text": dumps(message).decode()})
