"""Rows of approvals; what is decided of one is decided of its execution in the same transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from roost.store import machines
from roost.store.executions import WAITING
from roost.store.schema import approvals as t
from roost.store.schema import executions

PENDING = "pending"
KEEP_PER_MACHINE = 1000  # as of executions; the audit log has who decided
_SHOWN = [each for each in t.c if each.name != "request"]


def insert(
    connection: sa.Connection, values: Mapping[str, Any], execution: Mapping[str, Any]
) -> None:
    connection.execute(sa.insert(executions), dict(execution))
    connection.execute(sa.insert(t), dict(values))
    _record(connection, values["machine_id"], values["created_at"], f"{values['id']}: asked for")


def pending_of(connection: sa.Connection, machine_id: str) -> int:
    query = sa.select(sa.func.count()).where(t.c.machine_id == machine_id, t.c.status == PENDING)
    return int(connection.execute(query).scalar_one())


def get(connection: sa.Connection, id: str) -> sa.RowMapping | None:
    """With its sealed request."""
    return connection.execute(sa.select(t).where(t.c.id == id)).mappings().one_or_none()


def pending(connection: sa.Connection) -> list[sa.RowMapping]:
    """Everybody's, oldest first."""
    query = sa.select(*_SHOWN).where(t.c.status == PENDING).order_by(t.c.created_at, t.c.id)
    return list(connection.execute(query).mappings())


def waiting(connection: sa.Connection, tenant: str, machine_id: str | None) -> list[str]:
    """Ids, oldest first."""
    query = sa.select(t.c.id).where(t.c.tenant_id == tenant, t.c.status == PENDING)
    if machine_id is not None:
        query = query.where(t.c.machine_id == machine_id)
    return list(connection.execute(query.order_by(t.c.created_at, t.c.id)).scalars())


def find(
    connection: sa.Connection,
    tenant: str,
    *,
    machine_id: str | None = None,
    status: str | None = None,
    ids: Collection[str] | None = None,
    after: tuple[datetime, str] | None = None,
    limit: int,
) -> list[sa.RowMapping]:
    """Newest first, those older than ``after``; with their sealed requests."""
    query = sa.select(t).where(t.c.tenant_id == tenant)
    if machine_id is not None:
        query = query.where(t.c.machine_id == machine_id)
    if status is not None:
        query = query.where(t.c.status == status)
    if ids is not None:
        query = query.where(t.c.id.in_(ids))
    if after is not None:
        at = sa.bindparam(None, after[0], t.c.created_at.type)
        query = query.where(
            sa.tuple_(t.c.created_at, t.c.id) < sa.tuple_(at, sa.bindparam(None, after[1]))
        )
    query = query.order_by(t.c.created_at.desc(), t.c.id.desc()).limit(limit)
    return list(connection.execute(query).mappings())


def decide(
    connection: sa.Connection,
    id: str,
    status: str,
    at: datetime,
    by: str | None,
    note: str | None,
    execution: Mapping[str, Any],
) -> None:
    """``execution``: the columns of its execution from then on."""
    values = {
        "status": status,
        "request": None,
        "decided_at": at,
        "decided_by": by,
        "note": note,
    }
    query = sa.update(t).where(t.c.id == id, t.c.status == PENDING).values(values)
    machine_id = connection.execute(query.returning(t.c.machine_id)).scalar_one()
    e = executions.c
    connection.execute(
        sa.update(executions).where(e.id == id, e.status == WAITING).values(dict(execution))
    )
    who = f" by key {by}" if by else ""
    _record(connection, machine_id, at, f"{id}: {status}{who}")


def forget(connection: sa.Connection, before: datetime, limit: int = 5000) -> int:
    """Removes some of what was decided before that time."""
    query = sa.select(t.c.id).where(t.c.status != PENDING, t.c.decided_at < before).limit(limit)
    ids = [row[0] for row in connection.execute(query)]
    if ids:
        connection.execute(sa.delete(t).where(t.c.id.in_(ids)))
    return len(ids)


def forget_of(connection: sa.Connection, machine_id: str) -> int:
    """Removes what was decided beyond the newest 1000 of the machine: who asks and gives up must not fill the disk."""
    mine = t.c.machine_id == machine_id
    newest = sa.select(t.c.id).where(mine).order_by(t.c.created_at.desc(), t.c.id.desc())
    keep = [row[0] for row in connection.execute(newest.limit(KEEP_PER_MACHINE))]
    if len(keep) < KEEP_PER_MACHINE:
        return 0
    old = sa.delete(t).where(mine, t.c.status != PENDING, t.c.id.not_in(keep))
    return connection.execute(old).rowcount


def _record(connection: sa.Connection, machine_id: str, at: datetime, message: str) -> None:
    machines.record(connection, machine_id, at, "approval", message)
    machines.trim(connection, machine_id)
