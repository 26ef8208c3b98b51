"""API keys and tokens: who is asking.

Only the SHA-256 of a key's 256 secret bits is kept; a key is found by that digest, so no comparison of secrets
takes place that could leak by its time. Keys seen once are remembered in memory, with the time they expire; the
daemon is the only one that revokes, so a revoked key is forgotten at once, and whoever holds a stream open on it
is told (``on_end``).

A token is a key with a scope: one machine (its own status), or one port of it (for the preview proxy). Its row goes
with its machine's, which nobody tells of here: so a token is looked up each time.
"""

from __future__ import annotations

import builtins
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from roost import ids
from roost.clock import Clock
from roost.errors import (
    AuthError,
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    LimitError,
    NotFoundError,
)
from roost.services.models import TOKENS, Key, Principal, Role
from roost.store import Store, tenants
from roost.store import keys as rows

DEFAULT_TENANT = rows.DEFAULT_TENANT
REMEMBER = 10_000
KEYS = 100  # of a tenant that count; the admin's has no limit
TOKENS_OF_MACHINE = 50
KEEP = timedelta(days=30)  # rows of what is revoked or expired
PREFIXES = {Role.MACHINE: "rmt", Role.PREVIEW: "rpt"}  # of tokens, so that people can tell
_FORM = re.compile(r"([a-z][a-z0-9]{0,15})_([0-9a-fA-F]{64})", re.ASCII)
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,63}")


