"""Rows of machines and of their lives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from roost.store import lineage
from roost.store.keys import NOBODY
from roost.store.schema import approvals, executions, keys, machine_events, operations, ports
from roost.store.schema import machines as t

EVENTS_PER_MACHINE = 200
Row = sa.RowMapping

# Built once: making a statement costs as much as running it.
_GET = sa.select(t).where(t.c.id == sa.bindparam("b_id"))
_BY_KEY = sa.select(t).where(
    t.c.tenant_id == sa.bindparam("b_tenant"), t.c.key == sa.bindparam("b_key")
)
_UPDATE = sa.update(t).where(t.c.id == sa.bindparam("b_id"))
_INSERT = sa.insert(t)
_RECORD = sa.insert(machine_events)
_AWAKE = t.c.phase.in_(sa.bindparam("b_phases", expanding=True))
_FROZEN = sa.and_(t.c.phase == "sleeping", t.c.tier == "frozen")
_HELD = sa.select(
    sa.func.coalesce(sa.func.sum(sa.case((_FROZEN, 0.0), else_=t.c.vcpu)), 0.0),
    sa.func.coalesce(sa.func.sum(t.c.memory_mib), 0),
    sa.func.count(),
).where(sa.or_(_AWAKE, _FROZEN), t.c.id != sa.bindparam("b_without"))
_YIELDING = _HELD.where(sa.or_(_FROZEN, t.c.tenant_id == NOBODY))


def insert(connection: sa.Connection, values: Mapping[str, Any]) -> None:
    """Raises sqlalchemy.exc.IntegrityError where the tenant has a living machine of that key."""
    connection.execute(_INSERT, dict(values))


def get(connection: sa.Connection, machine_id: str) -> Row | None:
    return connection.execute(_GET, {"b_id": machine_id}).mappings().one_or_none()


def by_key(connection: sa.Connection, tenant: str, key: str) -> Row | None:
    values = {"b_tenant": tenant, "b_key": key}
    return connection.execute(_BY_KEY, values).mappings().one_or_none()


def by_name(connection: sa.Connection, tenant: str, name: str) -> list[Row]:
    """Two at most of those that live: a name need not be one machine's."""
    query = sa.select(t).where(t.c.tenant_id == tenant, t.c.name == name, t.c.phase != "destroyed")
    return list(connection.execute(query.limit(2)).mappings())


def update(connection: sa.Connection, machine_id: str, values: Mapping[str, Any]) -> None:
    connection.execute(_UPDATE, {"b_id": machine_id, **values})


def living(connection: sa.Connection) -> list[Row]:
    """Oldest first, and of each only what tells where it stands: there may be very many."""
    c = t.c
    query = sa.select(
        c.id,
        c.phase,
        c.tier,
        c.slot_index,
        c.disk_ready,
        c.memory_image,
        c.brings_tree,
        c.isolation,
    )
    query = query.where(c.phase != "destroyed").order_by(c.created_at, c.id)
    return list(connection.execute(query).mappings())


def living_of(connection: sa.Connection, tenant: str) -> list[str]:
    query = sa.select(t.c.id).where(t.c.tenant_id == tenant, t.c.phase != "destroyed")
    return list(connection.execute(query).scalars())


def whose(connection: sa.Connection) -> list[tuple[str, str]]:
    """(id, tenant) of those that live, the newest first."""
    query = sa.select(t.c.id, t.c.tenant_id).where(t.c.phase != "destroyed")
    return [(row[0], row[1]) for row in connection.execute(query.order_by(t.c.created_at.desc()))]


def page(
    connection: sa.Connection,
    tenant: str,
    *,
    phases: Sequence[str],
    key: str | None,
    labels: Mapping[str, str],
    template: str | None,
    limit: int,
    after: tuple[datetime, str] | None,
    parent: str | None = None,
    since: datetime | None = None,
    oldest_first: bool = False,
) -> list[Row]:
    """``phases``: any of them; none: those that live."""
    query = sa.select(t).where(t.c.tenant_id == tenant)
    query = query.where(t.c.phase.in_(phases) if phases else t.c.phase != "destroyed")
    if since is not None:
        query = query.where(t.c.created_at >= since)
    if key is not None:
        query = query.where(t.c.key == key)
    if template is not None:
        query = query.where(t.c.template == template)
    if parent is not None:
        query = query.where(t.c.parent_id == parent)
    for name, value in labels.items():
        query = query.where(t.c.labels[name].as_string() == value)
    if after is not None:
        at = sa.bindparam(None, after[0], t.c.created_at.type)
        place = sa.tuple_(at, sa.bindparam(None, after[1]))
        here = sa.tuple_(t.c.created_at, t.c.id)
        query = query.where(here > place if oldest_first else here < place)
    order = (t.c.created_at, t.c.id)
    query = query.order_by(*(order if oldest_first else (each.desc() for each in order)))
    query = query.limit(limit)
    return list(connection.execute(query).mappings())


