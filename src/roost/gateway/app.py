"""Every request's way in: an id, an app, a tenant, a role, a body; and its way out: an answer, a line in the log, and
one in the audit log where it was to change something.

Pure ASGI: a streamed body passes through untouched. Apps find ``scope["roost"]`` (a ``Caller``); the credential
is not in it. A body that the app does not stream itself is read here, whole and bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect
from structlog.contextvars import bound_contextvars, unbind_contextvars

from roost import ids
from roost.clock import Clock
from roost.errors import (
    AuthError,
    InvalidRequestError,
    NotFoundError,
    RoostError,
    TimeoutExpired,
    UnavailableError,
)
from roost.gateway import access, auth, idempotent, respond
from roost.gateway.dispatch import Problem, Table, Target
from roost.gateway.metrics import Metrics, resource_of
from roost.gateway.sessions import Session, Sessions
from roost.services.audit import Audit
from roost.services.models import Principal
from roost.services.rates import Rates
from roost.store.idempotency import Idempotency

log = structlog.get_logger("roost.access")

JSON_BYTES = 4 * 2**20
PUBLIC_BYTES = 16 * 1024  # of a body that anybody may send, who is counted nowhere
BODY_S = 30.0
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Authenticator(Protocol):
    async def authenticate(self, secret_form: str) -> Principal:
        """Raises AUTH_INVALID."""

    def on_end(self, listener: Callable[[str], None]) -> None:
        """Is told the id of each key that is revoked."""


@dataclass(slots=True)
class Caller:
    """Who asks. ``principal`` is None only on paths that need no key. Apps add for the audit log what the path does
    not say: the ``machine_id`` of one just made, the ``error_code`` of the answer, a ``remark``: what else it was that
    was done, as an entry of its own."""

    request_id: str
    principal: Principal | None
    subprotocol: str | None = None
    machine_id: str | None = None
    error_code: str | None = None
    remark: str | None = None

    @property
    def tenant(self) -> str:
        if self.principal is None:
            raise AuthError("This call needs a key.", code="AUTH_REQUIRED")
        return self.principal.tenant


class Gateway:
    def __init__(
        self,
        table: Table,
        keys: Authenticator,
        idempotency: Idempotency,
        metrics: Metrics,
        rates: Rates,
        audit: Audit,
        clock: Clock,
    ) -> None:
        self._table = table
        self._keys = keys
        self._idempotency = idempotency
        self._metrics = metrics
        self._rates = rates
        self._audit = audit
        self.sessions = Sessions(clock.now)
        keys.on_end(self.sessions.end)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)

    # --- HTTP -----------------------------------------------------------------------------------

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = Caller(ids.new(), None)
        with _bound(scope, caller.request_id):
            await self._http_bound(scope, receive, _Out(send, caller), caller)

    async def _http_bound(self, scope: Scope, receive: Receive, out: _Out, caller: Caller) -> None:
        began = time.perf_counter()
        try:
            target = await self._admit(scope, caller, out)
            streams = target.streams(scope["method"], scope["path"])
            with self._session(
                caller, lambda: (streams or out.status != 0) and not out.over
            ) as own:
                try:
                    await self._serve(target, scope, receive, out, caller)
                except asyncio.CancelledError:
                    if own is None or not own.ended:
                        raise
                    raise AuthError("This key was revoked or has expired.") from None
        except RoostError as failure:
            await out.fail(failure)
        except respond.Broken as broken:
            log.warning(
                "request.broken", request_id=out.request_id, cause=repr(broken.__cause__)[:300]
            )
            raise
        except asyncio.CancelledError as stop:
            if stop.args != (respond.SHUTDOWN,):
                raise
            await out.fail(UnavailableError("The daemon is stopping.", code="SHUTTING_DOWN"))
        except Exception as failure:
            if not out.over:  # else the app has said it, and logged it
                await out.fail(respond.unexpected(failure, out.request_id))
        finally:
            self._record(scope, caller, out, time.perf_counter() - began)

    async def _admit(self, scope: Scope, caller: Caller, out: _Out) -> Target:
        """The target, once the caller may use it; from then on its answer is in the audit log if it changes
        something. Being told to ask less often, or for less at once, is not: who asks too much must not fill the log."""
        offered = scope.get("subprotocols", ())
        key = auth.credential(scope["headers"], offered)
        host = next((v for n, v in scope["headers"] if n == b"host"), b"").decode("latin-1")
        path = scope["path"]
        target = self._table.find(host, path, auth.prefix(key) if key else None)
        if target is not None:
            out.problem = target.problem
            if path in target.public:
                return target
        who = None if target is None else await target.admit(scope)
        if who is None:
            if key is None:
                raise AuthError(
                    "This call needs a key: send Authorization: Bearer <key>.", code="AUTH_REQUIRED"
                )
            who = await self._keys.authenticate(key)
        caller.principal = who
        caller.subprotocol = auth.subprotocol(offered)
        self._rates.take(who)
        self.sessions.check(who)  # nothing is awaited between here and its session
        if _CONTROL.search(path):  # "$" of a route's pattern matches before a final line end
            raise NotFoundError("Nothing is served at a path with control characters.")
        method = scope.get("method", "WEBSOCKET")
        if target is not None and method not in access.READS:
            out.before = functools.partial(self._note, scope, caller, target, scope)
        access.check(who, method, path, target)
        if target is None:
            raise NotFoundError(f"Nothing is served at {path[:200]}.")
        return target

    async def _serve(
        self, target: Target, scope: Scope, receive: Receive, out: _Out, caller: Caller
    ) -> None:
        method = scope["method"]
        body: bytes | None = b""
        child: dict[str, Any]
        if target.streams(method, scope["path"]):
            body = None
        elif _has_body(scope):
            body = await _read(receive, scope, JSON_BYTES if caller.principal else PUBLIC_BYTES)
            _check_utf8(scope, body)
            receive = _again(body, receive)
        child = {
            **scope,
            "roost": caller,
            "headers": [(n, v) for n, v in scope["headers"] if n not in _SECRET],
        }
        if out.before is not None:
            out.before = functools.partial(self._note, scope, caller, target, child)
        key = idempotent.key_of(scope["headers"]) if method in idempotent.METHODS else None
        if key is None or caller.principal is None:
            await target.app(child, receive, out.send)
            return
        print_ = idempotent.fingerprint(
            method,
            scope["raw_path"],
            scope["query_string"],
            body,
            scope["headers"],
            caller.principal.machine_id,
        )
        tenant = caller.principal.tenant
        found = await idempotent.claim(self._idempotency, tenant, key, print_)
        if found is not None:
            headers, kept = idempotent.replayed(found)
            out.before = None  # nothing is done
            await out.whole(found.status, headers, kept)
            return
        keeper = idempotent.Keeper(
            self._idempotency, tenant, key, out.send, lambda: caller.error_code
        )
        out.through = keeper.send
        try:
            await target.app(child, receive, keeper.send)
        except RoostError as failure:
            await out.fail(failure)
        finally:
            await asyncio.shield(keeper.settle())

    # --- WebSocket ------------------------------------------------------------------------------

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = Caller(ids.new(), None)
        refusable = "websocket.http.response" in scope["extensions"]
        with _bound(scope, caller.request_id):
            await self._websocket_bound(scope, receive, _Out(send, caller, refusable), caller)

    async def _websocket_bound(
        self, scope: Scope, receive: Receive, out: _Out, caller: Caller
    ) -> None:
        began = time.perf_counter()
        try:
            target = await self._admit(scope, caller, out)
            headers = [(n, v) for n, v in scope["headers"] if n not in _SECRET]
            child = {**scope, "roost": caller, "headers": headers}
            out.before = functools.partial(self._note, scope, caller, target, child)
            with self._session(caller, lambda: out.status != 0 and not out.over) as own:
                try:
                    await target.app(child, receive, out.send)
                except asyncio.CancelledError:
                    if own is None or not own.ended:
                        raise
                    raise AuthError("This key was revoked or has expired.") from None
        except RoostError as failure:
            await out.fail(failure)
        except WebSocketDisconnect:
            pass  # the client went while it was spoken to
        except Exception as failure:
            if not out.over:  # else the app has said it, and logged it
                await out.fail(respond.unexpected(failure, out.request_id))
        finally:
            self._record(scope, caller, out, time.perf_counter() - began)

    def _session(
        self, caller: Caller, streams: Callable[[], bool]
    ) -> contextlib.AbstractContextManager[Session | None]:
        if caller.principal is None:
            return contextlib.nullcontext()
        return self.sessions.of(caller.principal, streams)

    async def _note(
        self, scope: Scope, caller: Caller, target: Target, routed: Scope, status: int
    ) -> None:
        """The line in the audit log. No query, header or body is in it."""
        who = caller.principal
        action = target.action(routed)
        if who is None or action is None:
            return
        client = scope.get("client")
        entry = {
            "tenant_id": who.tenant,
            "key_id": who.key_id,
            "role": who.role.value,
            "action": action.name[:64],
            "method": scope.get("method", "WEBSOCKET")[:16],
            "path": scope["path"][:300],
            "machine_id": (caller.machine_id or action.machine_id or "")[:40] or None,
            "peer": client[0][:64] if client else None,
            "status": status,
            "error_code": caller.error_code,
            "request_id": caller.request_id,
        }
        await self._audit.record(entry, action.lasting)
        if caller.remark is not None:
            await self._audit.record({**entry, "action": caller.remark}, action.lasting)

    def _record(self, scope: Scope, caller: Caller, out: _Out, seconds: float) -> None:
        method = scope.get("method", "WEBSOCKET")
        kind = resource_of(scope["path"])
        if caller.error_code is not None:
            self._metrics.failed(caller.error_code)
        shown = method if method in _METHODS or method == "WEBSOCKET" else "other"
        self._metrics.answered(kind, shown, out.status, seconds)
        client = scope.get("client")
        log.info(
            "request",
            method=method,
            path=scope["path"][:300],
            status=out.status,
            ms=round(seconds * 1000, 2),
            bytes=out.bytes,
            peer=client[0] if client else None,
            request_id=out.request_id,
            tenant=caller.principal.tenant if caller.principal else None,
            key_id=caller.principal.key_id if caller.principal else None,
        )


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_MACHINE = re.compile(r"/v1/(?:machines|sandboxes)/([a-z0-9]{26,40})(?:/|$)")


@contextlib.contextmanager
def _bound(scope: Scope, request_id: str) -> Iterator[None]:
    """What every line of the log about this request says; handlers add ``machine_id`` where they learn it."""
    machine = _MACHINE.match(scope["path"])
    about = {"request_id": request_id} | ({"machine_id": machine[1]} if machine else {})
    with bound_contextvars(**about):
        try:
            yield
        finally:
            unbind_contextvars("machine_id")


_BEGINS = frozenset({"http.response.start", "websocket.http.response.start", "websocket.accept"})
_SECRET = frozenset({b"authorization", b"x-api-key", b"sec-websocket-protocol", b"cookie"})


class _Out:
    """The way out: counts, adds the request's id, and can still turn into an error until it has begun. ``before``
    is called with the status once, before the answer begins."""

    def __init__(self, send: Send, caller: Caller, websocket: bool | None = None) -> None:
        self._send = send
        self._caller = caller
        self.through: Send | None = None  # the whole way, where more listens than this
        self.problem: Callable[[RoostError, str], Problem] | None = None  # how errors look
        self.before: Callable[[int], Awaitable[None]] | None = None
        self.request_id = caller.request_id
        self.status = 0
        self.bytes = 0
        self._websocket = websocket  # None: HTTP; else whether a refusal may have a body
        self.over = False

    async def send(self, message: Message) -> None:
        kind = message["type"]
        before = self.before if kind in _BEGINS else None
        if before is not None:
            self.before = None
            await before(message.get("status", 101))
        if kind in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
            message = {**message, "headers": headers}
        elif kind == "http.response.body":
            self.bytes += len(message.get("body", b""))
            self.over = not message.get("more_body", False)
        elif kind == "websocket.accept":
            self.status = 101
        elif kind == "websocket.close":
            self.status = self.status or 403
            self.over = True
        await self._send(message)

    async def whole(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        send = self.through or self.send
        prefix = "websocket." if self._websocket else ""
        length = (b"content-length", str(len(body)).encode())
        await send(
            {
                "type": f"{prefix}http.response.start",
                "status": status,
                "headers": [*headers, length],
            }
        )
        await send({"type": f"{prefix}http.response.body", "body": body, "more_body": False})

    async def fail(self, failure: RoostError) -> None:
        """The error as the answer; after the answer's begin, its end is all that can be had."""
        if self.over:
            return
        self._caller.error_code = failure.code
        failure = access.told(failure, self._caller.principal)
        if self.status == 0 and self._websocket is not False:
            if self.problem is not None:
                await self.whole(*self.problem(failure, self.request_id))
                return
            body = respond.error_body(failure, self.request_id)
            await self.whole(failure.status, respond.error_headers(failure), body)
        elif self._websocket is not None:
            with contextlib.suppress(RuntimeError):
                await self.send({"type": "websocket.close", "code": 1011, "reason": failure.code})
        else:
            raise respond.Broken from failure