class Keys:
    def __init__(self, store: Store, clock: Clock, data_dir: Path) -> None:
        self._store = store
        self._clock = clock
        self._file = data_dir / "key"
        self._seen: dict[str, Principal] = {}  # by digest; the prefix is that of nobody
        self._used: dict[str, datetime] = {}
        self._revocations = 0
        self._listeners: list[Callable[[str], None]] = []

    def on_end(self, listener: Callable[[str], None]) -> None:
        """Is told the id of each key or token that is revoked, once it is."""
        self._listeners.append(listener)

    async def bootstrap(self) -> str | None:
        """On the first start: tenant ``default``, its key, and ``data_dir/key`` (0600) holding it. Returns the
        key then, else None. The file is written first: a crash between leaves a file that counts from the next
        start on."""
        if await self._store.read(lambda c: rows.lasting(c, DEFAULT_TENANT, Role.ADMIN)):
            return None
        secret = _read(self._file)
        if secret is None:
            secret = f"roost_{secrets.token_hex(32)}"
            _write(self._file, secret)
        now = self._clock.now()
        made = self._values(DEFAULT_TENANT, "first key", Role.ADMIN, now, None)
        made["secret_sha256"] = _digest(secret.partition("_")[2])

        def fn(connection: sa.Connection) -> None:
            rows.put_tenant(connection, DEFAULT_TENANT, now)
            rows.insert(connection, made)

        await self._store.write(fn)
        return secret

    async def authenticate(self, secret_form: str) -> Principal:
        """Who ``<prefix>_<64 hex>`` is; from memory when seen before. Raises AUTH_INVALID."""
        match = _FORM.fullmatch(secret_form)
        if match is None:
            raise _invalid("This is not a Roost key: a key is <prefix>_<64 hex digits>.")
        digest = _digest(match[2])
        known = self._seen.get(digest)
        while known is None:
            before = self._revocations
            row = await self._store.read(lambda c: rows.valid(c, digest))
            if row is None:
                raise _unknown()
            if before != self._revocations:  # it may have been this one
                continue
            known = _principal(row)
            if known.is_token:
                break
            if len(self._seen) >= REMEMBER:
                self._seen.clear()
            self._seen[digest] = known
        now = self._clock.now()
        if known.expires_at is not None and known.expires_at <= now:
            raise _invalid("This key has expired.")
        self._used[known.key_id] = now
        return replace(known, prefix=match[1])

    async def known(self, key_id: str) -> Principal | None:
        """Whose key this is, where it counts still."""
        now = self._clock.now()
        while True:
            before = self._revocations
            row = await self._store.read(lambda c: rows.get(c, key_id, now))
            if row is None:
                return None
            if before == self._revocations:  # else it may have been this one
                return _principal(row)

    async def preview(self, secret_form: str, machine_id: str, port: int) -> Principal:
        """For the preview proxy: who may see this port of this machine with this token. Raises AUTH_INVALID, also
        for what is no preview token or one of another port or machine."""
        found = await self.authenticate(secret_form)
        if found.role is not Role.PREVIEW or (found.machine_id, found.port) != (machine_id, port):
            raise _invalid("This is no preview token of this port.")
        return found

    async def create(
        self,
        tenant: str,
        name: str,
        role: Role = Role.TENANT,
        *,
        expires_at: datetime | None = None,
        by: Role = Role.ADMIN,
    ) -> Key:
        """The only answer that carries ``secret``. ``by``: the role of who asks.

        Raises VALIDATION_FAILED, TENANT_NOT_FOUND, QUOTA_EXCEEDED; FORBIDDEN for a role above one's own."""
        if role in TOKENS:
            raise InvalidRequestError("A token is made for a machine.", details={"field": "role"})
        if role is Role.ADMIN and by is not Role.ADMIN:
            raise ForbiddenError("Only an admin makes admin keys.")
        if role is Role.ADMIN and tenant != DEFAULT_TENANT:
            raise InvalidRequestError(
                f"Admin keys are of the tenant {DEFAULT_TENANT}: take role tenant or read_only.",
                details={"field": "role"},
            )
        return await self._make(tenant, name, role, expires_at, "roost")

    async def issue(
        self,
        tenant: str,
        machine_id: str,
        role: Role,
        *,
        port: int | None = None,
        name: str = "token",
        expires_at: datetime | None = None,
    ) -> Key:
        """A token for a machine of the tenant, which the caller has made sure of. The only answer that carries
        ``secret``. Raises VALIDATION_FAILED, QUOTA_EXCEEDED."""
        if role not in TOKENS:
            raise InvalidRequestError(
                "A token's scope is machine or preview.", details={"field": "scope"}
            )
        if (port is not None) != (role is Role.PREVIEW):
            raise InvalidRequestError(
                "A preview token has a port, a machine token none.", details={"field": "port"}
            )
        if port is not None and not 1 <= port <= 65535:
            raise InvalidRequestError("port: from 1 to 65535.", details={"field": "port"})
        scope = {"machine_id": machine_id, "port": port}
        return await self._make(tenant, name, role, expires_at, PREFIXES[role], scope)

    async def list(self, tenant: str) -> builtins.list[Key]:
        """Those that count, oldest first; no tokens."""
        now = self._clock.now()
        return self._keys(await self._store.read(lambda c: rows.of_tenant(c, tenant, now)))

    async def tokens(self, machine_id: str) -> builtins.list[Key]:
        """Those of a machine that count, oldest first."""
        now = self._clock.now()
        return self._keys(await self._store.read(lambda c: rows.of_machine(c, machine_id, now)))

    async def revoke(self, tenant: str | None, key_id: str, by: Role = Role.ADMIN) -> None:
        """At once; ``tenant`` None: whosever it is. Raises KEY_NOT_FOUND; FORBIDDEN for an admin's key where one is
        no admin; IN_USE for the last key that never expires, of the admin's or of one's own tenant."""
        now = self._clock.now()

        def fn(connection: sa.Connection) -> None:
            row = rows.get(connection, key_id, now)
            if row is None or row["role"] in TOKENS or tenant not in (None, row["tenant_id"]):
                raise NotFoundError(f"There is no key {key_id[:64]}.", code="KEY_NOT_FOUND")
            admins = row["role"] == Role.ADMIN
            if admins and by is not Role.ADMIN:
                raise ForbiddenError("Only an admin revokes admin keys.")
            if admins or by is not Role.ADMIN:
                role = Role.ADMIN if admins else None
                if rows.lasting(connection, row["tenant_id"], role) == [key_id]:
                    raise ConflictError(
                        "This is the last key that never expires: nobody could come in any more. Create "
                        "another first.",
                        code="IN_USE",
                    )
            rows.revoke(connection, key_id, now)

        await self._store.write(fn)
        self.ended([key_id])

    async def revoke_token(self, tenant: str, machine_id: str, key_id: str) -> None:
        """At once. Raises KEY_NOT_FOUND."""
        now = self._clock.now()

        def fn(connection: sa.Connection) -> None:
            row = rows.get(connection, key_id, now)
            if row is None or (row["tenant_id"], row["machine_id"]) != (tenant, machine_id):
                raise NotFoundError(f"There is no token {key_id[:64]}.", code="KEY_NOT_FOUND")
            rows.revoke(connection, key_id, now)

        await self._store.write(fn)
        self.ended([key_id])

    def ended(self, key_ids: Iterable[str]) -> None:
        """These do not count any more, and their rows say so already."""
        gone = set(key_ids)
        self._revocations += 1
        self._seen = {d: known for d, known in self._seen.items() if known.key_id not in gone}
        for key_id in gone:
            self._used.pop(key_id, None)
            for listener in self._listeners:
                listener(key_id)

    async def flush(self) -> None:
        """Writes down when keys were last used; call now and then, and last."""
        used, self._used = self._used, {}
        if used:
            await self._store.write(lambda c: rows.used(c, used))

    async def tidy(self) -> None:
        """Forgets what has long ended; call now and then."""
        before = self._clock.now() - KEEP
        await self._store.write(lambda c: rows.forget(c, before))

    # --- helpers --------------------------------------------------------------------------------

    async def _make(
        self,
        tenant: str,
        name: str,
        role: Role,
        expires_at: datetime | None,
        prefix: str,
        scope: Mapping[str, Any] | None = None,
    ) -> Key:
        if not _NAME.fullmatch(name):
            raise InvalidRequestError(
                "A key's name is 1 to 63 characters without control characters.",
                details={"field": "name"},
            )
        now = self._clock.now()
        if expires_at is not None and expires_at <= now:
            raise InvalidRequestError(
                "expires_at: is in the past.", details={"field": "expires_at"}
            )
        secret = secrets.token_hex(32)
        made = {**self._values(tenant, name, role, now, expires_at), **(scope or {})}
        made["secret_sha256"] = _digest(secret)

        def fn(connection: sa.Connection) -> None:
            if tenants.quotas(connection, tenant) is None:
                raise NotFoundError(f"There is no tenant {tenant[:64]}.", code="TENANT_NOT_FOUND")
            if tenant != DEFAULT_TENANT:
                _check_number(connection, made, now)
            rows.insert(connection, made)

        await self._store.write(fn)
        del made["secret_sha256"]
        return Key(**{**made, "role": role}, last_used_at=None, secret=f"{prefix}_{secret}")

    def _values(
        self, tenant: str, name: str, role: Role, now: datetime, expires_at: datetime | None
    ) -> dict[str, Any]:
        return {
            "id": ids.new(),
            "tenant_id": tenant,
            "name": name,
            "role": role.value,
            "machine_id": None,
            "port": None,
            "created_at": now,
            "expires_at": expires_at,
        }

    def _keys(self, found: Iterable[Mapping[Any, Any]]) -> builtins.list[Key]:
        keys = [Key(**{**row, "role": Role(row["role"])}) for row in found]
        return [replace(k, last_used_at=self._used.get(k.id, k.last_used_at)) for k in keys]