def held(
    connection: sa.Connection, phases: Iterable[str], without: str | None = None
) -> tuple[float, int, int]:
    """(vcpu, memory_mib, machines) summed over the machines in these phases, but for one; frozen ones
    hold memory and no CPU."""
    row = connection.execute(_HELD, {"b_phases": sorted(phases), "b_without": without or ""}).one()
    return float(row[0]), int(row[1]), int(row[2])


def yielding(
    connection: sa.Connection, phases: Iterable[str], without: str | None = None
) -> tuple[float, int]:
    """(vcpu, memory_mib) of what is ``held`` that can be given up for somebody: of those frozen and of nobody's."""
    values = {"b_phases": sorted(phases), "b_without": without or ""}
    row = connection.execute(_YIELDING, values).one()
    return float(row[0]), int(row[1])


def astray(connection: sa.Connection) -> list[tuple[str, str]]:
    """(id, desired state) of those that failed on their way out or to sleep and were left there."""
    stuck = sa.and_(t.c.desired_state == "sleeping", ~t.c.retryable)
    query = sa.select(t.c.id, t.c.desired_state).where(
        t.c.phase == "failed", sa.or_(t.c.desired_state == "destroyed", stuck)
    )
    return [(row[0], row[1]) for row in connection.execute(query)]


def expiring(connection: sa.Connection) -> list[tuple[str, datetime]]:
    query = sa.select(t.c.id, t.c.expires_at).where(
        t.c.expires_at.is_not(None), t.c.phase.not_in(["destroyed", "destroying"])
    )
    return [(row[0], row[1]) for row in connection.execute(query)]


def record(
    connection: sa.Connection, machine_id: str, at: datetime, event: str, message: str
) -> None:
    """One line of the machine's life."""
    values = {"machine_id": machine_id, "at": at, "event": event, "message": message[:500]}
    connection.execute(_RECORD, values)


def phase(connection: sa.Connection, machine_id: str) -> str | None:
    return connection.execute(sa.select(t.c.phase).where(t.c.id == machine_id)).scalar()


def forget_events(connection: sa.Connection, machine_id: str) -> None:
    """All lines of the machine's life so far."""
    e = machine_events
    connection.execute(sa.delete(e).where(e.c.machine_id == machine_id))


def trim(connection: sa.Connection, machine_id: str) -> None:
    """Keeps the last 200 lines of the machine's life."""
    e = machine_events.c
    oldest = connection.execute(
        sa.select(e.id)
        .where(e.machine_id == machine_id)
        .order_by(e.id.desc())
        .offset(EVENTS_PER_MACHINE)
        .limit(1)
    ).scalar()
    if oldest is not None:
        connection.execute(
            sa.delete(machine_events).where(e.machine_id == machine_id, e.id <= oldest)
        )


def events(connection: sa.Connection, machine_id: str) -> list[Row]:
    e = machine_events.c
    query = (
        sa.select(e.at, e.event, e.message)
        .where(e.machine_id == machine_id)
        .order_by(e.id.desc())
        .limit(EVENTS_PER_MACHINE)
    )
    return list(reversed(connection.execute(query).mappings().all()))


def forget_destroyed(connection: sa.Connection, before: datetime, limit: int = 200) -> int:
    """Removes what is left of machines destroyed before that time."""
    query = (
        sa.select(t.c.id)
        .where(t.c.phase == "destroyed", t.c.last_transition_at < before)
        .limit(limit)
    )
    ids = [row[0] for row in connection.execute(query)]
    if ids:
        lineage.remember(connection, ids)
        for table in (machine_events, executions, approvals, operations, keys, ports):
            connection.execute(sa.delete(table).where(table.c.machine_id.in_(ids)))
        connection.execute(sa.delete(t).where(t.c.id.in_(ids)))
    lineage.forget(connection)
    return len(ids)
