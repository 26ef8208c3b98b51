"""Rows of templates."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from roost import ids
from roost.store.schema import machines
from roost.store.schema import templates as t


def visible(connection: sa.Connection, tenant: str) -> list[sa.RowMapping]:
    """The tenant's own and the shipped ones, by name; its own first where both have a name."""
    query = (
        sa.select(t)
        .where(sa.or_(t.c.tenant_id.is_(None), t.c.tenant_id == tenant))
        .order_by(t.c.name, t.c.tenant_id.is_(None))
    )
    return list(connection.execute(query).mappings())


def get(connection: sa.Connection, template_id: str) -> sa.RowMapping:
    return connection.execute(sa.select(t).where(t.c.id == template_id)).mappings().one()


def shipped(connection: sa.Connection, name: str) -> sa.RowMapping | None:
    query = sa.select(t).where(t.c.tenant_id.is_(None), t.c.name == name)
    return connection.execute(query).mappings().one_or_none()


def put_shipped(
    connection: sa.Connection, name: str, now: datetime, values: Mapping[str, Any]
) -> sa.RowMapping:
    """Makes or changes the row of a shipped template."""
    if shipped(connection, name) is None:
        connection.execute(
            sa.insert(t).values(
                {
                    "id": ids.new(),
                    "tenant_id": None,
                    "name": name,
                    "config": {},
                    "created_at": now,
                    "updated_at": now,
                    **values,
                }
            )
        )
    else:
        connection.execute(
            sa.update(t)
            .where(t.c.tenant_id.is_(None), t.c.name == name)
            .values({"updated_at": now, **values})
        )
    row_now = shipped(connection, name)
    assert row_now is not None
    return row_now


def abandon_builds(connection: sa.Connection, now: datetime, error: Mapping[str, Any]) -> int:
    """At daemon start: what was being built is not. An image that was ready before stays usable."""
    building = t.c.status == "building"
    count = connection.execute(
        sa.update(t)
        .where(building, t.c.digest.is_(None))
        .values(status="failed", error=dict(error), updated_at=now)
    ).rowcount
    return (
        count
        + connection.execute(
            sa.update(t).where(building).values(status="ready", error=dict(error), updated_at=now)
        ).rowcount
    )


def image_needed(connection: sa.Connection, digest: str) -> bool:
    """Whether a template, or a machine that has no disk yet, starts from this image."""
    of_template = sa.select(t.c.id).where(t.c.digest == digest).limit(1)
    of_machine = (
        sa.select(machines.c.id)
        .where(
            machines.c.image_digest == digest,
            machines.c.disk_ready.is_(False),
            machines.c.phase != "destroyed",
        )
        .limit(1)
    )
    return any(connection.execute(q).first() is not None for q in (of_template, of_machine))
