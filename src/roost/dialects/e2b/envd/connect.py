"""The Connect protocol as E2B's clients speak it: JSON alone, nothing compressed.

```
unary   POST application/json           -> 200 JSON | the code's status, {code, message}
stream  POST application/connect+json   -> 200, frames: flags (1 byte), length (4, big endian), JSON
                                           the last has flag 0x02: {} or {"error": {code, message}}
```

``Connect-Timeout-Ms`` ends a call with ``deadline_exceeded``. ``Keepalive-Ping-Interval`` (seconds) has a silent
stream say so now and then, so that nobody between takes it for dead.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from roost.api.v1.services import caller
from roost.dialects.e2b.envd.place import Place, place, user_of
from roost.dialects.e2b.envd.refusals import STATUS, Refused, gone, missing, refused
from roost.errors import RoostError
from roost.gateway import access
from roost.gateway.respond import Json, Streamed, dumps, unexpected

MAX_FRAME = 4 * 2**20
MESSAGE_S = 30.0  # for one message to come
MAX_TIMEOUT_MS = 10**10  # ten digits, as the protocol has it
PING_S = 90.0  # where the client says nothing
SHORTEST_PING_S = 1.0
_END = 0x02
_COMPRESSED = 0x01


class Message(BaseModel):
    """A message of protobuf in JSON: what is missing or null has its default, what is unknown is passed over, names
    are in either form."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True
    )

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, said: Any) -> Any:
        if isinstance(said, dict):
            return {name: value for name, value in said.items() if value is not None}
        return said


def _unpacked(said: Any) -> Any:
    if not isinstance(said, str):
        return said
    text = said.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (ValueError, binascii.Error):
        raise ValueError("not base64") from None


Bytes = Annotated[bytes, BeforeValidator(_unpacked)]
M = TypeVar("M", bound=Message)
Said: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One call under way."""

    request: Request
    place: Place
    user: str | None  # as whom, where the client says
    timeout_s: float | None


Unary: TypeAlias = Callable[[Call, M], Awaitable[Said]]
Server: TypeAlias = Callable[[Call, M], AsyncGenerator[Said, None]]
Client: TypeAlias = Callable[[Call, AsyncGenerator[M, None]], Awaitable[Said]]


class Service:
    """The routes of one service, as they are added."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.routes: list[Route] = []
        self.streams: set[str] = set()  # paths whose body is read here

    def unary(self, method: str, of: type[M], handler: Unary[M]) -> None:
        async def endpoint(request: Request) -> Response:
            try:
                _check_kind(request, "application/json")
                message = _read(of, await request.body())
                call = _call(request)
                async with asyncio.timeout(call.timeout_s):
                    return Json(await handler(call, message))
            except TimeoutError:
                return _answered(request, _late())
            except (RoostError, Refused) as failure:
                return _answered(request, failure)

        self._add(method, endpoint)

    def server_stream(self, method: str, of: type[M], handler: Server[M], alive: Said) -> None:
        """``alive``: what is said where there is nothing to say."""

        async def endpoint(request: Request) -> Response:
            began = time.monotonic()
            try:
                _check_kind(request, "application/connect+json")
                message = await _only(of, request)
                call = _call(request)
            except (RoostError, Refused) as failure:
                return _ended(request, failure)
            events = handler(call, message)
            return _Frames(request, _framed(call, events, frame(alive), _ping(request), began))

        self._add(method, endpoint, streams=True)

    def client_stream(self, method: str, of: type[M], handler: Client[M]) -> None:
        async def endpoint(request: Request) -> Response:
            try:
                _check_kind(request, "application/connect+json")
                call = _call(request)
                async with contextlib.aclosing(_messages(of, request)) as said:
                    async with asyncio.timeout(call.timeout_s):
                        answer = await handler(call, said)
            except TimeoutError:
                return _ended(request, _late())
            except (RoostError, Refused) as failure:
                return _ended(request, failure)
            return Response(frame(answer) + _last(), media_type="application/connect+json")

        self._add(method, endpoint, streams=True)

    def _add(
        self, method: str, endpoint: Callable[[Request], Awaitable[Response]], streams: bool = False
    ) -> None:
        path = f"/{self._name}/{method}"
        self.routes.append(Route(path, endpoint, methods=["POST"]))
        if streams:
            self.streams.add(path)


def _call(request: Request) -> Call:
    return Call(request, place(request), user_of(request), _timeout(request))


def frame(said: Said, flags: int = 0) -> bytes:
    data = dumps(said)
    return bytes((flags,)) + len(data).to_bytes(4, "big") + data


def _last(failure: Refused | None = None) -> bytes:
    if failure is None:
        return frame({}, _END)
    return frame({"error": {"code": failure.code, "message": failure.message}}, _END)


def _late() -> Refused:
    return Refused("deadline_exceeded", "the operation timed out")


def _read(of: type[M], body: bytes) -> M:
    try:
        return of.model_validate_json(body or b"{}")
    except ValidationError as failure:
        first = failure.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:200]
        raise Refused("invalid_argument", f"{where or 'message'}: {first['msg']}"[:500]) from None


