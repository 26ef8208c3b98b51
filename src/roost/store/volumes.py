"""Rows of volumes, and of who has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from roost.store.schema import volume_attachments as a
from roost.store.schema import volumes as t

Row = sa.RowMapping


def insert(connection: sa.Connection, values: Mapping[str, Any]) -> None:
    """Raises sqlalchemy.exc.IntegrityError where the tenant has one of that name."""
    connection.execute(sa.insert(t), dict(values))


def get(connection: sa.Connection, volume_id: str) -> Row | None:
    return connection.execute(sa.select(t).where(t.c.id == volume_id)).mappings().one_or_none()


def find(connection: sa.Connection, tenant: str, which: str) -> Row | None:
    """The tenant's, by id or name."""
    query = sa.select(t).where(t.c.tenant_id == tenant, sa.or_(t.c.id == which, t.c.name == which))
    found = connection.execute(query).mappings().all()
    return next((row for row in found if row["id"] == which), found[0] if found else None)


def update(connection: sa.Connection, volume_id: str, values: Mapping[str, Any]) -> None:
    connection.execute(sa.update(t).where(t.c.id == volume_id).values(**values))


def delete(connection: sa.Connection, volume_id: str) -> None:
    connection.execute(sa.delete(t).where(t.c.id == volume_id))


def page(
    connection: sa.Connection, tenant: str, *, limit: int, after: tuple[datetime, str] | None
) -> list[Row]:
    """Newest first, those that are made."""
    query = sa.select(t).where(t.c.tenant_id == tenant, t.c.status == "ready")
    if after is not None:
        at = sa.bindparam(None, after[0], t.c.created_at.type)
        place = sa.tuple_(at, sa.bindparam(None, after[1]))
        query = query.where(sa.tuple_(t.c.created_at, t.c.id) < place)
    query = query.order_by(t.c.created_at.desc(), t.c.id.desc()).limit(limit)
    return list(connection.execute(query).mappings())


def count(connection: sa.Connection, tenant: str) -> int:
    query = sa.select(sa.func.count()).select_from(t).where(t.c.tenant_id == tenant)
    return int(connection.execute(query).scalar_one())


def states(connection: sa.Connection) -> dict[str, str]:
    """The status of every volume there is, by id."""
    return {row[0]: row[1] for row in connection.execute(sa.select(t.c.id, t.c.status))}


# --- who has them ---------------------------------------------------------------------------------


def attach(
    connection: sa.Connection,
    volume_id: str,
    machine_id: str,
    path: str,
    read_only: bool,
    now: datetime,
) -> None:
    values = {"volume_id": volume_id, "machine_id": machine_id, "path": path}
    connection.execute(sa.insert(a), {**values, "read_only": read_only, "created_at": now})


def release(connection: sa.Connection, machine_id: str) -> None:
    """All that a machine has."""
    connection.execute(sa.delete(a).where(a.c.machine_id == machine_id))


def attachments(connection: sa.Connection, volume_ids: Iterable[str]) -> list[Row]:
    """Of these volumes, oldest first."""
    query = sa.select(a).where(a.c.volume_id.in_(list(volume_ids)))
    return list(connection.execute(query.order_by(a.c.created_at, a.c.machine_id)).mappings())
