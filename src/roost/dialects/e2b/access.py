"""Which sandbox a request is for, and what of E2B's own tokens proves that it may.

    control plane        an ordinary key, in X-API-KEY: the gateway's business
    envd                 X-Access-Token; files also by a signature over it, in the URL
    ports                e2b-traffic-access-token, where they are not for everybody

    which sandbox        E2b-Sandbox-Id and E2b-Sandbox-Port, where all share one URL
                         {port}-{id}.{domain}, where each has its own
                         neither, for a signed URL on the shared one: then whosever token it was signed with

Tokens are kept nowhere: each is an HMAC of the machine's id and its tenant with the host's secret. So one is the same
for the sandbox's whole life, says nothing of any other, and ends with it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from starlette.requests import HTTPConnection
from starlette.types import Scope

from roost.engine.lifecycle import Phase
from roost.errors import AuthError, InvalidRequestError, LimitError, NotFoundError
from roost.gateway.dispatch import Action
from roost.services.models import Machine, Principal
from roost.services.places import Places
from roost.services.rates import Bucket

if TYPE_CHECKING:
    from roost.services.machines import Machines

ENVD_PORT = 49983
SIGNED = "e2b.signed"  # in the scope of what a signature let in: that says for whom, and nothing beside it counts
_TOKENS = 20_000  # remembered: making one costs as much as looking through many
_SEARCHES = 20.0  # a second, for the sandbox of a signed URL that names none
_AT_ONCE = 500  # tokens that are tried before others have their turn
_ID = re.compile(r"[a-z0-9]{26,40}", re.ASCII)
_SIGNATURE = re.compile(r"v1_[A-Za-z0-9+/]{43}", re.ASCII)
_LOOKS = frozenset(
    {"List", "Connect", "Update", "SendInput", "Stat", "ListDir", "WatchDir"}
    | {"CreateWatcher", "GetWatcherEvents", "RemoveWatcher"}
)
_CHANGES = frozenset({"files", "execute", "contexts"})
_OPERATIONS = {"GET": "read", "HEAD": "read", "POST": "write", "PUT": "write"}


@dataclass(frozen=True, slots=True)
class Named:
    """What a request names. ``sandbox_id`` as sent, of an id's form or not."""

    sandbox_id: str
    port: int


