"""API keys: who is asking.

Only the SHA-256 of a key's 256 secret bits is kept; a key is found by that digest, so no comparison of secrets
takes place that could leak by its time. Keys seen once are remembered in memory; the daemon is the only one that
revokes, so a revoked key is forgotten at once.
"""

from __future__ import annotations

import builtins
import hashlib
import os
import re
import secrets
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa

from roost import ids
from roost.clock import Clock
from roost.errors import AuthError, ConflictError, InvalidRequestError, NotFoundError
from roost.services.models import Key, Principal
from roost.store import Store
from roost.store import keys as rows

DEFAULT_TENANT = "default"
REMEMBER = 10_000
_FORM = re.compile(r"([a-z][a-z0-9]{0,15})_([0-9a-fA-F]{64})", re.ASCII)
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,63}")


class Keys:
    def __init__(self, store: Store, clock: Clock, data_dir: Path) -> None:
        self._store = store
        self._clock = clock
        self._file = data_dir / "key"
        self._seen: dict[str, tuple[str, str]] = {}  # digest -> (tenant, key id)
        self._used: dict[str, datetime] = {}
        self._revocations = 0

    async def bootstrap(self) -> str | None:
        """On the first start: tenant ``default``, its key, and ``data_dir/key`` (0600) holding it. Returns the
        key then, else None. The file is written first: a crash between leaves a file that counts from the next
        start on."""
        if await self._store.read(rows.any_valid):
            return None
        secret = _read(self._file)
        if secret is None:
            secret = f"roost_{secrets.token_hex(32)}"
            _write(self._file, secret)
        now = self._clock.now()
        digest = _digest(secret.partition("_")[2])
        key_id = ids.new()

        def fn(connection: sa.Connection) -> None:
            rows.put_tenant(connection, DEFAULT_TENANT, now)
            rows.insert(connection, key_id, DEFAULT_TENANT, "first key", digest, now)

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
                raise _invalid("This key is not known here, or was revoked.")
            if before != self._revocations:  # it may have been this one
                continue
            known = (row["tenant_id"], row["id"])
            if len(self._seen) >= REMEMBER:
                self._seen.clear()
            self._seen[digest] = known
        self._used[known[1]] = self._clock.now()
        return Principal(known[0], known[1], match[1])

    async def create(self, tenant: str, name: str) -> Key:
        """The only answer that carries ``secret``."""
        if not _NAME.fullmatch(name):
            raise InvalidRequestError(
                "A key's name is 1 to 63 characters without control characters.",
                details={"field": "name"},
            )
        now = self._clock.now()
        secret = secrets.token_hex(32)
        key_id = ids.new()

        def fn(connection: sa.Connection) -> None:
            rows.put_tenant(connection, tenant, now)
            rows.insert(connection, key_id, tenant, name, _digest(secret), now)

        await self._store.write(fn)
        return Key(key_id, tenant, name, now, None, f"roost_{secret}")

    async def list(self, tenant: str) -> builtins.list[Key]:
        """Those not revoked, oldest first."""
        found = await self._store.read(lambda c: rows.of_tenant(c, tenant))
        keys = [Key(**row) for row in found]
        return [
            Key(k.id, k.tenant_id, k.name, k.created_at, self._used.get(k.id, k.last_used_at))
            for k in keys
        ]

    async def revoke(self, tenant: str, key_id: str) -> None:
        """At once. Raises KEY_NOT_FOUND; IN_USE for the tenant's last key."""
        now = self._clock.now()

        def fn(connection: sa.Connection) -> None:
            mine = [row["id"] for row in rows.of_tenant(connection, tenant)]
            if key_id not in mine:
                raise NotFoundError(f"There is no key {key_id[:64]}.", code="KEY_NOT_FOUND")
            if len(mine) == 1:
                raise ConflictError(
                    "This is your last key: nobody could come in any more. Create another first.",
                    code="IN_USE",
                )
            rows.revoke(connection, key_id, now)

        await self._store.write(fn)
        self._revocations += 1
        self._seen = {d: known for d, known in self._seen.items() if known[1] != key_id}
        self._used.pop(key_id, None)

    async def flush(self) -> None:
        """Writes down when keys were last used; call now and then, and last."""
        used, self._used = self._used, {}
        if used:
            await self._store.write(lambda c: rows.used(c, used))


def _digest(hex_secret: str) -> str:
    return hashlib.sha256(hex_secret.lower().encode()).hexdigest()


def _invalid(message: str) -> AuthError:
    return AuthError(message)


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
