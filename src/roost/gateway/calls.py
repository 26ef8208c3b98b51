"""Every gRPC call's way in and out, as ``app`` is for HTTP: a key -> tenant and role, rates, sessions, an answer or a
status, a line in the log and, of what was to change something, one in the audit log.

A dialect declares its ``Method``s and serves them as coroutines and async generators of plain messages; it raises
``RoostError``s and sees no key. What is none of its methods, and what is sent in fields it does not declare, is answered
with UNIMPLEMENTED and a sentence.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet
from structlog.contextvars import bound_contextvars

from roost import ids
from roost.errors import (
    AuthError,
    InvalidRequestError,
    RoostError,
    TimeoutExpired,
    UnavailableError,
    UnsupportedError,
    error,
)
from roost.gateway import access, auth, relay, respond
from roost.gateway.metrics import Metrics
from roost.gateway.sessions import Session, Sessions
from roost.services.audit import Audit
from roost.services.models import Principal
from roost.services.rates import Rates

log = structlog.get_logger("roost.access")

S = grpc.StatusCode
MESSAGE_S = 30.0  # in which the one message of a call comes
DETAILS = 2000  # characters of a status' message: it travels in a header
_LEFT = 499  # in log and audit: who asked went away

# By code, else by the HTTP status of its class. UNAVAILABLE alone is what clients ask again for by themselves.
_CODES = {
    "ALREADY_EXISTS": S.ALREADY_EXISTS,
    "FILE_EXISTS": S.ALREADY_EXISTS,
    "REVISION_MISMATCH": S.ABORTED,
    "IDEMPOTENCY_IN_PROGRESS": S.ABORTED,
    "RANGE_NOT_SATISFIABLE": S.OUT_OF_RANGE,
    "CAPACITY_EXCEEDED": S.RESOURCE_EXHAUSTED,
    "STORAGE_FULL": S.RESOURCE_EXHAUSTED,
    "MACHINE_DISK_FULL": S.RESOURCE_EXHAUSTED,
}
_STATUSES = {
    400: S.INVALID_ARGUMENT,
    401: S.UNAUTHENTICATED,
    403: S.PERMISSION_DENIED,
    404: S.NOT_FOUND,
    405: S.UNIMPLEMENTED,
    409: S.FAILED_PRECONDITION,
    412: S.ABORTED,
    413: S.RESOURCE_EXHAUSTED,
    416: S.OUT_OF_RANGE,
    422: S.INVALID_ARGUMENT,
    429: S.RESOURCE_EXHAUSTED,
    501: S.UNIMPLEMENTED,
    502: S.INTERNAL,
    503: S.UNAVAILABLE,
    504: S.DEADLINE_EXCEEDED,
    507: S.RESOURCE_EXHAUSTED,
}


@dataclass(slots=True)
class Call:
    """Who asks. Handlers add the ``machine_id`` for the audit log."""

    request_id: str
    path: str
    action: str
    peer: str | None
    principal: Principal | None = None
    machine_id: str | None = None
    error_code: str | None = None
    noted: bool = True  # nothing is to be written down (any more)
    asked: bool = False  # all of it has come: until then the end of its key ends it

    @property
    def who(self) -> Principal:
        if self.principal is None:
            raise AuthError("This call needs a key.", code="AUTH_REQUIRED")
        return self.principal

    @property
    def tenant(self) -> str:
        return self.who.tenant


@dataclass(frozen=True, slots=True)
class Method:
    """``serve(call, request)``, or of ``many`` requests ``serve(call, iterator)``; a coroutine, or where it ``streams`` an
    async generator. ``reads``: it changes nothing. ``lasting``: as of ``dispatch.Action``."""

    name: str
    request: type[Message]
    serve: Callable[..., Any]
    reads: bool = False
    lasting: bool = True
    many: bool = False
    streams: bool = False


@dataclass
class Calls:
    """The guard. ``authenticate``: who comes with what stands after ``authorization: Bearer``."""

    authenticate: Callable[[str], Awaitable[Principal]]
    sessions: Sessions
    rates: Rates
    audit: Audit
    metrics: Metrics

    def handler(
        self, dialect: str, service: str, methods: Sequence[Method]
    ) -> grpc.GenericRpcHandler:
        """All of ``service``, and UNIMPLEMENTED for what it has besides."""
        return _Service(self, dialect, service, methods)

    # --- a call ---------------------------------------------------------------------------------

    async def unary(self, method: Method, call: Call, source: Any, context: Any) -> bytes:
        with bound_contextvars(request_id=call.request_id):
            began, answer = time.perf_counter(), b""

            async def serve() -> None:
                nonlocal answer
                asked = await _read(method, source)
                call.asked = not method.many
                made = await method.serve(call, asked)
                await self._note(method, call, 200)
                answer = made.SerializeToString()

            await self._run(method, call, context, began, serve, stream=False)
            return answer

    async def stream(self, method: Method, call: Call, source: Any, context: Any) -> None:
        with bound_contextvars(request_id=call.request_id):

            async def serve() -> None:
                asked = await _read(method, source)
                answers: AsyncGenerator[Message, None] = method.serve(call, asked)
                async with contextlib.aclosing(answers):
                    async for each in answers:
                        if not call.noted:
                            await self._note(method, call, 200)
                        await context.write(each.SerializeToString())
                await self._note(method, call, 200)

            await self._run(method, call, context, time.perf_counter(), serve, stream=True)

    async def _run(
        self,
        method: Method,
        call: Call,
        context: Any,
        began: float,
        serve: Callable[[], Awaitable[None]],
        stream: bool,
    ) -> None:
        status, failure = 200, None
        try:
            await self._admit(method, call, context)
            with self.sessions.of(call.who, lambda: stream or not call.asked) as own:
                try:
                    await serve()
                except asyncio.CancelledError as stop:
                    raise _why(own, stop) from None
        except RoostError as known:
            failure = known
        except asyncio.CancelledError:
            status = _LEFT
            raise
        except Exception as unknown:
            failure = respond.unexpected(unknown, call.request_id)
        finally:
            if failure is not None:
                status, call.error_code = failure.status, failure.code
                self.metrics.failed(failure.code)
            if not call.noted:
                await asyncio.shield(self._note(method, call, status))
            self._log(call, context, status, time.perf_counter() - began)
        trailer = [("x-request-id", call.request_id)]
        if failure is None:
            context.set_trailing_metadata(tuple(trailer))
            return
        shown = access.told(failure, call.principal)
        trailer.append(("roost-code", shown.code))
        code, message = code_of(shown), shown.message[:DETAILS]
        # In no circle with what it was caught in: one of an agent's holds a connection that a capture waits to see closed.
        del failure, shown
        await context.abort(code, message, tuple(trailer))

    async def _admit(self, method: Method, call: Call, context: Any) -> None:
        headers = [
            (str(name).encode(), value if isinstance(value, bytes) else str(value).encode())
            for name, value in context.invocation_metadata() or ()
        ]
        credential = auth.credential(headers)
        if credential is None:
            raise AuthError(
                "This call needs a key: send authorization: Bearer <key>.", code="AUTH_REQUIRED"
            )
        who = call.principal = await self.authenticate(credential)
        self.rates.take(who)
        self.sessions.check(who)  # nothing is awaited between here and its session
        call.noted = method.reads
        access.check(who, "GET" if method.reads else "POST", call.path, None)

    async def _note(self, method: Method, call: Call, status: int) -> None:
        """The line in the audit log, once; of what changes something it is there before the answer."""
        if call.noted or call.principal is None:
            return
        call.noted = True
        who = call.principal
        entry = {
            "tenant_id": who.tenant,
            "key_id": who.key_id,
            "role": who.role.value,
            "action": call.action,
            "method": "GRPC",
            "path": call.path[:300],
            "machine_id": call.machine_id,
            "peer": call.peer,
            "status": status,
            "error_code": call.error_code,
            "request_id": call.request_id,
        }
        await self.audit.record(entry, method.lasting)

    def _log(self, call: Call, context: Any, status: int, seconds: float) -> None:
        self.metrics.answered("grpc", "GRPC", status, seconds)
        log.info(
            "request",
            method="GRPC",
            path=call.path[:300],
            status=status,
            ms=round(seconds * 1000, 2),
            peer=call.peer,
            tenant=call.principal.tenant if call.principal else None,
            key_id=call.principal.key_id if call.principal else None,
            **({"machine_id": call.machine_id} if call.machine_id else {}),
        )


class _Service(grpc.GenericRpcHandler):
    def __init__(self, guard: Calls, dialect: str, name: str, methods: Sequence[Method]) -> None:
        self._guard = guard
        self._dialect = dialect
        self._prefix = f"/{name}/"
        self._handlers = {each.name: self._of(each) for each in methods}

    def service(self, handler_call_details: Any) -> Any:
        path: str = handler_call_details.method
        if not path.startswith(self._prefix):
            return None
        name = path.removeprefix(self._prefix)
        found = self._handlers.get(name)
        return self._of(_missing(name)) if found is None else found

    def _of(self, method: Method) -> Any:
        guard, path = self._guard, (self._prefix + method.name)[:300]
        action = f"{self._dialect}_{method.name}"[:64]

        async def unary(source: Any, context: Any) -> bytes:
            return await guard.unary(method, _call(path, action, context), source, context)

        async def stream(source: Any, context: Any) -> None:
            await guard.stream(method, _call(path, action, context), source, context)

        # Also of one message: it is not read, and kept, before it is known whose it is.
        if method.streams:
            return grpc.stream_stream_rpc_method_handler(stream)
        return grpc.stream_unary_rpc_method_handler(unary)


def code_of(failure: RoostError) -> grpc.StatusCode:
    return _CODES.get(failure.code) or _STATUSES.get(failure.status, S.INTERNAL)


def _call(path: str, action: str, context: Any) -> Call:
    at = relay.peer_address(context.peer())
    return Call(ids.new(), path, action, at[0][:64] if at else None)


def _why(own: Session, stop: asyncio.CancelledError) -> BaseException:
    """A cancellation is ours, the daemon's, or of who asked and went away."""
    if own.ended:
        return AuthError("This key was revoked or has expired.")
    if stop.args == (respond.SHUTDOWN,):
        return UnavailableError("The daemon is stopping.", code="SHUTTING_DOWN")
    return stop


