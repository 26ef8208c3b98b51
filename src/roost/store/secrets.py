"""Rows of secrets and of machines' authorities. What is sealed here only ``roost.secrets.vault`` opens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from roost.store.schema import machine_authorities as a
from roost.store.schema import secrets as t


def of_machine(connection: sa.Connection, machine_id: str) -> list[sa.RowMapping]:
    """By name."""
    query = sa.select(t).where(t.c.machine_id == machine_id).order_by(t.c.name)
    return list(connection.execute(query).mappings())


def everything(connection: sa.Connection) -> list[sa.RowMapping]:
    return list(connection.execute(sa.select(t).order_by(t.c.machine_id, t.c.name)).mappings())


def put(connection: sa.Connection, row: Mapping[str, Any]) -> None:
    mine = sa.and_(t.c.machine_id == row["machine_id"], t.c.name == row["name"])
    connection.execute(sa.delete(t).where(mine))
    connection.execute(sa.insert(t), dict(row))


def delete(connection: sa.Connection, machine_id: str, name: str) -> bool:
    """Whether there was one."""
    gone = connection.execute(
        sa.delete(t).where(t.c.machine_id == machine_id, t.c.name == name)
    ).rowcount
    return gone > 0


def authority(connection: sa.Connection, machine_id: str) -> sa.RowMapping | None:
    query = sa.select(a).where(a.c.machine_id == machine_id)
    return connection.execute(query).mappings().one_or_none()


def authorities(connection: sa.Connection) -> list[sa.RowMapping]:
    return list(connection.execute(sa.select(a)).mappings())


def put_authority(connection: sa.Connection, row: Mapping[str, Any]) -> None:
    connection.execute(sa.insert(a), dict(row))


def delete_authority(connection: sa.Connection, machine_id: str) -> None:
    connection.execute(sa.delete(a).where(a.c.machine_id == machine_id))


def forget(connection: sa.Connection, machine_id: str) -> None:
    """All of a machine's."""
    connection.execute(sa.delete(t).where(t.c.machine_id == machine_id))
    delete_authority(connection, machine_id)
