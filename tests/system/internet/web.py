"""What every web server of the tests' internet does, the metadata service too.

/redirect?to=URL     302 there
/zeros?bytes=N       so many zeros
/slow?seconds=N      a line every 50 ms for so long
/upload              counts what is sent
/dns-query           DNS over HTTPS
WebSocket            says again what it is told
anything else        the request as JSON: server, host, method, path, headers, client
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from tests.system.internet.record import Record
from tests.system.internet.resolver import Resolver

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_CHUNK = bytes(256 * 1024)
_MOST = 1 << 20


class Web:
    """An ASGI application."""

    def __init__(self, record: Record, resolver: Resolver) -> None:
        self._record = record
        self._resolver = resolver

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        address, port = scope["server"]
        headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in scope["headers"]]
        host = dict(headers).get("host", "")
        kind = "ws" if scope["type"] == "websocket" else "http"
        self._record.add(
            kind,
            address,
            port,
            host,
            method=scope.get("method", ""),
            path=scope["path"],
            headers=headers,
            scheme=scope["scheme"],
        )
        if kind == "ws":
            await self._talk(receive, send)
            return
        query = {k: v[0] for k, v in parse_qs(scope["query_string"].decode()).items()}
        match scope["path"]:
            case "/redirect":
                await _reply(send, 302, b"", [(b"location", query["to"].encode())])
            case "/zeros":
                await self._zeros(int(query["bytes"]), send)
            case "/slow":
                await self._slow(float(query["seconds"]), receive, send)
                self._record.add("gone", address, port, host)
            case "/upload":
                size = 0
                while True:
                    message = await receive()
                    size += len(message.get("body", b""))
                    self._record.add("upload", address, port, host, bytes=size)
                    if message["type"] == "http.disconnect":
                        return
                    if not message.get("more_body"):
                        break
                await _reply(send, 200, str(size).encode())
            case "/dns-query":
                wire = await _body(receive)
                if "dns" in query:
                    wire = base64.urlsafe_b64decode(query["dns"] + "==")
                answer = await self._resolver.answer(wire, (address, port), "https")
                await _reply(
                    send,
                    200 if answer else 400,
                    answer or b"",
                    [(b"content-type", b"application/dns-message")],
                )
            case _:
                await _body(receive)
                said = {
                    "server": address,
                    "port": port,
                    "scheme": scope["scheme"],
                    "host": host,
                    "method": scope["method"],
                    "path": scope["path"],
                    "query": scope["query_string"].decode(),
                    "headers": headers,
                    "client": scope["client"][0],
                }
                await _reply(
                    send,
                    200,
                    json.dumps(said).encode(),
                    [(b"content-type", b"application/json")],
                )

    async def _zeros(self, size: int, send: Send) -> None:
        length = (b"content-length", str(size).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        while size > 0:
            chunk = _CHUNK if size >= len(_CHUNK) else bytes(size)
            size -= len(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": size > 0})

    async def _slow(self, seconds: float, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        end = time.monotonic() + seconds
        gone = asyncio.ensure_future(_gone(receive))
        while time.monotonic() < end and not gone.done():
            await send({"type": "http.response.body", "body": b"still here\n", "more_body": True})
            await asyncio.wait({gone}, timeout=0.05)
        gone.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _talk(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            match message["type"]:
                case "websocket.connect":
                    await send({"type": "websocket.accept"})
                case "websocket.receive":
                    text, data = message.get("text"), message.get("bytes")
                    said = {"text": text} if text is not None else {"bytes": data}
                    await send({"type": "websocket.send", **said})
                case _:
                    return


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(receive: Receive) -> bytes:
    body = b""
    while len(body) < _MOST:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    return body


async def _reply(
    send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send(
        {"type": "http.response.start", "status": status, "headers": [length, *(headers or [])]}
    )
    await send({"type": "http.response.body", "body": body})
