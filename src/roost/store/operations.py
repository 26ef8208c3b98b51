"""Rows of operations: what was begun and must be finished or undone."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from roost.store.schema import operations as t

OPEN = ("doing", "undoing", "stuck")


def insert(
    connection: sa.Connection,
    *,
    id: str,
    kind: str,
    machine_id: str,
    context: Mapping[str, Any],
    now: datetime,
) -> None:
    connection.execute(
        sa.insert(t).values(
            id=id,
            kind=kind,
            machine_id=machine_id,
            state="doing",
            step=0,
            context=dict(context),
            created_at=now,
            updated_at=now,
        )
    )


def update(connection: sa.Connection, id: str, now: datetime, **values: Any) -> None:
    connection.execute(sa.update(t).where(t.c.id == id).values(updated_at=now, **values))


def open_ones(
    connection: sa.Connection, machine_id: str | None = None, state: str | None = None
) -> list[sa.RowMapping]:
    """Those neither done nor undone, oldest first."""
    query = sa.select(t).where(t.c.state.in_(OPEN) if state is None else t.c.state == state)
    if machine_id is not None:
        query = query.where(t.c.machine_id == machine_id)
    return list(connection.execute(query.order_by(t.c.created_at, t.c.id)).mappings())


def supersede(connection: sa.Connection, machine_id: str, now: datetime) -> None:
    """A destroy takes over whatever was stuck on the machine."""
    connection.execute(
        sa.update(t)
        .where(t.c.machine_id == machine_id, t.c.state == "stuck")
        .values(state="done", updated_at=now)
    )


def forget_ended(connection: sa.Connection, before: datetime) -> int:
    query = sa.delete(t).where(t.c.state.not_in(OPEN), t.c.updated_at < before)
    return connection.execute(query).rowcount
