"""Rows of what is used: meters (what is being counted) and sums by day."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from roost.store.keys import NOBODY
from roost.store.schema import machines, meters, snapshots, usage, usage_totals

Row = sa.RowMapping
SUMS = ("vcpu_milli_ms", "memory_mib_ms", "storage_kib_ms", "egress_bytes")
MOST = 1000  # families measured in one go
_HALF = (
    2**31
)  # sums are added up in halves: those of many machines and days outgrow a 64-bit integer

_GET = sa.select(meters).where(meters.c.id == sa.bindparam("b_id"))
_INSERT = sa.insert(meters)
_UPDATE = sa.update(meters).where(meters.c.id == sa.bindparam("b_id"))
_DELETE = sa.delete(meters).where(meters.c.id == sa.bindparam("b_id"))
_ADD = (
    sa.update(usage)
    .where(
        usage.c.tenant_id == sa.bindparam("b_tenant"),
        usage.c.day == sa.bindparam("b_day"),
        usage.c.machine_id == sa.bindparam("b_machine"),
        usage.c.key_id == sa.bindparam("b_key"),
    )
    .values({name: usage.c[name] + sa.bindparam(f"b_{name}") for name in SUMS})
)
_FIRST = sa.insert(usage)
_TOTAL = (
    sa.update(usage_totals)
    .where(usage_totals.c.id == 1)
    .values(
        {
            name: usage_totals.c[name] + sa.bindparam(f"b_{name}")
            for name in ("vcpu_seconds", "memory_gib_seconds", "storage_gib_hours", "egress_bytes")
        }
    )
)


def get(connection: sa.Connection, subject: str) -> Row | None:
    return connection.execute(_GET, {"b_id": subject}).mappings().one_or_none()


def insert(connection: sa.Connection, values: Mapping[str, Any]) -> None:
    connection.execute(_INSERT, dict(values))


def update(connection: sa.Connection, subject: str, values: Mapping[str, Any]) -> None:
    connection.execute(_UPDATE, {"b_id": subject, **values})


def delete(connection: sa.Connection, subject: str) -> None:
    connection.execute(_DELETE, {"b_id": subject})


def add(connection: sa.Connection, meter: Mapping[Any, Any], day: str, sums: Iterable[int]) -> None:
    """Onto the sums of the meter's machine on that day, and onto those of the host."""
    named = dict(zip(SUMS, sums, strict=True))
    whose = {
        "tenant": meter["tenant_id"],
        "day": day,
        "machine": meter["machine_id"],
        "key": meter["key_id"],
    }
    bound = {f"b_{name}": value for name, value in (whose | named).items()}
    if connection.execute(_ADD, bound).rowcount == 0:
        columns = {
            "tenant_id": whose["tenant"],
            "machine_id": whose["machine"],
            "key_id": whose["key"],
        }
        connection.execute(_FIRST, {**columns, "day": day, **named})
    total = {
        "b_vcpu_seconds": named["vcpu_milli_ms"] / 1e6,
        "b_memory_gib_seconds": named["memory_mib_ms"] / (1024 * 1e3),
        "b_storage_gib_hours": named["storage_kib_ms"] / (2**20 * 3.6e6),
        "b_egress_bytes": float(named["egress_bytes"]),
    }
    if connection.execute(_TOTAL, total).rowcount == 0:
        connection.execute(
            sa.insert(usage_totals), {"id": 1, **{k[2:]: v for k, v in total.items()}}
        )


def totals(connection: sa.Connection) -> dict[str, float]:
    """Of this host, ever."""
    row = connection.execute(sa.select(usage_totals)).mappings().one_or_none()
    names = [c.name for c in usage_totals.c if c.name != "id"]
    return {name: 0.0 if row is None else float(row[name]) for name in names}


def holding(connection: sa.Connection) -> list[Row]:
    """Meters of what holds memory now."""
    query = sa.select(meters).where(meters.c.memory_mib > 0)
    return list(connection.execute(query).mappings())