async def _only(of: type[M], request: Request) -> M:
    """The one message of a stream in which the client says but one."""
    found: list[M] = []
    try:
        async with asyncio.timeout(MESSAGE_S), contextlib.aclosing(_messages(of, request)) as said:
            async for each in said:
                found.append(each)
                if len(found) > 1:
                    break
    except TimeoutError:
        raise _late() from None
    if len(found) != 1:
        raise Refused("invalid_argument", "protocol error: not one message")
    return found[0]


async def _messages(of: type[M], request: Request) -> AsyncGenerator[M, None]:
    held = bytearray()
    try:
        async for part in request.stream():
            held += part
            while len(held) >= 5:
                size = _size(held[:5])
                if len(held) < 5 + size:
                    break
                body = bytes(held[5 : 5 + size])
                del held[: 5 + size]
                yield _read(of, body)
    except ClientDisconnect:
        raise Refused("canceled", "the request broke off") from None
    if held:
        raise Refused("invalid_argument", "protocol error: the last message is not whole")


def _size(head: bytes | bytearray) -> int:
    if head[0] & _COMPRESSED:
        raise Refused("unimplemented", "compressed messages are not served")
    if head[0]:
        raise Refused("invalid_argument", "protocol error: flags that a client does not send")
    size = int.from_bytes(head[1:5], "big")
    if size > MAX_FRAME:
        raise Refused("resource_exhausted", f"a message is at most {MAX_FRAME} bytes")
    return size


def _check_kind(request: Request, wanted: str) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != wanted:
        raise Refused("unimplemented", f"this call is served as {wanted} only")
    named = "connect-content-encoding" if wanted.endswith("+json") else "content-encoding"
    if request.headers.get(named, "identity").strip().lower() not in ("identity", ""):
        raise Refused("unimplemented", "compressed messages are not served")


def _timeout(request: Request) -> float | None:
    said = request.headers.get("connect-timeout-ms")
    if said is None:
        return None
    if not (said.isascii() and said.isdigit() and len(said) <= 10):
        raise Refused("invalid_argument", "Connect-Timeout-Ms: up to ten digits")
    return int(said) / 1000 or None


def _ping(request: Request) -> float:
    said = request.headers.get("keepalive-ping-interval", "")
    if said.isascii() and said.isdigit() and 0 < len(said) < 7:
        return max(SHORTEST_PING_S, float(said))
    return PING_S


def told(request: Request, failure: RoostError) -> RoostError:
    """For the log and for who asks."""
    who = caller(request)
    who.error_code = failure.code
    return access.told(failure, who.principal)


def _answered(request: Request, failure: RoostError | Refused) -> Response:
    if isinstance(failure, RoostError):
        failure = told(request, failure)
        if gone(failure):
            status, body = missing(caller(request).machine_id)
            return Json(body, status)
        failure = refused(failure)
    return Json({"code": failure.code, "message": failure.message}, STATUS[failure.code])


def _ended(request: Request, failure: RoostError | Refused) -> Response:
    """A stream that is nothing but its end."""
    if isinstance(failure, RoostError):
        failure = told(request, failure)
        if gone(failure):
            return _answered(request, failure)
        failure = refused(failure)
    return Response(_last(failure), media_type="application/connect+json")


class _Frames(Streamed):
    def __init__(self, request: Request, frames: AsyncGenerator[bytes, None]) -> None:
        stopping = Refused("unavailable", "the daemon is stopping; connect again")
        super().__init__(
            _closing(request, frames),
            200,
            {"cache-control": "no-cache", "x-accel-buffering": "no"},
            "application/connect+json",
            farewell=_last(stopping),
        )


async def _closing(
    request: Request, frames: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    """The frames and the one that says how it ended."""
    ending = _last()
    try:
        async for each in frames:
            yield each
    except Refused as failure:
        ending = _last(failure)
    except RoostError as failure:
        ending = _last(refused(told(request, failure)))
    except Exception as failure:
        hidden = unexpected(failure, caller(request).request_id)
        ending = _last(Refused("internal", hidden.message))
    finally:
        await frames.aclose()
    yield ending


async def _framed(
    call: Call,
    events: AsyncGenerator[Said, None],
    alive: bytes,
    ping_s: float,
    began: float,
) -> AsyncGenerator[bytes, None]:
    ends = None if call.timeout_s is None else began + call.timeout_s
    following: asyncio.Future[Said] | None = None
    try:
        while True:
            following = asyncio.ensure_future(anext(events))
            while not following.done():
                left = ping_s if ends is None else min(ping_s, ends - time.monotonic())
                if left > 0 and (await asyncio.wait({following}, timeout=left))[0]:
                    break
                if ends is not None and time.monotonic() >= ends:
                    raise _late()
                yield alive
            try:
                said = following.result()
            except StopAsyncIteration:
                return
            yield frame(said)
    finally:
        if following is not None and not following.done():
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
                await following
        await events.aclose()
