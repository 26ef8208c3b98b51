"""Public keys of tenants, for SSH: whose machines somebody may enter who can sign with the private half.

A key is kept as it is written in ``id_*.pub``, without its comment. Two tenants may have the same one; then it opens
machines by id only (``ssh/``), for a name would say nothing of which of the two is meant.
"""

from __future__ import annotations

import base64
import binascii
import builtins
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from roost import ids
from roost.clock import Clock
from roost.errors import ConflictError, InvalidRequestError, LimitError, NotFoundError
from roost.store import Store, tenants
from roost.store import ssh_keys as rows

KEYS = 100  # of a tenant
MAX_BYTES = 8192  # of a public key: RSA of 16,384 bits takes 2,800
# What OpenSSH's client signs with today and the server (asyncssh) verifies; no DSA, no certificates.
TYPES = (
    "ssh-ed25519",
    "sk-ssh-ed25519@openssh.com",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "ssh-rsa",
)
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,63}")
_MIN_RSA_BITS = 2048


@dataclass(frozen=True, slots=True)
class SshAddress:
    """Where SSH is answered; ``port`` None: nowhere. ``host`` None: where the API is."""

    host: str | None = None
    port: int | None = None
    host_key: str | None = None  # ``<type> <base64>``

    def describe(self) -> dict[str, Any]:
        key = self.host_key
        return {
            "enabled": self.port is not None,
            "host": self.host,
            "port": self.port,
            "host_key": key,
            "fingerprint": fingerprint(key) if key else None,
        }


@dataclass(frozen=True, slots=True)
class SshKey:
    id: str
    tenant_id: str
    name: str
    fingerprint: str
    public_key: str
    created_at: datetime
    last_used_at: datetime | None


class SshKeys:
    """``ended`` is told the ids of keys that were taken away, once they are: ``Keys.ended``, which tells all who
    listen for the end of any key."""

    def __init__(self, store: Store, clock: Clock, ended: Callable[[Iterable[str]], None]) -> None:
        self._store = store
        self._clock = clock
        self._ended = ended
        self._used: dict[str, datetime] = {}

    async def add(self, tenant: str, public_key: str, name: str | None = None) -> SshKey:
        """``public_key``: a line of an ``id_*.pub`` file; its comment is the name where none is given. Raises
        VALIDATION_FAILED, ALREADY_EXISTS, QUOTA_EXCEEDED."""
        kept, comment = parse(public_key)
        called = (name if name is not None else comment) or "ssh key"
        if not _NAME.fullmatch(called):
            raise _invalid("name", "1 to 63 characters without control characters")
        made = SshKey(
            id=ids.new(),
            tenant_id=tenant,
            name=called,
            fingerprint=fingerprint(kept),
            public_key=kept,
            created_at=self._clock.now(),
            last_used_at=None,
        )

        def fn(connection: sa.Connection) -> None:
            if tenants.quotas(connection, tenant) is None:
                raise NotFoundError(f"There is no tenant {tenant[:64]}.", code="TENANT_NOT_FOUND")
            used = len(rows.of_tenant(connection, tenant))
            if used >= KEYS:
                raise LimitError(
                    f"There may be {KEYS} SSH keys, and there are {used}: remove some.",
                    code="QUOTA_EXCEEDED",
                    details={"quota": "ssh_keys", "limit": KEYS, "used": used, "asked": 1},
                )
            rows.insert(connection, {n: getattr(made, n) for n in SshKey.__slots__})

        try:
            await self._store.write(fn)
        except IntegrityError as failure:
            raise ConflictError(
                "You have this SSH key already.",
                code="ALREADY_EXISTS",
                details={"fingerprint": made.fingerprint},
            ) from failure
        return made

    async def list(self, tenant: str) -> builtins.list[SshKey]:
        """Oldest first."""
        return self._keys(await self._store.read(lambda c: rows.of_tenant(c, tenant)))

    async def remove(self, tenant: str, key_id: str) -> None:
        """At once: sessions that came in with it end. Raises KEY_NOT_FOUND."""
        if not await self._store.write(lambda c: rows.delete(c, tenant, key_id)):
            raise NotFoundError(f"There is no SSH key {key_id[:64]}.", code="KEY_NOT_FOUND")
        self._used.pop(key_id, None)
        self._ended([key_id])

    async def known(self, public_key: str) -> builtins.list[SshKey]:
        """Those that are this key (``<type> <base64>``): one of each tenant that has it."""
        print_ = fingerprint(public_key)
        found = self._keys(await self._store.read(lambda c: rows.of_fingerprint(c, print_)))
        return [key for key in found if key.public_key == public_key]

    def used(self, key_id: str) -> None:
        self._used[key_id] = self._clock.now()

    async def flush(self) -> None:
        """Writes down when keys were last used; call now and then, and last."""
        used, self._used = self._used, {}
        if used:
            await self._store.write(lambda c: rows.used(c, used))

    def _keys(self, found: Iterable[rows.Row]) -> builtins.list[SshKey]:
        keys = [SshKey(**row) for row in found]
        return [replace(k, last_used_at=self._used.get(k.id, k.last_used_at)) for k in keys]


def parse(text: str) -> tuple[str, str]:
    """``<type> <base64>`` and the comment of a public key's line (RFC 4253, 6.6). Raises VALIDATION_FAILED."""
    if len(text) > MAX_BYTES:
        raise _invalid("public_key", f"at most {MAX_BYTES} bytes")
    if "PRIVATE KEY" in text:
        raise _invalid(
            "public_key", "this is a private key: keep it, and send the .pub file's line"
        )
    kind, _, rest = text.strip().partition(" ")
    data, _, comment = rest.strip().partition(" ")
    if kind not in TYPES:
        raise _invalid("public_key", f"a line of an id_*.pub file: one of {', '.join(TYPES)}")
    try:
        blob = base64.b64decode(data, validate=True)
    except (ValueError, binascii.Error):
        blob = b""
    size = int.from_bytes(blob[:4], "big")
    if blob[4 : 4 + size] != kind.encode() or len(blob) < 4 + size + 4:
        raise _invalid("public_key", "its base64 is not a key of the type it names")
    if kind == "ssh-rsa" and _rsa_bits(blob[4 + size :]) < _MIN_RSA_BITS:
        raise _invalid("public_key", f"an RSA key has at least {_MIN_RSA_BITS} bits")
    return f"{kind} {base64.b64encode(blob).decode()}", comment.strip()


def fingerprint(public_key: str) -> str:
    """As OpenSSH shows it."""
    digest = hashlib.sha256(base64.b64decode(public_key.split(" ")[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def _rsa_bits(fields: bytes) -> int:
    """Of what follows the type: the exponent, then the modulus, each after its length."""
    exponent = int.from_bytes(fields[:4], "big")
    at = 4 + exponent
    size = int.from_bytes(fields[at : at + 4], "big")
    modulus = fields[at + 4 : at + 4 + size]
    return int.from_bytes(modulus, "big").bit_length() if len(modulus) == size else 0


def _invalid(field: str, wanted: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field}: {wanted}.", details={"field": field})