def of_tenant(connection: sa.Connection, tenant: str) -> list[Row]:
    query = sa.select(meters).where(meters.c.tenant_id == tenant)
    return list(connection.execute(query).mappings())


def of_machine(
    connection: sa.Connection, tenant: str, machine_id: str, days: Iterable[str]
) -> list[tuple[int, ...]]:
    """The sums of those days."""
    query = sa.select(*(usage.c[name] for name in SUMS)).where(
        usage.c.tenant_id == tenant, usage.c.day.in_(list(days)), usage.c.machine_id == machine_id
    )
    return [tuple(map(int, row)) for row in connection.execute(query)]


def in_families(connection: sa.Connection, families: Iterable[str]) -> list[Row]:
    """Oldest first."""
    query = sa.select(meters).where(meters.c.family.in_(list(families)))
    return list(connection.execute(query.order_by(meters.c.born_ms, meters.c.id)).mappings())


def unmeasured(connection: sa.Connection) -> set[str]:
    """Families with one whose storage changed, or was never measured."""
    query = sa.select(meters.c.family).where(meters.c.measured_ms.is_(None)).distinct()
    return set(connection.execute(query.limit(MOST)).scalars())


def due(connection: sa.Connection, before_ms: int, limit: int) -> set[str]:
    """Families of those that hold memory and were measured before that, and of ``limit`` more, the longest ago
    first."""
    m = meters.c
    must = sa.select(m.family).where(m.memory_mib > 0, m.measured_ms <= before_ms).distinct()
    more = sa.select(m.family).where(m.measured_ms.is_not(None)).order_by(m.measured_ms)
    found = set(connection.execute(must.limit(MOST)).scalars())
    return found | set(connection.execute(more.limit(limit)).scalars())


def changed(connection: sa.Connection, subject: str) -> None:
    """Its storage is looked at in the next round."""
    connection.execute(_UPDATE, {"b_id": subject, "measured_ms": None})


def without_meter(connection: sa.Connection, limit: int) -> tuple[list[Row], list[Row]]:
    """Machines with a disk and snapshots that somebody has and nobody counts."""
    of_machines = (
        sa.select(machines)
        .outerjoin(meters, meters.c.id == machines.c.id)
        .where(
            meters.c.id.is_(None),
            machines.c.phase != "destroyed",
            machines.c.tenant_id != NOBODY,
            machines.c.disk_ready,
        )
    )
    of_snapshots = (
        sa.select(snapshots)
        .outerjoin(meters, meters.c.id == snapshots.c.id)
        .where(
            meters.c.id.is_(None),
            snapshots.c.status == "ready",
            ~snapshots.c.for_fork,
            snapshots.c.tenant_id != NOBODY,
        )
    )
    return (
        list(connection.execute(of_machines.limit(limit)).mappings()),
        list(connection.execute(of_snapshots.limit(limit)).mappings()),
    )


def has_missing(connection: sa.Connection) -> bool:
    return any(without_meter(connection, 1))


def report(
    connection: sa.Connection, tenant: str, first: str, last: str, by: Iterable[str], limit: int
) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    """(group, sums) of these days, both included, ``limit`` of them at most; ``by``: columns."""
    groups = [usage.c[name] for name in by]
    halves = [
        each
        for name in SUMS
        for each in (sa.func.sum(usage.c[name] // _HALF), sa.func.sum(usage.c[name] % _HALF))
    ]
    query = (
        sa.select(*groups, *halves)
        .where(usage.c.tenant_id == tenant, usage.c.day >= first, usage.c.day <= last)
        .group_by(*groups)
        .limit(limit)
    )
    found = []
    for row in connection.execute(query):
        parts = [int(each or 0) for each in row[len(groups) :]]
        sums = tuple(parts[i] * _HALF + parts[i + 1] for i in range(0, len(parts), 2))
        found.append((tuple(row[: len(groups)]), sums))
    return found
