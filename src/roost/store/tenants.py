"""Rows of tenants, and what each has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa

from roost.store.keys import NOBODY
from roost.store.schema import (
    ancestors,
    approvals,
    executions,
    idempotency,
    keys,
    machine_events,
    machines,
    operations,
    snapshots,
    ssh_keys,
    templates,
    volumes,
)
from roost.store.schema import tenants as t

Row = sa.RowMapping

# Built once: making a statement costs as much as running it.
_QUOTAS = sa.select(t.c.quotas).where(t.c.id == sa.bindparam("b_id"))
_AWAKE = machines.c.phase.in_(sa.bindparam("b_phases", expanding=True))
_USED = sa.select(
    sa.func.count(),
    sa.func.coalesce(sa.func.sum(sa.case((_AWAKE, 1), else_=0)), 0),
    sa.func.coalesce(sa.func.sum(sa.case((_AWAKE, machines.c.vcpu), else_=0.0)), 0.0),
    sa.func.coalesce(sa.func.sum(sa.case((_AWAKE, machines.c.memory_mib), else_=0)), 0),
    sa.func.coalesce(sa.func.sum(machines.c.storage_gib), 0),
).where(
    machines.c.tenant_id == sa.bindparam("b_tenant"),
    machines.c.phase != "destroyed",
    machines.c.id != sa.bindparam("b_without"),
)
_KEPT = sa.select(
    sa.func.coalesce(sa.func.sum(snapshots.c.machine["storage_gib"].as_integer()), 0)
).where(snapshots.c.tenant_id == sa.bindparam("b_tenant"), ~snapshots.c.for_fork)
_VOLUMES = sa.select(sa.func.coalesce(sa.func.sum(volumes.c.size_gib), 0)).where(
    volumes.c.tenant_id == sa.bindparam("b_tenant")
)


def insert(connection: sa.Connection, values: Mapping[str, Any]) -> None:
    """Raises sqlalchemy.exc.IntegrityError for a name in use."""
    connection.execute(sa.insert(t), dict(values))


def find(connection: sa.Connection, which: str) -> Row | None:
    """By id or name; nobody is not to be found."""
    query = sa.select(t).where(sa.or_(t.c.id == which, t.c.name == which), t.c.id != NOBODY)
    found = connection.execute(query).mappings().all()
    return next((row for row in found if row["id"] == which), found[0] if found else None)


def every(connection: sa.Connection) -> list[Row]:
    """Oldest first."""
    query = sa.select(t).where(t.c.id != NOBODY).order_by(t.c.created_at, t.c.id)
    return list(connection.execute(query).mappings())


def update(connection: sa.Connection, tenant: str, values: Mapping[str, Any]) -> None:
    connection.execute(sa.update(t).where(t.c.id == tenant).values(**values))


def quotas(connection: sa.Connection, tenant: str) -> dict[str, Any] | None:
    """None where there is no such tenant."""
    row = connection.execute(_QUOTAS, {"b_id": tenant}).one_or_none()
    return None if row is None else dict(row[0] or {})


def isolation(connection: sa.Connection, tenant: str) -> str | None:
    """The least of its machines; None: nothing of its own."""
    value = connection.execute(sa.select(t.c.isolation).where(t.c.id == tenant)).scalar()
    return None if value is None else str(value)


def used(
    connection: sa.Connection, tenant: str, awake: Collection[str], without: str | None = None
) -> dict[str, Any]:
    """What its machines take, but for one: ``machines``, ``awake_machines``, ``vcpu`` and ``memory_mib`` of those in
    the phases ``awake``, ``storage_gib`` of all, of its snapshots and its volumes."""
    values = {"b_tenant": tenant, "b_phases": sorted(awake), "b_without": without or ""}
    number, up, vcpu, memory, storage = connection.execute(_USED, values).one()
    kept = connection.execute(_KEPT, {"b_tenant": tenant}).scalar_one()
    kept += connection.execute(_VOLUMES, {"b_tenant": tenant}).scalar_one()
    return {
        "machines": int(number),
        "awake_machines": int(up),
        "vcpu": float(vcpu),
        "memory_mib": int(memory),
        "storage_gib": int(storage) + int(kept),
    }


def holds(connection: sa.Connection, tenant: str) -> dict[str, int]:
    """What must be gone before the tenant can be, by its name; what there is none of is left out."""
    found = {}
    for name, table, more in (
        ("machines", machines, machines.c.phase != "destroyed"),
        ("snapshots", snapshots, sa.true()),
        ("volumes", volumes, sa.true()),
        ("templates", templates, sa.true()),
    ):
        query = sa.select(sa.func.count()).select_from(table).where(table.c.tenant_id == tenant)
        if number := int(connection.execute(query.where(more)).scalar_one()):
            found[name] = number
    return found


def delete(connection: sa.Connection, tenant: str) -> None:
    """With its keys and what is left of its destroyed machines."""
    gone = sa.select(machines.c.id).where(machines.c.tenant_id == tenant)
    for table in (machine_events, executions, approvals, operations):
        connection.execute(sa.delete(table).where(table.c.machine_id.in_(gone)))
    for table in (machines, ancestors, keys, ssh_keys, idempotency):
        connection.execute(sa.delete(table).where(table.c.tenant_id == tenant))
    connection.execute(sa.delete(t).where(t.c.id == tenant))
