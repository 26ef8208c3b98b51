"""Rows of executions: what ran, how it ended, what it said."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from roost.store.database import Store
from roost.store.schema import executions as t

KEEP_PER_MACHINE = 1000
KEEP_FOR = timedelta(days=30)
WAITING = "approval_required"  # nothing of it was started
QUEUED = "queued"  # it was approved of, and the agent was not asked yet
LIVE = (QUEUED, "running")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionRow:
    """As the table; ``stdout`` and ``stderr`` are None in lists and while the agent has them."""

    id: str
    tenant_id: str
    machine_id: str
    command: list[str]
    status: str
    created_at: datetime
    cwd: str | None = None
    user: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None
    timeout_ms: int | None = None
    keep_awake: bool = True
    stdout_bytes: int | None = None
    stderr_bytes: int | None = None
    stdout_truncated: bool | None = None
    stderr_truncated: bool | None = None
    stdout: bytes | None = None
    stderr: bytes | None = None
    duration_us: int | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    name: str | None = None
    known_as: str | None = None

    @property
    def agents_id(self) -> str:
        return self.known_as or self.id


_NAMES = [f.name for f in fields(ExecutionRow)]
_ALL = [t.c[n] for n in _NAMES]
_LIGHT = [t.c[n] for n in _NAMES if n not in ("stdout", "stderr")]


class Executions:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def insert(self, row: ExecutionRow) -> None:
        values = {n: getattr(row, n) for n in _NAMES}
        await self._store.write(lambda c: c.execute(sa.insert(t).values(values)) and None)

    async def finish(self, execution_id: str, values: Mapping[str, Any]) -> bool:
        """Sets columns of an execution that has not ended; False if it had (or never was): the first
        ending counts."""
        found = await self._store.write(
            lambda c: (
                c.execute(
                    sa.update(t)
                    .where(t.c.id == execution_id, t.c.status.in_(LIVE))
                    .values(dict(values))
                ).rowcount
            )
        )
        return found > 0

    async def get(
        self, tenant: str, machine_id: str, execution_id: str, output: bool = False
    ) -> ExecutionRow | None:
        query = sa.select(*(_ALL if output else _LIGHT)).where(
            t.c.id == execution_id, t.c.machine_id == machine_id, t.c.tenant_id == tenant
        )
        row = await self._store.read(lambda c: c.execute(query).mappings().one_or_none())
        return None if row is None else ExecutionRow(**row)

    async def list(
        self,
        tenant: str,
        machine_id: str,
        status: str | None = None,
        limit: int = 100,
        after: tuple[datetime, str] | None = None,
    ) -> builtins.list[ExecutionRow]:
        """Newest first, those older than ``after`` (created_at, id): the last one of the page before."""
        query = sa.select(*_LIGHT).where(t.c.machine_id == machine_id, t.c.tenant_id == tenant)
        if status is not None:
            query = query.where(t.c.status == status)
        if after is not None:
            query = query.where(sa.tuple_(t.c.created_at, t.c.id) < sa.tuple_(*_bound(after)))
        query = query.order_by(t.c.created_at.desc(), t.c.id.desc()).limit(limit)
        rows = await self._store.read(lambda c: c.execute(query).mappings().all())
        return [ExecutionRow(**row) for row in rows]

    async def named(self, tenant_id: str, machine_id: str, name: str) -> str | None:
        """The id of the newest of that name."""
        mine = (t.c.tenant_id == tenant_id, t.c.machine_id == machine_id, t.c.name == name)
        query = sa.select(t.c.id).where(*mine).order_by(t.c.created_at.desc(), t.c.id.desc())
        return await self._store.read(lambda c: c.execute(query.limit(1)).scalar())

    async def running(self, machine_id: str | None = None) -> builtins.list[ExecutionRow]:
        """Queued or running ones, of one machine or of all."""
        query = sa.select(*_LIGHT).where(t.c.status.in_(LIVE))
        if machine_id is not None:
            query = query.where(t.c.machine_id == machine_id)
        rows = await self._store.read(lambda c: c.execute(query).mappings().all())
        return [ExecutionRow(**row) for row in rows]

    async def prune(self, machine_id: str) -> int:
        """Forgets ended ones beyond the newest 1000 of the machine, or ended over 30 days ago."""
        old = self._store.clock.now() - KEEP_FOR
        mine = t.c.machine_id == machine_id
        ended = t.c.status.not_in((*LIVE, WAITING))
        newest = (
            sa.select(t.c.id)
            .where(mine)
            .order_by(t.c.created_at.desc(), t.c.id.desc())
            .limit(KEEP_PER_MACHINE)
        )

        def fn(connection: sa.Connection) -> int:
            keep = [row[0] for row in connection.execute(newest)]
            count = connection.execute(sa.delete(t).where(mine, ended, t.c.ended_at < old)).rowcount
            if len(keep) == KEEP_PER_MACHINE:
                count += connection.execute(
                    sa.delete(t).where(mine, ended, t.c.id.not_in(keep))
                ).rowcount
            return count

        return await self._store.write(fn)


def _bound(after: tuple[datetime, str]) -> tuple[Any, Any]:
    return sa.bindparam(None, after[0], t.c.created_at.type), sa.bindparam(None, after[1])
