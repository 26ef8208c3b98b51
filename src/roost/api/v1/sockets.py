"""The two WebSocket conversations: with an execution and with a terminal.

Each has two tasks, one a direction; the end of either ends both. A client that does not read is felt by the
process (execution) or dropped by the agent (terminal); nothing piles up here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

from fastapi import WebSocket

from roost.api.v1 import shapes
from roost.api.v1.parse import decode_b64, invalid, signal_number
from roost.api.v1.services import caller
from roost.errors import RoostError
from roost.gateway import access
from roost.gateway.respond import dumps
from roost.services.executions import Event, Executions
from roost.services.terminals import Viewer

NORMAL, UNSUPPORTED, FAILED, TRY_AGAIN = 1000, 1003, 1011, 1013


async def execution(
    ws: WebSocket,
    executions: Executions,
    tenant: str,
    machine_id: str,
    execution_id: str,
    events: AsyncGenerator[Event, None],
) -> None:
    async def out() -> None:
        async for each in events:
            name, data = shapes.stream_event(each)
            if name == "exit":
                message: dict[str, Any] = {"type": "exit", "execution": data}
            else:
                if "data_b64" in data:
                    data["data"] = data.pop("data_b64")
                message = {"type": name, **data}
            await _send(ws, message)

    async def into() -> None:
        while (message := await _receive(ws)) is not None:
            try:
                match message.get("type"):
                    case "stdin":
                        data = decode_b64("data", _text(message, "data"))
                        await executions.write_stdin(tenant, machine_id, execution_id, _one(data))
                    case "stdin_eof":
                        await executions.write_stdin(
                            tenant, machine_id, execution_id, _one(b""), eof=True
                        )
                    case "signal":
                        number = message.get("signal")
                        if not isinstance(number, int | str) or isinstance(number, bool):
                            raise invalid("signal", "a number or a name")
                        await executions.signal(
                            tenant, machine_id, execution_id, signal_number(number)
                        )
                    case _:
                        raise invalid("type", "stdin, stdin_eof or signal")
            except RoostError as failure:
                await _send(ws, _error(ws, failure))

    await _talk(ws, out(), into())


async def terminal(ws: WebSocket, viewer: Viewer, binary: bool) -> None:
    async def out() -> None:
        while (frame := await viewer.read()) is not None:
            if frame.dropped and not binary:
                await _send(ws, {"type": "dropped", "bytes": frame.dropped})
            if frame.data:
                if binary:
                    await ws.send({"type": "websocket.send", "bytes": frame.data})
                else:
                    message: dict[str, Any] = {"type": "output", "data": shapes.b64(frame.data)}
                    if frame.scrollback:
                        message["scrollback"] = True
                    await _send(ws, message)
            if frame.HasField("closed"):
                closed = frame.closed
                code = closed.exit_code if closed.HasField("exit_code") else None
                if not binary:
                    await _send(ws, {"type": "closed", "exit_code": code})
                return

    async def into() -> None:
        while True:
            frame = await ws.receive()
            if frame["type"] == "websocket.disconnect":
                return
            data = frame.get("bytes")
            if data is not None:
                await viewer.send(data)
                continue
            try:
                message = parse(frame.get("text") or "")
                if binary or message.get("type") == "resize":
                    await viewer.resize(
                        _number(message, "cols" if binary else "width"),
                        _number(message, "rows" if binary else "height"),
                    )
                elif message.get("type") == "input":
                    await viewer.send(decode_b64("data", _text(message, "data")))
                else:
                    raise invalid("type", "input or resize")
            except RoostError as failure:
                if not binary:
                    await _send(ws, _error(ws, failure))

    await _talk(ws, out(), into())


async def _talk(
    ws: WebSocket, out: Coroutine[Any, Any, None], into: Coroutine[Any, Any, None]
) -> None:
    """Until what comes out has ended (then the socket is closed) or the client has gone."""
    loop = asyncio.get_running_loop()
    speaking, hearing = loop.create_task(out), loop.create_task(into)
    try:
        await asyncio.wait({speaking, hearing}, return_when=asyncio.FIRST_COMPLETED)
        if not speaking.done():
            return
        try:
            speaking.result()
        except RoostError as failure:
            await end(ws, failure)
        else:
            await end(ws)
    finally:
        for task in (speaking, hearing):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def end(ws: WebSocket, failure: RoostError | None = None) -> None:
    """Closes it; what went wrong is said first."""
    code, reason = NORMAL, ""
    if failure is not None:
        code, reason = TRY_AGAIN if failure.retryable else FAILED, failure.code
        with contextlib.suppress(Exception):
            await _send(ws, _error(ws, failure))
    with contextlib.suppress(RuntimeError):
        await ws.send({"type": "websocket.close", "code": code, "reason": reason})


async def _one(data: bytes) -> AsyncGenerator[bytes, None]:
    if data:
        yield data


async def _send(ws: WebSocket, message: dict[str, Any]) -> None:
    await ws.send({"type": "websocket.send", "text": dumps(message).decode()})


async def _receive(ws: WebSocket) -> dict[str, Any] | None:
    """The next message that is one; None when the client has gone."""
    while True:
        frame = await ws.receive()
        if frame["type"] == "websocket.disconnect":
            return None
        try:
            return parse(frame.get("text") or "")
        except RoostError as failure:
            await _send(ws, _error(ws, failure))


def parse(text: str) -> dict[str, Any]:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise invalid("message", "a JSON object", "INVALID_BODY")
    return message


def _text(message: dict[str, Any], name: str) -> str:
    value = message.get(name)
    if not isinstance(value, str):
        raise invalid(name, "text")
    return value


def _number(message: dict[str, Any], name: str) -> int:
    value = message.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise invalid(name, "a whole number")
    return value


def _error(ws: WebSocket, failure: RoostError) -> dict[str, Any]:
    failure = access.told(failure, caller(ws).principal)
    return {"type": "error", "error_code": failure.code, "error_message": failure.message}
