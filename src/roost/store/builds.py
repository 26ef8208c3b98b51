"""Rows of builds."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from roost.store.schema import builds as t

Row = sa.RowMapping
OPEN = ("waiting", "queued", "running")


def insert(connection: sa.Connection, values: Mapping[str, Any]) -> None:
    connection.execute(sa.insert(t), dict(values))


def update(connection: sa.Connection, build_id: str, values: Mapping[str, Any]) -> None:
    connection.execute(sa.update(t).where(t.c.id == build_id).values(**values))


def get(connection: sa.Connection, build_id: str) -> Row | None:
    query = sa.select(t).where(t.c.id == build_id)
    return connection.execute(query).mappings().one_or_none()


def open_ones(connection: sa.Connection, tenant: str | None = None) -> list[Row]:
    query = sa.select(t).where(t.c.status.in_(OPEN)).order_by(t.c.created_at)
    if tenant is not None:
        query = query.where(t.c.tenant_id == tenant)
    return list(connection.execute(query).mappings())


def page(
    connection: sa.Connection,
    tenant: str,
    *,
    status: str | None,
    limit: int,
    after: tuple[datetime, str] | None,
) -> list[Row]:
    """Newest first."""
    query = sa.select(t).where(t.c.tenant_id == tenant)
    if status is not None:
        query = query.where(t.c.status == status)
    if after is not None:
        at = sa.bindparam(None, after[0], t.c.created_at.type)
        place = sa.tuple_(at, sa.bindparam(None, after[1]))
        query = query.where(sa.tuple_(t.c.created_at, t.c.id) < place)
    query = query.order_by(t.c.created_at.desc(), t.c.id.desc()).limit(limit)
    return list(connection.execute(query).mappings())


def ended_before(connection: sa.Connection, when: datetime, tenant: str | None = None) -> list[str]:
    query = sa.select(t.c.id).where(t.c.ended_at < when)
    if tenant is not None:
        query = query.where(t.c.tenant_id == tenant)
    return list(connection.execute(query).scalars())


def ids(connection: sa.Connection) -> set[str]:
    return set(connection.execute(sa.select(t.c.id)).scalars())


def delete(connection: sa.Connection, build_id: str) -> None:
    connection.execute(sa.delete(t).where(t.c.id == build_id))
