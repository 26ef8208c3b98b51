"""A daemon of a few lines on a real socket: routes answer JSON, bytes, or events piece by piece."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

BREAK = object()  # yielded by a streaming route: the connection is cut here


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    match: re.Match[str]

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"null")


@dataclass
class Answer:
    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


Route = Callable[[Request], Any]


class Stub:
    """``stub.on("GET", "/v1/machines", lambda request: {...})``; ``stub.seen`` is what was asked."""

    def __init__(self) -> None:
        self.routes: list[tuple[str, re.Pattern[str], Route]] = []
        self.seen: list[Request] = []
        self.drop_next = 0  # so many requests are read and then cut off without an answer
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def handle_any(self) -> None:
                stub._handle(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

        class Server(ThreadingHTTPServer):
            def handle_error(self, *args: Any) -> None:
                pass  # a client that went away; what matters is asserted by the test

        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def on(self, method: str, path: str, route: Route) -> None:
        self.routes.insert(0, (method, re.compile(path + r"\Z"), route))

    def asked(self, method: str, path: str) -> list[Request]:
        return [r for r in self.seen if r.method == method and re.fullmatch(path, r.path)]

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        body = _body(handler)
        found = None
        for method, pattern, route in self.routes:
            match = pattern.match(parts.path)
            if method == handler.command and match:
                found = route, match
                break
        if found is None:
            _reply(handler, Answer(wire("NOT_FOUND", "no such route"), 404))
            return
        request = Request(
            handler.command,
            parts.path,
            dict(parse_qsl(parts.query)),
            {k.lower(): v for k, v in handler.headers.items()},
            body,
            found[1],
        )
        self.seen.append(request)
        if self.drop_next:
            self.drop_next -= 1
            handler.close_connection = True
            handler.connection.close()
            return
        with contextlib.suppress(ConnectionError):
            _reply(handler, found[0](request))


def wire(code: str, message: str = "no", **details: Any) -> dict[str, Any]:
    return {"error_code": code, "message": message, "retryable": False, "details": details}


def sse(name: str, data: Any, id: str | None = None) -> bytes:
    head = f"id: {id}\n" if id else ""
    return f"{head}event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def _body(handler: BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Transfer-Encoding", "") == "chunked":
        parts = []
        while size := int(handler.rfile.readline().strip() or b"0", 16):
            parts.append(handler.rfile.read(size))
            handler.rfile.readline()
        handler.rfile.readline()
        return b"".join(parts)
    return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))


def _reply(handler: BaseHTTPRequestHandler, result: Any) -> None:
    answer = result if isinstance(result, Answer) else Answer(result)
    if isinstance(answer.body, Iterator):
        handler.send_response(answer.status)
        handler.send_header("Transfer-Encoding", "chunked")
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        for piece in answer.body:
            if piece is BREAK:
                handler.close_connection = True
                handler.connection.close()
                return
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            handler.wfile.flush()
        handler.wfile.write(b"0\r\n\r\n")
        return
    body = (
        answer.body
        if isinstance(answer.body, bytes)
        else b""
        if answer.body is None
        else json.dumps(answer.body).encode()
    )
    handler.send_response(answer.status)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in answer.headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


MACHINE_ID = "m" * 26
EXECUTION_ID = "e" * 26


def machine(**changes: Any) -> dict[str, Any]:
    return {
        "machine_id": MACHINE_ID,
        "key": "user-42",
        "name": None,
        "labels": {},
        "template": "base",
        "image_digest": "sha256:0",
        "vcpu": 1,
        "memory_mib": 1024,
        "storage_gib": 10,
        "env": {},
        "autosleep_seconds": 300,
        "ttl_seconds": None,
        "expires_at": None,
        "desired_state": "running",
        "phase": "running",
        "status": {"phase": "running", "reason": None, "revision": 3},
        "isolation": {
            "level": 2,
            "name": "container",
            "driver": "gvisor",
            "boundary": "gVisor's kernel",
            "accelerated": None,
            "claim": "sandboxed by gVisor",
        },
        "node_id": "n",
        "created_at": "2026-11-21T01:00:00.000Z",
        **changes,
    }


def execution(**changes: Any) -> dict[str, Any]:
    return {
        "execution_id": EXECUTION_ID,
        "machine_id": MACHINE_ID,
        "command": "true",
        "cwd": "/root",
        "user": "root",
        "status": "succeeded",
        "exit_code": 0,
        "signal": None,
        "reason": None,
        "timeout_ms": None,
        "stdout_bytes": 0,
        "stderr_bytes": 0,
        "stdout_truncated": False,
        "stderr_truncated": False,
        "duration_ms": 3,
        "created_at": "2026-11-21T01:00:00.000Z",
        "started_at": "2026-11-21T01:00:00.000Z",
        "ended_at": "2026-11-21T01:00:00.003Z",
        **changes,
    }