async def _read(method: Method, source: AsyncIterator[bytes]) -> Any:
    """Raises INVALID_BODY, TIMEOUT."""
    if method.many:
        return _each(method, source)
    try:
        async with asyncio.timeout(MESSAGE_S):
            raw = await anext(aiter(source), None)
    except TimeoutError as failure:
        raise TimeoutExpired(f"The message did not come within {MESSAGE_S:g} s.") from failure
    if raw is None:
        raise InvalidRequestError("A message is missing.", code="INVALID_BODY")
    return _parse(method, raw)


async def _each(method: Method, source: AsyncIterator[bytes]) -> AsyncIterator[Message]:
    async for raw in source:
        yield _parse(method, raw)


def _parse(method: Method, raw: bytes) -> Message:
    """Raises INVALID_BODY, UNSUPPORTED."""
    try:
        message = method.request.FromString(raw)
    except DecodeError:
        raise InvalidRequestError("The message cannot be read.", code="INVALID_BODY") from None
    _require_known(method.name, message)
    return message


def _require_known(name: str, message: Message) -> None:
    """What is asked for in a field nobody reads would silently not be done. Raises UNSUPPORTED."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        number = unknown[0].field_number
        raise UnsupportedError(
            f"Roost does not serve field {number} of {message.DESCRIPTOR.name} ({name}): leave out what sets it.",
            details={"field": number},
        )
    for kind, value in message.ListFields():
        if kind.message_type is None or kind.message_type.GetOptions().map_entry:
            continue
        for each in value if kind.is_repeated else (value,):
            _require_known(name, each)


def _missing(name: str) -> Method:
    async def serve(call: Call, requests: Any) -> AsyncGenerator[Message, None]:
        raise error("UNSUPPORTED", f"Roost does not serve {name[:64]}.")
        yield  # a generator, as the others

    return Method(name, Message, serve, reads=True, many=True, streams=True)
