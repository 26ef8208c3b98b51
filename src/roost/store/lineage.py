"""Who came from whom. A machine's row names its parent; what is left of one long destroyed is a line here, for as
long as others that came of it are known."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from roost.store.schema import ancestors as t
from roost.store.schema import machines, snapshots

KEPT = 1000  # lines of a tenant; the oldest go
_LINE = ("id", "tenant_id", "parent_id", "from_snapshot_id", "name", "created_at")


def remember(connection: sa.Connection, ids: Sequence[str]) -> None:
    """A line of each of these machines that others came of; their rows are about to go."""
    m = machines.c
    mothers = sa.or_(
        m.id.in_(sa.select(m.parent_id).where(m.parent_id.is_not(None), m.id.not_in(ids))),
        m.id.in_(sa.select(t.c.parent_id).where(t.c.parent_id.is_not(None))),
        m.id.in_(sa.select(snapshots.c.machine_id)),
    )
    columns = [*(m[name] for name in _LINE), m.last_transition_at]
    lines = sa.select(*columns).where(m.id.in_(ids), mothers)
    connection.execute(sa.insert(t).from_select([*_LINE, "destroyed_at"], lines))


def forget(connection: sa.Connection) -> None:
    """Lines that nothing known came of, one generation a call, and those beyond what is kept of a tenant."""
    c = t.c
    if connection.execute(sa.select(c.id).limit(1)).first() is None:
        return
    younger = t.alias()
    mothers = sa.union(
        sa.select(machines.c.parent_id).where(machines.c.parent_id.is_not(None)),
        sa.select(younger.c.parent_id).where(younger.c.parent_id.is_not(None)),
        sa.select(snapshots.c.machine_id),
    )
    connection.execute(sa.delete(t).where(c.id.not_in(mothers)))
    count = sa.func.count()
    many = sa.select(c.tenant_id).group_by(c.tenant_id).having(count > KEPT)
    for tenant in list(connection.execute(many).scalars()):
        newest = sa.select(c.id).where(c.tenant_id == tenant).order_by(c.created_at.desc(), c.id)
        kept = list(connection.execute(newest.limit(KEPT)).scalars())
        connection.execute(sa.delete(t).where(c.tenant_id == tenant, c.id.not_in(kept)))


def of_tenant(
    connection: sa.Connection, tenant: str, limit: int
) -> tuple[list[sa.RowMapping], list[sa.RowMapping], list[sa.RowMapping]]:
    """(machines, those destroyed lately too; lines; snapshots that users made), oldest first, at most so many each."""
    m, s = machines.c, snapshots.c
    shown = (*_LINE, "key", "phase", "tier", "replaces")
    found = []
    for query, columns in (
        (sa.select(*(m[name] for name in shown)).where(m.tenant_id == tenant), m),
        (sa.select(t).where(t.c.tenant_id == tenant), t.c),
        (
            sa.select(s.id, s.machine_id, s.name, s.created_at).where(
                s.tenant_id == tenant, ~s.for_fork, s.status.in_(("ready", "quarantined"))
            ),
            s,
        ),
    ):
        rows = connection.execute(query.order_by(columns.created_at, columns.id).limit(limit))
        found.append(list(rows.mappings()))
    return found[0], found[1], found[2]