def _has_body(scope: Scope) -> bool:
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
            return True
    return False


async def _read(receive: Receive, scope: Scope, most: int) -> bytes:
    """The whole body. Raises PAYLOAD_TOO_LARGE, TIMEOUT."""
    too_large = InvalidRequestError(
        f"A JSON body is at most {'4 MiB' if most == JSON_BYTES else '16 KiB'} here.",
        code="PAYLOAD_TOO_LARGE",
        details={"limit": most},
    )
    for name, value in scope["headers"]:
        if name == b"content-length" and (not value.isdigit() or int(value) > most):
            raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise InvalidRequestError("The request broke off.", code="INVALID_BODY")
                part = message.get("body", b"")
                size += len(part)
                if size > most:
                    raise too_large
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError as failure:
        raise TimeoutExpired("The request's body did not come within 30 s.") from failure


def _check_utf8(scope: Scope, body: bytes) -> None:
    """JSON is exchanged as UTF-8; a parser that guesses would read UTF-16 and -32 as well, which hold zero bytes
    for what JSON is made of. Raises INVALID_BODY."""
    kind = next((v for n, v in scope["headers"] if n == b"content-type"), b"")
    named = _CHARSET.search(kind.decode("latin-1"))
    if b"\0" in body or (named and named[1].lower() not in ("utf-8", "utf8", "us-ascii")):
        raise InvalidRequestError("A JSON body is UTF-8.", code="INVALID_BODY")


_CHARSET = re.compile(r";\s*charset\s*=\s*\"?([^\s\";]*)", re.IGNORECASE)


def _again(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
