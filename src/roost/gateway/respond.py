"""Answers: JSON, errors, and streams that end well whoever leaves first."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import math
from collections.abc import AsyncGenerator, Mapping
from datetime import UTC, datetime
from typing import Any

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from roost.errors import InternalError, RoostError, UnavailableError
from roost.gateway import access
from roost.services.models import Principal

log = structlog.get_logger(__name__)

KEEP_ALIVE_S = 15.0
PIECE = 64 * 1024  # characters of a string that are encoded at a time
REVOKED = "revoked"  # said with the cancellation of a stream whose key is no key any more
SHUTDOWN = "shutdown"  # said with the cancellation of a request when the daemon stops
Headers = list[tuple[bytes, bytes]]


def dumps(value: Any) -> bytes:
    """UTF-8; what UTF-8 cannot say (lone surrogates) is escaped."""
    if isinstance(value, dict):
        longest = max((len(each) for each in value.values() if isinstance(each, str)), default=0)
        if longest > PIECE:
            return _in_pieces(value)
    return _at_once(value)


def _in_pieces(value: Mapping[str, Any]) -> bytes:
    """A NUL is six characters of JSON: only the answer itself is ever held at that length."""
    out = io.BytesIO()
    before = b"{"
    for name, each in value.items():
        out.write(before + _at_once(name) + b":")
        before = b","
        if isinstance(each, str):
            out.write(b'"')
            for at in range(0, len(each), PIECE):
                out.write(_at_once(each[at : at + PIECE])[1:-1])
            out.write(b'"')
        else:
            out.write(_at_once(each))
    out.write(b"}")
    return out.getvalue()


def _at_once(value: Any) -> bytes:
    try:
        return _as_utf8(value).encode()
    except UnicodeEncodeError:
        return _as_ascii(value).encode()


def rfc3339(at: datetime) -> str:
    """UTC, milliseconds."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return rfc3339(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


_FORM: dict[str, Any] = {"separators": (",", ":"), "allow_nan": False, "default": _plain}
_as_utf8 = json.JSONEncoder(ensure_ascii=False, **_FORM).encode
_as_ascii = json.JSONEncoder(**_FORM).encode


class Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dumps(content)


def error_body(failure: RoostError, request_id: str) -> bytes:
    wire = failure.to_wire()
    wire["details"] = {**wire["details"], "request_id": request_id}
    try:
        return dumps(wire)
    except (TypeError, ValueError):
        wire["details"] = {"request_id": request_id}
        return dumps(wire)


def error_headers(failure: RoostError) -> Headers:
    """Those an error needs beside its body."""
    headers: Headers = [(b"content-type", b"application/json")]
    if failure.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if failure.status in (429, 503) and failure.retryable:
        wait = failure.details.get("retry_after_s", 1)
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(wait))))
    allow = failure.details.get("allow")
    if failure.status == 405 and isinstance(allow, str):
        headers.append((b"allow", allow.encode()))
    size = failure.details.get("size")
    if failure.status == 416 and isinstance(size, int):
        headers.append((b"content-range", f"bytes */{size}".encode()))
    return headers


def unexpected(failure: BaseException, request_id: str) -> InternalError:
    """Logs it whole under the id; what leaves says nothing of it."""
    log.error("request.failed", request_id=request_id, exc_info=failure)
    return InternalError(
        "Roost failed to do this; the daemon's log has the reason under details.request_id."
    )


class Broken(Exception):
    """The answer has begun and cannot be finished: uvicorn closes the connection, so that nobody takes half
    an answer for a whole one."""


class Streamed(Response):
    """A body made while it is sent, at the client's pace. Its generator is closed however this ends."""

    def __init__(
        self,
        body: AsyncGenerator[bytes, None],
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
        keep_alive: bytes = b"",
        farewell: bytes = b"",
    ) -> None:
        self.status_code = status_code
        self.media_type = media_type
        self.background = None
        self.body = b""
        self._stream = body
        self._keep_alive = keep_alive
        self._farewell = farewell
        self.init_headers(headers)
        # No length of a body that is not there yet.
        self.raw_headers = [
            (name, value)
            for name, value in self.raw_headers
            if name != b"content-length" or (headers and "content-length" in headers)
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endless: set[Any] = scope.get("state", {}).get("endless", set())
        task = asyncio.current_task()
        if self._farewell:
            endless.add(task)
        pump = asyncio.ensure_future(self._pump(send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not pump.done():
                await _end(pump)
            elif (failure := pump.exception()) is not None:
                raise Broken from failure
        except asyncio.CancelledError as stop:
            await _end(pump)
            if stop.args != (SHUTDOWN,) or not self._farewell:
                raise
            await send({"type": "http.response.body", "body": self._farewell, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            endless.discard(task)
            gone.cancel()

    async def _pump(self, send: Send) -> None:
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            pieces = self._kept_alive() if self._keep_alive else self._stream
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._stream.aclose()

    async def _kept_alive(self) -> AsyncGenerator[bytes, None]:
        """The stream, with a word now and then while it is silent."""
        following: asyncio.Future[bytes] | None = None
        try:
            while True:
                following = asyncio.ensure_future(anext(self._stream))
                while not (await asyncio.wait({following}, timeout=KEEP_ALIVE_S))[0]:
                    yield self._keep_alive
                try:
                    piece = following.result()
                except StopAsyncIteration:
                    return
                yield piece
        finally:
            if following is not None and not following.done():
                following.cancel()
                with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
                    await following


class Events(Streamed):
    """Server-sent events. An error after the start is an ``error`` event; a stopping daemon says so."""

    def __init__(
        self, events: AsyncGenerator[bytes, None], request_id: str, who: Principal | None
    ) -> None:
        super().__init__(
            _guarded(events, request_id, who),
            200,
            {"cache-control": "no-cache", "x-accel-buffering": "no"},
            "text/event-stream",
            keep_alive=b": keep-alive\n\n",
            farewell=event("error", _stopping(request_id)),
        )


def event(name: str, data: Any, id: str | None = None) -> bytes:
    """One event; ``data`` becomes one line of JSON."""
    head = f"event: {name}\n" + (f"id: {id}\n" if id is not None else "")
    return head.encode() + b"data: " + dumps(data) + b"\n\n"


async def primed(stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The same stream once its first piece is there: what fails before that is an ordinary error."""
    try:
        first = await anext(stream)
    except StopAsyncIteration:
        first = b""
    except BaseException:
        await stream.aclose()
        raise
    return _after(first, stream)


async def _after(first: bytes, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    try:
        if first:
            yield first
        async for piece in stream:
            yield piece
    finally:
        await stream.aclose()


async def _guarded(
    events: AsyncGenerator[bytes, None], request_id: str, who: Principal | None
) -> AsyncGenerator[bytes, None]:
    try:
        async for each in events:
            yield each
    except RoostError as failure:
        wire = access.told(failure, who).to_wire()
        wire["details"] = {**wire["details"], "request_id": request_id}
        yield event("error", wire)
    except Exception as failure:
        wire = unexpected(failure, request_id).to_wire()
        wire["details"] = {"request_id": request_id}
        yield event("error", wire)
    finally:
        await events.aclose()


def _stopping(request_id: str) -> dict[str, Any]:
    failure = UnavailableError("The daemon is stopping; connect again.", code="SHUTTING_DOWN")
    return {**failure.to_wire(), "details": {"request_id": request_id}}


async def _end(task: asyncio.Future[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
