"""Rows of ports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from roost.store.schema import port_names as n
from roost.store.schema import ports as t


def every(connection: sa.Connection) -> list[sa.RowMapping]:
    return list(connection.execute(sa.select(t)).mappings())


def of_machine(connection: sa.Connection, machine_id: str) -> list[sa.RowMapping]:
    """By port."""
    query = sa.select(t).where(t.c.machine_id == machine_id).order_by(t.c.port)
    return list(connection.execute(query).mappings())


def of_host(connection: sa.Connection, host_id: str, port: int) -> sa.RowMapping | None:
    """The port whose host is called after this machine, whoever serves it."""
    query = sa.select(t).where(t.c.host_id == host_id, t.c.port == port)
    return connection.execute(query).mappings().one_or_none()


def insert(connection: sa.Connection, values: Mapping[str, Any]) -> None:
    """Raises sqlalchemy.exc.IntegrityError for a port the machine has already, and a name that is taken."""
    connection.execute(sa.insert(t), dict(values))


def update(connection: sa.Connection, port_id: str, values: Mapping[str, Any]) -> None:
    """Raises sqlalchemy.exc.IntegrityError for a name that is taken."""
    connection.execute(sa.update(t).where(t.c.id == port_id).values(**values))


def owner(connection: sa.Connection, name: str) -> str | None:
    """The tenant whose name it is, or was."""
    return connection.execute(sa.select(n.c.tenant_id).where(n.c.name == name)).scalar()


def names(connection: sa.Connection, tenant: str) -> int:
    """How many the tenant has or had."""
    query = sa.select(sa.func.count()).select_from(n).where(n.c.tenant_id == tenant)
    return connection.execute(query).scalar_one()


def claim(connection: sa.Connection, name: str, tenant: str) -> None:
    connection.execute(sa.insert(n), {"name": name, "tenant_id": tenant})


def delete(connection: sa.Connection, port_id: str) -> None:
    connection.execute(sa.delete(t).where(t.c.id == port_id))


def hand_over(connection: sa.Connection, machine_id: str, to: str) -> int:
    """The one machine's ports are the other's, whose own of the same numbers go; how many."""
    numbers = sa.select(t.c.port).where(t.c.machine_id == machine_id).scalar_subquery()
    connection.execute(sa.delete(t).where(t.c.machine_id == to, t.c.port.in_(numbers)))
    moved = sa.update(t).where(t.c.machine_id == machine_id).values(machine_id=to)
    return connection.execute(moved).rowcount


def forget(connection: sa.Connection, machine_id: str) -> None:
    """All of a machine that is gone."""
    connection.execute(sa.delete(t).where(t.c.machine_id == machine_id))
