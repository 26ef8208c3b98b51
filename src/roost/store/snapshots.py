"""Rows of snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from roost.store.keys import NOBODY
from roost.store.schema import machines
from roost.store.schema import snapshots as t

Row = sa.RowMapping
MADE = ("ready", "quarantined")


def insert(connection: sa.Connection, values: Mapping[str, Any]) -> None:
    """Raises sqlalchemy.exc.IntegrityError where the tenant has one of that name."""
    connection.execute(sa.insert(t), dict(values))


def get(connection: sa.Connection, snapshot_id: str) -> Row | None:
    query = sa.select(t).where(t.c.id == snapshot_id)
    return connection.execute(query).mappings().one_or_none()


def by_name(connection: sa.Connection, tenant: str, name: str) -> Row | None:
    query = sa.select(t).where(t.c.tenant_id == tenant, t.c.name == name)
    return connection.execute(query).mappings().one_or_none()


def update(connection: sa.Connection, snapshot_id: str, values: Mapping[str, Any]) -> None:
    connection.execute(sa.update(t).where(t.c.id == snapshot_id).values(**values))


def set_aside(connection: sa.Connection, snapshot_id: str, why: str) -> None:
    """That its memory cannot be gone on from: a user's is quarantined and says why, nobody's (a bake) forgets it."""
    row = get(connection, snapshot_id)
    if row is None or row["for_fork"] or row["status"] != "ready":
        return
    if row["tenant_id"] == NOBODY:
        update(connection, snapshot_id, {"memory_image": None})
        return
    machine = {**row["machine"], "quarantined": why[:400]}
    update(connection, snapshot_id, {"status": "quarantined", "machine": machine})


def delete(connection: sa.Connection, snapshot_id: str) -> None:
    connection.execute(sa.delete(t).where(t.c.id == snapshot_id))


def page(
    connection: sa.Connection,
    tenant: str,
    *,
    machine_id: str | None,
    limit: int,
    after: tuple[datetime, str] | None,
) -> list[Row]:
    """Newest first, those that are made and not of a fork."""
    query = sa.select(t).where(t.c.tenant_id == tenant, t.c.status.in_(MADE), ~t.c.for_fork)
    if machine_id is not None:
        query = query.where(t.c.machine_id == machine_id)
    if after is not None:
        at = sa.bindparam(None, after[0], t.c.created_at.type)
        place = sa.tuple_(at, sa.bindparam(None, after[1]))
        query = query.where(sa.tuple_(t.c.created_at, t.c.id) < place)
    query = query.order_by(t.c.created_at.desc(), t.c.id.desc()).limit(limit)
    return list(connection.execute(query).mappings())


def count(connection: sa.Connection, tenant: str) -> int:
    query = sa.select(sa.func.count()).select_from(t).where(t.c.tenant_id == tenant, ~t.c.for_fork)
    return int(connection.execute(query).scalar_one())


def ids(connection: sa.Connection) -> set[str]:
    return {row[0] for row in connection.execute(sa.select(t.c.id))}


def of_nobody(connection: sa.Connection) -> list[str]:
    return list(connection.execute(sa.select(t.c.id).where(t.c.tenant_id == NOBODY)).scalars())


def memory_images(connection: sa.Connection) -> list[dict[str, Any]]:
    """Of snapshots and of machines asleep or about to start."""
    found = []
    for column in (t.c.memory_image, machines.c.memory_image):
        query = sa.select(column).where(column.is_not(None))
        found += [row[0] for row in connection.execute(query) if row[0] is not None]
    return found


def users(connection: sa.Connection, snapshot_id: str) -> list[str]:
    """Machines that may still read it: whose disk is yet to be cloned from it, or whose memory is in it."""
    memory = machines.c.memory_image["snapshot_id"].as_string() == snapshot_id
    disk = sa.and_(machines.c.snapshot_id == snapshot_id, ~machines.c.disk_ready)
    query = sa.select(machines.c.id).where(machines.c.phase != "destroyed", sa.or_(memory, disk))
    return [row[0] for row in connection.execute(query)]


def children(connection: sa.Connection, snapshot_id: str) -> list[str]:
    """Machines that were made from it, done or on their way."""
    mine = sa.and_(machines.c.snapshot_id == snapshot_id, machines.c.phase != "destroyed")
    return [row[0] for row in connection.execute(sa.select(machines.c.id).where(mine))]


def of_forks(connection: sa.Connection, whole: bool = True) -> list[str]:
    """Made for forks; ``whole``: those alone that are."""
    query = sa.select(t.c.id).where(t.c.for_fork)
    if whole:
        query = query.where(t.c.status == "ready")
    return [row[0] for row in connection.execute(query)]