class Access:
    def __init__(self, machines: Machines, places: Places) -> None:
        self._machines = machines
        self._places = places
        self._known: OrderedDict[str, str] = OrderedDict()
        self._searches = Bucket(_SEARCHES, 4 * _SEARCHES, machines.clock.monotonic())

    def token(self, machine: Machine) -> str:
        """``envdAccessToken``."""
        return self._token(machine.id, machine.tenant_id)

    # --- requests -------------------------------------------------------------------------------

    def named(self, scope: Scope) -> Named | None:
        """The sandbox and port the request names: by its own headers, else by its host."""
        sandbox_id, port, host = "", str(ENVD_PORT), b""
        for name, value in scope["headers"]:
            if name == b"e2b-sandbox-id":
                sandbox_id = value.decode("latin-1")
            elif name == b"e2b-sandbox-port":
                port = value.decode("latin-1")
            elif name == b"host":
                host = value
        label = self._places.label(host.decode("latin-1"))
        place = None if label is None else Places.read(label)
        if place is not None:  # what the connection was made to counts more than what is said on it
            return Named(place.machine_id, place.port)
        if not sandbox_id:
            return None
        return Named(sandbox_id[:64], int(port) if re.fullmatch(r"[1-9]\d{0,4}", port) else 0)

    async def principal_of(self, scope: Scope) -> Principal | None:
        """For ``Target.admit`` of what is spoken inside a sandbox: who may ask that one, and that one only
        (``machine_id``), for its life. It stands for the sandbox's tenant; no key of the platform is accepted here.

        Raises MACHINE_NOT_FOUND (it is none, is gone, or does not run), AUTH_REQUIRED, AUTH_INVALID (also for a
        signature that has expired), RATE_LIMITED."""
        named = self.named(scope)
        machine = None
        if named is not None:
            machine = await self.find(named.sandbox_id)
        offered = next((v for n, v in scope["headers"] if n == b"x-access-token"), b"")
        if machine is not None:
            proven = hmac.compare_digest(offered, self.token(machine).encode())
            if scope["path"] == "/health":
                return principal(machine) if proven else guest(machine)
            if proven:
                return principal(awake(machine))
        if offered and machine is not None:
            raise AuthError("unauthorized access, please provide a valid access token")
        if scope["path"] != "/files" or scope["type"] != "http":
            if named is None:
                raise InvalidRequestError(
                    "This call is about a sandbox: name it in the header E2b-Sandbox-Id, or by its host.",
                    code="INVALID_BODY",
                )
            raise AuthError(
                "unauthorized access, please provide a valid access token or method signing if supported",
                code="AUTH_REQUIRED",
            )
        found = awake(await self._signed(scope, machine))
        scope[SIGNED] = True
        return principal(found)

    async def find(self, sandbox_id: str) -> Machine:
        """The sandbox, of whichever tenant: only for whoever then proves that it may. Raises MACHINE_NOT_FOUND."""
        if not _ID.fullmatch(sandbox_id):
            raise gone(sandbox_id)
        try:
            machine = await self._machines.anyones(sandbox_id)
        except NotFoundError:
            raise gone(sandbox_id) from None
        if machine.phase in (Phase.DESTROYING, Phase.DESTROYED):
            raise gone(sandbox_id)
        return machine

    # --- helpers --------------------------------------------------------------------------------

    def _token(self, machine_id: str, tenant: str) -> str:
        known = self._known.get(machine_id)
        if known is None:
            known = self._machines.token(machine_id, tenant, "e2b-envd-v1")
            self._known[machine_id] = known
            if len(self._known) > _TOKENS:
                self._known.popitem(last=False)
        return known

    async def _signed(self, scope: Scope, machine: Machine | None) -> Machine:
        """Of the sandbox the signature was made with the token of. ``machine``: the one that is named."""
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        signature = query.get("signature", "")
        if not signature:
            raise AuthError("missing signature query parameter", code="AUTH_REQUIRED")
        expires = query.get("signature_expiration", "")
        before = ":".join(
            (
                query.get("path", ""),
                _OPERATIONS.get(scope["method"], ""),
                query.get("username", ""),
                "",
            )
        ).encode()
        after = f":{expires}".encode() if expires else b""
        if machine is None and not _SIGNATURE.fullmatch(signature):
            raise AuthError("invalid signature")
        if machine is not None:
            signed = _matches(signature, before, self.token(machine), after)
        else:
            machine = await self._signer(signature, before, after)
            signed = machine is not None
        if machine is None or not signed:
            raise AuthError("invalid signature")
        if expires and (
            not re.fullmatch(r"\d{1,18}", expires)
            or int(expires) < self._machines.clock.now().timestamp()
        ):
            raise AuthError("signature is already expired")
        return machine

    async def _signer(self, signature: str, before: bytes, after: bytes) -> Machine | None:
        """Among all that live: a hash each, so it is not done as often as anybody likes."""
        wait = self._searches.take(self._machines.clock.monotonic())
        if wait:
            raise LimitError(
                "Too many signed URLs without a sandbox are asked for: retry in a moment.",
                details={"retry_after_s": round(wait, 3)},
            )
        for number, (machine_id, tenant) in enumerate(await self._machines.living(), 1):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
            if _matches(signature, before, self._token(machine_id, tenant), after):
                return await self.find(machine_id)
        return None


def gone(sandbox_id: str) -> NotFoundError:
    return NotFoundError(
        "The sandbox was not found",
        code="MACHINE_NOT_FOUND",
        details={"machine_id": sandbox_id[:64]},
    )


def sandbox_id(connection: HTTPConnection) -> str:
    """Of the sandbox the caller was admitted to (``principal_of``)."""
    who = connection.scope["roost"].principal
    found: str = who.machine_id
    return found


def awake(machine: Machine) -> Machine:
    """One that is paused, and does not resume by itself, is not there for its callers. Raises MACHINE_NOT_FOUND."""
    if machine.phase in (Phase.SLEEPING, Phase.FAILED) and not machine.autowake:
        raise gone(machine.id)
    return machine


def action(scope: Scope) -> Action | None:
    """In the audit log: what changes something in a sandbox. Not what looks, nor each key that is pressed in what was
    started there."""
    if scope.get("path_params") is None:
        return None
    _, first, *more = scope["path"].split("/")
    method = more[0] if more and "." in first else ""
    if method in _LOOKS or not (method or first in _CHANGES):
        return None
    return Action(f"e2b_{method or first}"[:64], False, scope["roost"].principal.machine_id)


def principal(machine: Machine) -> Principal:
    return Principal(machine.tenant_id, machine.id, "e2b", machine_id=machine.id)


def guest(machine: Machine) -> Principal:
    """Anybody: all of them together are as one token to the tenant, and no loss to who has one."""
    return Principal(
        machine.tenant_id, f"guest-{machine.id}", "e2b", machine_id=machine.id, guest=True
    )


def _matches(signature: str, before: bytes, token: str, after: bytes) -> bool:
    digest = hashlib.sha256(before + token.encode() + after).digest()
    made = "v1_" + base64.b64encode(digest).rstrip(b"=").decode()
    return hmac.compare_digest(signature.encode(), made.encode())
