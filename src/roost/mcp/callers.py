"""Whose key a call uses, and which machine it means.

stdio                     -> the command line's own key (ROOST_API_KEY, or this host's key file)
HTTP, Authorization: ...  -> that key, proven once by asking the daemon, then on every call by the daemon
HTTP without a key        -> 401; with ``--own-key`` the command line's own
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from roost import AsyncClient, AsyncMachine
from roost.errors import AuthError, ForbiddenError, RoostError, error

CLIENTS = 64
_KEY = re.compile(r"[\x21-\x7e]{1,256}")
_ID = re.compile(r"[a-z0-9]{26,40}")
PLACE = "roost.client"


class Callers:
    """A connection to the daemon for each key, the ones used last. ``url``: of the daemon; None: as the SDK finds it."""

    def __init__(self, url: str | None = None) -> None:
        self._url = url
        self._own: AsyncClient | None = None
        self._clients: OrderedDict[str, AsyncClient] = OrderedDict()
        self._lock = asyncio.Lock()

    @property
    def own(self) -> AsyncClient:
        """Raises AuthError where there is no key."""
        if self._own is None:
            self._own = AsyncClient(self._url)
        return self._own

    async def of(self, key: str) -> AsyncClient:
        """Raises AuthError, or what else the daemon says."""
        if not _KEY.fullmatch(key):
            raise error("AUTH_INVALID", "This is no key of Roost.")
        async with self._lock:
            found = self._clients.get(key)
            if found is not None:
                self._clients.move_to_end(key)
                return found
        client = AsyncClient(self._url, key)
        try:
            await client.quotas()
        except BaseException:
            await client.aclose()
            raise
        async with self._lock:
            kept = self._clients.setdefault(key, client)
            while len(self._clients) > CLIENTS:
                # Not closed: a call may be using it. Its connections end as they idle.
                self._clients.popitem(last=False)
        if kept is not client:
            await client.aclose()
        return kept

    async def aclose(self) -> None:
        for each in (self._own, *self._clients.values()):
            if each is not None:
                await each.aclose()


class Gate:
    """ASGI, before the protocol: a request passes with a key that the daemon knows. What it is stands in the scope."""

    def __init__(self, app: ASGIApp, callers: Callers, *, own_key: bool) -> None:
        self._app = app
        self._callers = callers
        self._own_key = own_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            client = await self._client(scope)
        except RoostError as failure:
            answer = JSONResponse(failure.to_wire(), failure.status)
            if isinstance(failure, AuthError):
                answer.headers["WWW-Authenticate"] = 'Bearer realm="roost"'
            await answer(scope, receive, send)
            return
        await self._app({**scope, PLACE: client}, receive, send)

    async def _client(self, scope: Scope) -> AsyncClient:
        given = next((v for n, v in scope["headers"] if n == b"authorization"), None)
        if given is None:
            if self._own_key:
                return self._callers.own
            raise error(
                "AUTH_REQUIRED",
                "Send Authorization: Bearer <key>, with a key of Roost's (roost key).",
            )
        scheme, _, key = given.decode("latin-1").strip().partition(" ")
        if scheme.lower() != "bearer":
            raise error("AUTH_INVALID", "Send Authorization: Bearer <key>.")
        return await self._callers.of(key.strip())


def client_of(request: Any, callers: Callers) -> AsyncClient:
    """``request``: the HTTP request of a call; None over stdio."""
    if request is None:
        return callers.own
    client = request.scope.get(PLACE)
    if not isinstance(client, AsyncClient):  # the gate was gone around: fail closed
        raise ForbiddenError("This call came without a key.")
    return client


async def machine_of(client: AsyncClient, name: str) -> AsyncMachine:
    """By id, key or name. Raises NotFoundError, InvalidRequestError where several have the name."""
    if _ID.fullmatch(name):
        try:
            return await AsyncMachine.get(name, client=client)
        except RoostError as failure:
            if failure.code != "MACHINE_NOT_FOUND":
                raise
    try:
        return await AsyncMachine.get(key=name, client=client)
    except RoostError as failure:
        if failure.code not in ("MACHINE_NOT_FOUND", "VALIDATION_FAILED"):
            raise
    found = [m for m in await AsyncMachine.list(client=client) if m.name == name]
    if len(found) > 1:
        raise error(
            "VALIDATION_FAILED", f"{len(found)} machines have the name {name!r}: use an id."
        )
    if not found:
        raise error(
            "MACHINE_NOT_FOUND",
            f"There is no machine {name!r}.",
            details={"remedy": "list_machines shows those there are, create_machine makes one."},
        )
    return found[0]