def _check_number(connection: sa.Connection, made: Mapping[str, Any], now: datetime) -> None:
    """Whether one more may be. Raises QUOTA_EXCEEDED."""
    machine_id = made["machine_id"]
    if machine_id is None:
        name, limit = "keys", KEYS
        used = len(rows.of_tenant(connection, made["tenant_id"], now))
    else:
        name, limit = "tokens_of_a_machine", TOKENS_OF_MACHINE
        used = len(rows.of_machine(connection, machine_id, now))
    if used >= limit:
        raise LimitError(
            f"There may be {limit} {name.replace('_', ' ')} that count, and there are {used}: revoke some.",
            code="QUOTA_EXCEEDED",
            details={"quota": name, "limit": limit, "used": used, "asked": 1},
        )


def _principal(row: Mapping[Any, Any]) -> Principal:
    role = Role(row["role"])
    scope = (row["machine_id"], row["port"], row["expires_at"])
    return Principal(row["tenant_id"], row["id"], "", role, *scope)


def _digest(hex_secret: str) -> str:
    return hashlib.sha256(hex_secret.lower().encode()).hexdigest()


def _invalid(message: str) -> AuthError:
    return AuthError(message)


def _unknown() -> AuthError:
    return _invalid("This key is not known here, or was revoked.")


def _read(path: Path) -> str | None:
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return None
    return text if _FORM.fullmatch(text) else None


def _write(path: Path, secret: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with os.fdopen(os.open(temporary, flags, 0o600), "w") as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
