"""Where mitmproxy itself is too open for what the boundary keeps: what its own errors say, how long a head
may be, and what of a WebSocket no addon sees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from h11._receivebuffer import ReceiveBuffer
from mitmproxy.http import status_codes
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers import websocket
from mitmproxy.proxy.layers.http import ReceiveHttp, _http1, _http2, _http3
from wsproto.events import CloseConnection, Ping, Pong

MAX_HEAD = 2**16  # also of what is sent ahead of its turn
HEAD_S = 20.0  # from a head's first byte to its last


def apply() -> None:
    for module in (_http1, _http2, _http3):
        module.format_error = _said
    _http1.Http1Connection._handle_event = _bounded
    websocket.WebsocketLayer._handle_event = _started


def _said(status: int, message: str) -> bytes:
    """mitmproxy's message repeats what a server sent, before anything could search that."""
    return f"roost: {status} {status_codes.RESPONSES.get(status, 'Error')}\n".encode()


_handle_event = _http1.Http1Connection._handle_event


def _bounded(self: Any, event: Any) -> Any:
    """Of one HTTP/1 connection. ``_head`` is the alarm of a head that has begun and not ended."""
    if isinstance(event, events.Wakeup):
        if event.command is getattr(self, "_head", None):
            yield from _given_up(self)
        return
    yield from _handle_event(self, event)
    if self.state in (self.passthrough, self.done):
        return
    if len(self.buf) > MAX_HEAD:
        yield from _given_up(self)
    elif not self.buf or self.state != self.read_headers:
        self._head = None
    elif getattr(self, "_head", None) is None:
        self._head = commands.RequestWakeup(HEAD_S)
        yield self._head


def _given_up(self: Any) -> Any:
    self.buf = ReceiveBuffer()
    self.state, self._head = self.done, None
    yield commands.CloseConnection(self.conn)
    if self.request is not None and self.stream_id is not None:
        yield ReceiveHttp(self.ReceiveProtocolError(self.stream_id, "too long a head"))


_start = websocket.WebsocketLayer._handle_event


def _started(self: Any, event: Any) -> Any:
    """A server's pings and the reason for its end are searched as its messages are."""
    yield from _start(self, event)
    needles, said = self.flow.metadata["needles"], self.server_ws.events

    def masked() -> Iterator[Any]:
        for each in said():
            if isinstance(each, (Ping, Pong)):
                yield replace(each, payload=needles.mask(bytes(each.payload)))
            elif isinstance(each, CloseConnection) and each.reason:
                yield replace(each, reason=needles.mask(each.reason.encode()).decode())
            else:
                yield each

    self.server_ws.events = masked
