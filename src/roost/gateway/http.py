"""uvicorn's HTTP/1.1 and WebSocket protocols, bounded: headers, idleness, what is read in vain."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

HEADER_BYTES = 64 * 1024
HEADER_S = 20.0
LINGER_S = 0.5
BODY_BUFFER = 768 * 1024
WRITE_BUFFER = 1024 * 1024
DISCARD_BYTES = 256 * 1024 * 1024  # of a body that came after its answer


class State(ServerState):
    """What connections share. ``released`` is told once of each that ends."""

    def __init__(self, released: Callable[[asyncio.BaseTransport], None]) -> None:
        super().__init__()
        self.released = released
        # Whether a request (its Host, its target) is for a preview, and what such a connection is handed to.
        self.wants: Callable[[bytes, bytes], bool] | None = None
        self.to_preview: Callable[[asyncio.Transport, bytes, bool], None] | None = None


class HttpProtocol(HttpToolsProtocol):
    """A body is taken in megabytes, not in kilobytes: fewer turns of the loop for an upload.

    A request for a preview takes its connection along, with the bytes it came in. One that came in the same breath as
    the request before it is answered 421: what it came in belongs to both.
    """

    server_state: State
    _loris: asyncio.TimerHandle | None = None
    _in_headers = False
    _header_bytes = 0
    _discarded = 0
    _refused = False
    _between = True  # no request has begun that is not over
    _begun = 0  # requests in what is being read
    _came_in: bytes | None = (
        None  # the bytes of the request whose head is being read; None: not all its own
    )
    _elsewhere = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER)

    def connection_lost(self, exc: Exception | None) -> None:
        self._quiet()
        self.server_state.released(self.transport)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.parser is None or self._refused:
            return
        if self._between:
            self._begun, self._came_in = 0, data
        else:
            self._begun = 1
            if self._in_headers and self._came_in is not None:
                self._came_in += data
        super().data_received(data)
        if self._elsewhere:
            self._hand_on()
            return
        if self._in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > HEADER_BYTES:
                self._refuse(431, "PAYLOAD_TOO_LARGE", "The request's headers are above 64 KiB.")
        elif self.timeout_keep_alive_task is None and not self.transport.is_closing():
            cycle = self.cycle
            if cycle is None or (cycle.response_complete and not self.pipeline):
                # Line ends between requests: still idle.
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )

    def on_message_begin(self) -> None:
        if self._elsewhere:
            return
        self._between = False
        self._begun += 1
        if self._begun > 1:
            self._came_in = None
        super().on_message_begin()
        self._in_headers = True
        self._header_bytes = 0
        self._discarded = 0
        self._loris = self.loop.call_later(HEADER_S, self.transport.close)

    def on_headers_complete(self) -> None:
        if self._elsewhere:
            return
        self._in_headers = False
        self._quiet()
        wants = self.server_state.wants
        if wants is not None:
            host = next((value for name, value in self.headers if name == b"host"), b"")
            if wants(host, self.url):
                self._elsewhere = True
                return
        self._came_in = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self._elsewhere:
            self._between = True
            super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        if self._elsewhere:
            return
        if self.parser.should_upgrade() and self._should_upgrade():
            return
        cycle = self.cycle
        if cycle.response_complete:
            self._discarded += len(body)
            if self._discarded > DISCARD_BYTES:
                self.transport.close()
            return
        parts: Any = cycle.body
        if not isinstance(parts, _Parts):  # uvicorn puts an empty bytearray there after each take
            parts = _Parts()
            cycle.body = parts
        parts.add(body)
        if len(parts) > BODY_BUFFER:
            self.flow.pause_reading()
        cycle.message_event.set()

    def _hand_on(self) -> None:
        cycle, came_in = self.cycle, self._came_in
        self._came_in = None
        if cycle is not None and not cycle.response_complete:
            self._refused = True  # the answer before it is still to come, and is then the last
            cycle.keep_alive = False
        elif came_in is None or self.server_state.to_preview is None:
            message = (
                "This request came in one piece with another for another host: send it by itself."
            )
            self._refuse(421, "INVALID_BODY", message)
        else:
            self.connections.discard(self)
            self._unset_keepalive_if_required()
            self._quiet()
            self.parser = None  # type: ignore[assignment]
            self.server_state.to_preview(self.transport, came_in, self.flow.write_paused)

    def send_400_response(self, msg: str) -> None:
        if self._elsewhere:
            return
        self._refuse(400, "INVALID_BODY", "This is not an HTTP request that can be read.")

    def handle_websocket_upgrade(self) -> None:
        if self._elsewhere:
            return
        self._quiet()
        super().handle_websocket_upgrade()

    def _quiet(self) -> None:
        if self._loris is not None:
            self._loris.cancel()
            self._loris = None

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._in_headers = False
        self._refused = True
        if not self.transport.is_closing():
            last_words(self.transport, raw_error(status, code, message))


class _Parts:
    """A body as it comes, copied once: when it is taken as bytes."""

    __slots__ = ("_parts", "_size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: bytes) -> None:
        self._parts.append(part)
        self._size += len(part)

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)


class WsProtocol(WebSocketsSansIOProtocol):
    released: Callable[[asyncio.BaseTransport], None]

    def __init__(
        self, config: Any, server_state: State, app_state: dict[str, Any], **kw: Any
    ) -> None:
        super().__init__(config, server_state, app_state, **kw)
        self.released = server_state.released

    def connection_lost(self, exc: Exception | None) -> None:
        self.released(self.transport)
        super().connection_lost(exc)

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.close_sent:
            # Refused with a body is refused: uvicorn knows only the refusal without one, and logs an error.
            self.handshake_complete = True


def last_words(transport: asyncio.Transport, answer: bytes) -> None:
    """Answers and closes, a moment apart: closed at once, with bytes of the client's unread, the kernel would
    send a reset that can overtake the answer."""
    transport.write(answer)
    if transport.can_write_eof():
        transport.write_eof()
    asyncio.get_running_loop().call_later(LINGER_S, transport.close)


def raw_error(status: int, code: str, message: str, retryable: bool = False) -> bytes:
    """A whole answer, for connections that never become a request."""
    body = json.dumps(
        {"error_code": code, "message": message, "retryable": retryable, "details": {}}
    ).encode()
    head = (
        f"HTTP/1.1 {status} {_PHRASES[status]}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


_PHRASES = {
    400: "Bad Request",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}
