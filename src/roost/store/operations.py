"""Rows of operations: what was begun and must be finished or undone."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from roost.store.schema import operations as t

OPEN = ("doing", "undoing", "stuck")
_INSERT = sa.insert(t)
_UPDATE = sa.update(t).where(t.c.id == sa.bindparam("b_id"))


def insert(
    connection: sa.Connection,
    *,
    id: str,
    kind: str,
    machine_id: str,
    context: Mapping[str, Any],
    step: int,
    now: datetime,
) -> None:
    connection.execute(
        _INSERT,
        {
            "id": id,
            "kind": kind,
            "machine_id": machine_id,
            "state": "doing",
            "step": step,
            "context": dict(context),
            "created_at": now,
            "updated_at": now,
        },
    )


def update(connection: sa.Connection, id: str, now: datetime, **values: Any) -> None:
    connection.execute(_UPDATE, {"b_id": id, "updated_at": now, **values})


def open_ones(
    connection: sa.Connection, machine_id: str | None = None, state: str | None = None
) -> list[sa.RowMapping]:
    """Those neither done nor undone, oldest first."""
    query = sa.select(t).where(t.c.state.in_(OPEN) if state is None else t.c.state == state)
    if machine_id is not None:
        query = query.where(t.c.machine_id == machine_id)
    return list(connection.execute(query.order_by(t.c.created_at, t.c.id)).mappings())


def supersede(connection: sa.Connection, machine_id: str, now: datetime, state: str) -> None:
    """Closes what is open on the machine in that state: a destroy takes over what was stuck."""
    connection.execute(
        sa.update(t)
        .where(t.c.machine_id == machine_id, t.c.state == state)
        .values(state="done", updated_at=now)
    )


def idle_since(connection: sa.Connection, before: datetime) -> set[str]:
    """Machines with an operation under way that nobody has moved since then."""
    query = sa.select(t.c.machine_id).where(
        t.c.state.in_(("doing", "undoing")), t.c.updated_at < before
    )
    return {row[0] for row in connection.execute(query)}


def forget_ended(connection: sa.Connection, before: datetime) -> int:
    query = sa.delete(t).where(t.c.state.not_in(OPEN), t.c.updated_at < before)
    return connection.execute(query).rowcount
