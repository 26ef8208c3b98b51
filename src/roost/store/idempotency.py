"""Idempotency keys: the first request of a key runs, the others get its answer.

A claim is one insert; whoever makes the row runs the request and then calls ``finish`` (kept 24 h) or
``abandon`` (errors >= 500: the next one runs). Claims of a daemon that died are abandoned at the start.
Of a tenant with ``MAX_BYTES`` or ``MAX_ROWS`` of answers no more are kept: only that they came.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

from roost.store.database import Store
from roost.store.schema import idempotency as t

KEEP = timedelta(hours=24)
MAX_BYTES = 256 * 2**20  # of a tenant's answers
MAX_ROWS = 100_000  # of a tenant's
NOT_KEPT = "x-roost-not-kept"  # a header of an answer of which only its status is known


@dataclass(frozen=True, slots=True)
class New:
    """The row is ours: run the request, then ``finish`` or ``abandon``."""


@dataclass(frozen=True, slots=True)
class InProgress:
    """The same request is running now."""


@dataclass(frozen=True, slots=True)
class Replay:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The key was used with another request."""


Claim = New | InProgress | Replay | Mismatch


class Idempotency:
    """``secret``: what fingerprints are kept under. A digest alone would let who reads the database try out what a
    short body said."""

    def __init__(self, store: Store, secret: bytes = b"") -> None:
        self._store = store
        self._secret = secret
        self._kept: dict[str, list[int]] = {}  # tenant -> rows, bytes; in the writer's thread only

    async def claim(self, tenant: str, key: str, request_sha256: str) -> Claim:
        now = self._store.clock.now()
        request_sha256 = hmac.digest(self._secret, request_sha256.encode(), "sha256").hex()

        def fn(connection: sa.Connection) -> Claim:
            mine = sa.and_(t.c.tenant_id == tenant, t.c.key == key)
            row = connection.execute(sa.select(t).where(mine)).one_or_none()
            if row is not None and row.expires_at <= now:
                connection.execute(sa.delete(t).where(mine))
                if row.status is not None:
                    self._forget(tenant, 1, len(row.body or b""))
                row = None
            if row is None:
                connection.execute(
                    sa.insert(t).values(
                        tenant_id=tenant,
                        key=key,
                        request_sha256=request_sha256,
                        created_at=now,
                        expires_at=now + KEEP,
                    )
                )
                return New()
            if row.request_sha256 != request_sha256:
                return Mismatch()
            if row.status is None:
                return InProgress()
            return Replay(row.status, dict(row.headers or {}), row.body or b"")

        return await self._store.write(fn)

    async def finish(
        self, tenant: str, key: str, status: int, headers: Mapping[str, str], body: bytes
    ) -> None:
        """Keeps the answer for those who come again, or that it came."""

        def fn(connection: sa.Connection) -> None:
            kept = self._kept_of(connection, tenant)
            shown, whole = dict(headers), body
            if kept[0] >= MAX_ROWS or kept[1] + len(body) > MAX_BYTES:
                shown, whole = {NOT_KEPT: "1"}, b""
            done = connection.execute(
                sa.update(t)
                .where(t.c.tenant_id == tenant, t.c.key == key)
                .values(status=status, headers=shown, body=whole)
            )
            if done.rowcount:
                kept[0] += 1
                kept[1] += len(whole)

        await self._store.write(fn)

    async def abandon(self, tenant: str, key: str) -> None:
        """Forgets a claim without an answer; an answered one stays."""

        def fn(connection: sa.Connection) -> None:
            connection.execute(
                sa.delete(t).where(t.c.tenant_id == tenant, t.c.key == key, t.c.status.is_(None))
            )

        await self._store.write(fn)

    async def recover(self) -> int:
        """At daemon start: abandons every claim without an answer."""
        return await self._store.write(
            lambda c: c.execute(sa.delete(t).where(t.c.status.is_(None))).rowcount
        )

    async def sweep(self) -> int:
        """Forgets what has expired; call now and then."""
        now = self._store.clock.now()
        old = t.c.expires_at <= now

        def fn(connection: sa.Connection) -> int:
            answered = sa.and_(old, t.c.status.is_not(None))
            query = sa.select(t.c.tenant_id, *_SUMS).where(answered).group_by(t.c.tenant_id)
            for tenant, rows, size in connection.execute(query).all():
                self._forget(tenant, rows, size)
            return connection.execute(sa.delete(t).where(old)).rowcount

        return await self._store.write(fn)

    def _kept_of(self, connection: sa.Connection, tenant: str) -> list[int]:
        """Counted once, then followed."""
        if tenant not in self._kept:
            mine = sa.and_(t.c.tenant_id == tenant, t.c.status.is_not(None))
            self._kept[tenant] = list(connection.execute(sa.select(*_SUMS).where(mine)).one())
        return self._kept[tenant]

    def _forget(self, tenant: str, rows: int, size: int) -> None:
        if (kept := self._kept.get(tenant)) is not None:
            kept[0] -= rows
            kept[1] -= size


_SUMS = (sa.func.count(), sa.func.coalesce(sa.func.sum(sa.func.length(t.c.body)), 0))
