"""Idempotency keys: the first request of a key runs, the others get its answer.

A claim is one insert; whoever makes the row runs the request and then calls ``finish`` (kept 24 h) or
``abandon`` (errors >= 500: the next one runs). Claims of a daemon that died are abandoned at the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

from roost.store.database import Store
from roost.store.schema import idempotency as t

KEEP = timedelta(hours=24)


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
    def __init__(self, store: Store) -> None:
        self._store = store

    async def claim(self, tenant: str, key: str, request_sha256: str) -> Claim:
        now = self._store.clock.now()

        def fn(connection: sa.Connection) -> Claim:
            mine = sa.and_(t.c.tenant_id == tenant, t.c.key == key)
            row = connection.execute(sa.select(t).where(mine)).one_or_none()
            if row is not None and row.expires_at <= now:
                connection.execute(sa.delete(t).where(mine))
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
        """Keeps the answer for those who come again."""

        def fn(connection: sa.Connection) -> None:
            connection.execute(
                sa.update(t)
                .where(t.c.tenant_id == tenant, t.c.key == key)
                .values(status=status, headers=dict(headers), body=body)
            )

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
        return await self._store.write(
            lambda c: c.execute(sa.delete(t).where(t.c.expires_at <= now)).rowcount
        )
