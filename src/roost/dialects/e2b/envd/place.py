"""The sandbox a request was admitted to, and as whom it asks there."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.requests import HTTPConnection
from starlette.types import Scope

from roost.api.v1.services import caller, tenant
from roost.dialects.e2b.access import SIGNED, Access, sandbox_id
from roost.services.models import Principal

_USER = "e2b.user"
MAX_USER = 64


@dataclass(frozen=True, slots=True)
class Place:
    tenant: str
    machine_id: str


class Admission:
    """``Target.admit``. The user is no secret, but stands where secrets do, which no app is shown."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def __call__(self, scope: Scope) -> Principal | None:
        who = await self._access.principal_of(scope)
        scope[_USER] = None if scope.get(SIGNED) else basic_user(scope["headers"])
        return who


def place(connection: HTTPConnection) -> Place:
    found = Place(tenant(connection), sandbox_id(connection))
    caller(connection).machine_id = found.machine_id
    return found


def user_of(connection: HTTPConnection) -> str | None:
    """Of ``Authorization: Basic base64("user:")``; None: the sandbox's own."""
    said = connection.scope.get(_USER)
    return said if isinstance(said, str) and said else None


def basic_user(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    for name, value in headers:
        scheme, _, rest = value.strip().partition(b" ")
        if name != b"authorization" or scheme.lower() != b"basic":
            continue
        try:
            return base64.b64decode(rest.strip(), validate=True).decode().partition(":")[0]
        except (ValueError, binascii.Error):
            return "\x00"  # nobody's name
    return None
