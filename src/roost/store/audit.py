"""Rows of the audit log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from roost.store.schema import audit as t

Row = sa.RowMapping
_INSERT = sa.insert(t)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows; what is None does not matter."""

    tenant: str | None = None
    machine_id: str | None = None
    key_id: str | None = None
    action: str | None = None
    since: datetime | None = None
    until: datetime | None = None  # not itself


def insert(connection: sa.Connection, entries: Sequence[Mapping[str, Any]]) -> None:
    connection.execute(_INSERT, [dict(entry) for entry in entries])


def last(connection: sa.Connection) -> int:
    """The id of the newest; 0 where there is none."""
    return int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(t.c.id), 0))).scalar_one())


def before(connection: sa.Connection, wanted: Wanted, id: int | None, limit: int) -> list[Row]:
    """Newest first, from below ``id``."""
    query = _matching(wanted)
    if id is not None:
        query = query.where(t.c.id < id)
    return list(connection.execute(query.order_by(t.c.id.desc()).limit(limit)).mappings())


def reach(connection: sa.Connection, id: int, number: int) -> int:
    """The id of the last of the next so many rows after ``id``, whatever they are; ``id`` itself where there is none."""
    following = sa.select(t.c.id).where(t.c.id > id).order_by(t.c.id).limit(number).subquery()
    query = sa.select(sa.func.coalesce(sa.func.max(following.c.id), id))
    return int(connection.execute(query).scalar_one())


def after(connection: sa.Connection, wanted: Wanted, id: int, to: int, limit: int) -> list[Row]:
    """Oldest first, from above ``id`` up to ``to``."""
    query = _matching(wanted).where(t.c.id > id, t.c.id <= to).order_by(t.c.id).limit(limit)
    return list(connection.execute(query).mappings())


def forget(connection: sa.Connection, before: datetime, limit: int = 5000) -> int:
    """Removes the oldest of those from before that time."""
    query = sa.select(t.c.id).where(t.c.at < before).order_by(t.c.id).limit(limit)
    ids = [row[0] for row in connection.execute(query)]
    if ids:
        connection.execute(sa.delete(t).where(t.c.id <= ids[-1], t.c.at < before))
    return len(ids)


def _matching(wanted: Wanted) -> sa.Select[Any]:
    query = sa.select(t)
    for column, value in (
        (t.c.tenant_id, wanted.tenant),
        (t.c.machine_id, wanted.machine_id),
        (t.c.key_id, wanted.key_id),
        (t.c.action, wanted.action),
    ):
        if value is not None:
            query = query.where(column == value)
    if wanted.since is not None:
        query = query.where(t.c.at >= wanted.since)
    if wanted.until is not None:
        query = query.where(t.c.at < wanted.until)
    return query
