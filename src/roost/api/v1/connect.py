"""A TCP connection into a machine as a WebSocket: for ``roost port-forward`` and whatever speaks no HTTP.

Binary frames are the bytes, whole or in pieces, each way. The text frame ``{"type": "eof"}`` closes the sender's
half; the socket is closed (1000) once both halves are. A side that does not read holds the other back: the daemon takes
the next frame only when the machine has taken the last one, and the machine's bytes only when the client has.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated, Any

from fastapi import APIRouter, Path, WebSocket

from roost.api.v1 import routes, sockets
from roost.api.v1.services import Services, caller, tenant
from roost.errors import RoostError
from roost.gateway.respond import dumps
from roost.services.doors import Stream

FRAME = 256 * 1024
EOF = dumps({"type": "eof"}).decode()


def router(s: Services) -> APIRouter:
    r = routes.router("/v1/machines/{machine_id}/ports", "ports")

    @r.websocket("/{port}/connect")
    async def connect(
        ws: WebSocket, machine_id: str, port: Annotated[int, Path(ge=1, le=65535)]
    ) -> None:
        stream = await s.doors.open(tenant(ws), machine_id, port)
        try:
            await ws.accept(caller(ws).subprotocol)
            await carry(ws, stream)
        finally:
            stream.close()

    return r


async def carry(ws: WebSocket, stream: Stream) -> None:
    """Until both halves have ended, one side broke or the client went."""

    async def out() -> None:
        while data := await stream.read():
            for at in range(0, len(data), FRAME):
                await ws.send({"type": "websocket.send", "bytes": data[at : at + FRAME]})
        await ws.send({"type": "websocket.send", "text": EOF})

    async def into() -> bool:
        """Whether the client ended its half, rather than went."""
        while True:
            frame = await ws.receive()
            if frame["type"] == "websocket.disconnect":
                return False
            if (data := frame.get("bytes")) is not None:
                await stream.write(data)
            elif sockets.parse(frame.get("text") or "").get("type") == "eof":
                await stream.write_eof()
                return True

    loop = asyncio.get_running_loop()
    speaking, hearing = loop.create_task(out()), loop.create_task(into())
    tasks: set[asyncio.Task[Any]] = {speaking, hearing}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if speaking.done() and not speaking.exception():
            await asyncio.wait({hearing})
        elif hearing.done() and not hearing.exception() and hearing.result():
            # Its half is over; the machine's may go on for long, and the client may still go.
            tasks.add(gone := loop.create_task(_gone(ws)))
            await asyncio.wait({speaking, gone}, return_when=asyncio.FIRST_COMPLETED)
        failures = [f for t in tasks if t.done() and isinstance(f := t.exception(), RoostError)]
        await sockets.end(ws, failures[0] if failures else None)
    finally:
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _gone(ws: WebSocket) -> None:
    while (await ws.receive())["type"] != "websocket.disconnect":
        pass
