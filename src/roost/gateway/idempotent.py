"""``Idempotency-Key``: the first request of a key runs, those that come again get its answer.

The request is its method, path, query and body. A body that an app streams (file and tar uploads, stdin) is
told by its length and digest headers instead, for it is never held whole. Kept are answers below 500 (429 apart), up to
``KEPT_BYTES``, the long ones compressed; of a longer one, and of one that says ``no-store`` (it shows a key once, of which only a digest
is ever kept), only that it came, so that nothing is ever done twice; so of all answers of a tenant that has very many kept. What
the gateway or the router refused by its form alone is not kept: nothing was begun. A stream of events is not kept: the key is free again when it ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import Callable, Iterable

import structlog
from starlette.types import Message, Send

from roost.errors import ConflictError, InvalidRequestError, RoostError
from roost.store.idempotency import NOT_KEPT, Idempotency, InProgress, Mismatch, Replay

log = structlog.get_logger(__name__)

METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})
KEPT_BYTES = 8 * 2**20
LONG_BYTES = 64 * 1024
_REFUSED = frozenset(
    {"AUTH_REQUIRED", "AUTH_INVALID", "FORBIDDEN", "NOT_FOUND", "METHOD_NOT_ALLOWED"}
)
_DEFLATED = "x-roost-deflated"
_KEPT_HEADERS = frozenset({"content-type", "etag", "location", "last-modified"})
_OF_BODY = (b"content-length", b"content-digest", b"content-md5", b"content-encoding")


def key_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Raises VALIDATION_FAILED for one that is not 1-255 printable ASCII characters."""
    for name, value in headers:
        if name == b"idempotency-key":
            if not 1 <= len(value) <= 255 or any(not 0x20 <= byte <= 0x7E for byte in value):
                raise InvalidRequestError(
                    "Idempotency-Key: 1 to 255 printable ASCII characters.",
                    details={"field": "Idempotency-Key"},
                )
            return value.decode("ascii")
    return None


def fingerprint(
    method: str,
    path: bytes,
    query: bytes,
    body: bytes | None,
    headers: Iterable[tuple[bytes, bytes]],
    machine_id: str | None = None,
) -> str:
    """``body`` None: it is streamed. ``machine_id``: of who may ask one machine only, which neither path nor body may
    name."""
    digest = hashlib.sha256()
    parts = [method.encode(), path, query]
    if body is None:
        found = {name: value for name, value in headers if name in _OF_BODY}
        parts += [b"streamed", *(found.get(name, b"") for name in _OF_BODY)]
    else:
        parts.append(body)
    if machine_id is not None:
        parts.append(machine_id.encode())
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


class Keeper:
    """One claimed key: listens to the answer on its way out and keeps it."""

    def __init__(
        self,
        store: Idempotency,
        tenant: str,
        key: str,
        send: Send,
        error_code: Callable[[], str | None],
    ) -> None:
        self._store = store
        self._error_code = error_code  # of the answer, once it has begun
        self._tenant = tenant
        self._key = key
        self._send = send
        self._status = 0
        self._headers: dict[str, str] = {}
        self._parts: list[bytes] | None = []  # None: too long to keep
        self._length = 0
        self._stream = False
        self._secret = False
        self._settled = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            for name, value in message.get("headers", ()):
                text = name.decode("latin-1").lower()
                if text in _KEPT_HEADERS:
                    self._headers[text] = value.decode("latin-1")
                self._secret |= text == "cache-control" and b"no-store" in value
            self._stream = self._headers.get("content-type", "").startswith("text/event-stream")
        elif message["type"] == "http.response.body":
            body = message.get("body", b"")
            self._length += len(body)
            if self._length > KEPT_BYTES or self._stream or self._secret:
                self._parts = None
            elif self._parts is not None:
                self._parts.append(body)
            if not message.get("more_body", False):
                await self.settle()  # before its last byte leaves: a retry must find it
        await self._send(message)

    async def settle(self) -> None:
        """Keeps the answer, or frees the key when there is none to keep."""
        if self._settled:
            return
        self._settled = True
        # Let go of here: who listens is in a cycle with what it listens to, which lives until the collector comes.
        parts, self._parts = self._parts, None
        try:
            refused = self._status >= 400 and self._error_code() in _REFUSED
            unkept = not 200 <= self._status < 500 or self._status == 429
            if self._stream or refused or unkept:
                await self._store.abandon(self._tenant, self._key)
            elif parts is None:
                await self._store.finish(
                    self._tenant, self._key, self._status, {NOT_KEPT: "1"}, b""
                )
            else:
                headers, body = self._headers, b"".join(parts)
                if len(body) > LONG_BYTES:
                    headers = {**headers, _DEFLATED: "1"}
                    body = await asyncio.to_thread(zlib.compress, body, 1)
                await self._store.finish(self._tenant, self._key, self._status, headers, body)
        except RoostError as failure:
            log.warning("idempotency.keep", error=failure.code)


async def claim(store: Idempotency, tenant: str, key: str, request: str) -> Replay | None:
    """None: it is ours to run. Raises IDEMPOTENCY_KEY_REUSED, IDEMPOTENCY_IN_PROGRESS."""
    found = await store.claim(tenant, key, request)
    match found:
        case InProgress():
            raise ConflictError(
                "The first request with this Idempotency-Key is still running; ask again soon.",
                code="IDEMPOTENCY_IN_PROGRESS",
            )
        case Mismatch():
            raise ConflictError(
                "This Idempotency-Key was used with another request; use a new one.",
                code="IDEMPOTENCY_KEY_REUSED",
            )
        case Replay() if NOT_KEPT in found.headers:
            raise ConflictError(
                "The first request with this Idempotency-Key was done, but its answer was not kept: it was too "
                "long, showed a secret, or others had filled the place for them.",
                details={"first_status": found.status},
            )
        case Replay():
            return found
    return None


def replayed(found: Replay) -> tuple[list[tuple[bytes, bytes]], bytes]:
    headers: list[tuple[bytes, bytes]] = [
        (name.encode("latin-1"), value.encode("latin-1"))
        for name, value in found.headers.items()
        if name != _DEFLATED
    ]
    headers.append((b"idempotent-replayed", b"true"))
    return headers, zlib.decompress(found.body) if _DEFLATED in found.headers else found.body
