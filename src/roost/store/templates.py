"""Rows of templates."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from roost import ids
from roost.store.keys import NOBODY
from roost.store.schema import builds, layers, machines, snapshots
from roost.store.schema import template_tags as tags
from roost.store.schema import templates as t

Row = sa.RowMapping


def visible(connection: sa.Connection, tenant: str) -> list[sa.RowMapping]:
    """The tenant's own and the shipped ones, by name; its own first where both have a name."""
    query = (
        sa.select(t)
        .where(sa.or_(t.c.tenant_id.is_(None), t.c.tenant_id == tenant))
        .order_by(t.c.name, t.c.tenant_id.is_(None))
    )
    return list(connection.execute(query).mappings())


def get(connection: sa.Connection, template_id: str) -> Row:
    return connection.execute(sa.select(t).where(t.c.id == template_id)).mappings().one()


def find(connection: sa.Connection, tenant: str, template_id: str) -> Row | None:
    """The tenant's own, or a shipped one."""
    mine = sa.or_(t.c.tenant_id.is_(None), t.c.tenant_id == tenant)
    query = sa.select(t).where(t.c.id == template_id, mine)
    return connection.execute(query).mappings().one_or_none()


def insert(connection: sa.Connection, values: Mapping[str, Any]) -> None:
    connection.execute(sa.insert(t), dict(values))


def update(connection: sa.Connection, template_id: str, values: Mapping[str, Any]) -> None:
    connection.execute(sa.update(t).where(t.c.id == template_id).values(**values))


def delete(connection: sa.Connection, template_id: str) -> None:
    """With its tags."""
    connection.execute(sa.delete(tags).where(tags.c.template_id == template_id))
    connection.execute(sa.delete(t).where(t.c.id == template_id))


def count(connection: sa.Connection, tenant: str) -> int:
    query = sa.select(sa.func.count()).select_from(t).where(t.c.tenant_id == tenant)
    return int(connection.execute(query).scalar_one())


def of_tenant(connection: sa.Connection, tenant: str) -> list[Row]:
    query = sa.select(t).where(t.c.tenant_id == tenant).order_by(t.c.created_at, t.c.id)
    return list(connection.execute(query).mappings())


def by_digest(
    connection: sa.Connection, tenant: str, digest: str, name: str | None = None
) -> Row | None:
    """One that is ready, the newest; the tenant's own first. ``name``: one it has, or had."""
    mine = sa.or_(t.c.tenant_id.is_(None), t.c.tenant_id == tenant)
    query = sa.select(t).where(t.c.digest == digest, t.c.status == "ready", mine)
    if name is not None:
        called = sa.select(tags.c.template_id).where(
            tags.c.tenant_id == tenant, tags.c.name == name
        )
        query = query.where(sa.or_(t.c.name == name, t.c.id.in_(called)))
    query = query.order_by(t.c.tenant_id.is_(None), t.c.created_at.desc()).limit(1)
    return connection.execute(query).mappings().one_or_none()


# --- tags ---------------------------------------------------------------------------------------


def tagged(connection: sa.Connection, tenant: str, name: str, tag: str) -> Row | None:
    query = (
        sa.select(t)
        .join(tags, tags.c.template_id == t.c.id)
        .where(tags.c.tenant_id == tenant, tags.c.name == name, tags.c.tag == tag)
    )
    return connection.execute(query).mappings().one_or_none()


def put_tag(
    connection: sa.Connection, tenant: str, name: str, tag: str, template_id: str, now: datetime
) -> None:
    """Moves it, where it is another's."""
    drop_tag(connection, tenant, name, tag)
    connection.execute(
        sa.insert(tags).values(
            tenant_id=tenant, name=name, tag=tag, template_id=template_id, updated_at=now
        )
    )


def drop_tag(connection: sa.Connection, tenant: str, name: str, tag: str) -> None:
    mine = (tags.c.tenant_id == tenant, tags.c.name == name, tags.c.tag == tag)
    connection.execute(sa.delete(tags).where(*mine))


def tags_of(connection: sa.Connection, tenant: str) -> dict[str, list[tuple[str, str]]]:
    """Template id -> (name, tag), in order."""
    query = sa.select(tags).where(tags.c.tenant_id == tenant).order_by(tags.c.name, tags.c.tag)
    found: dict[str, list[tuple[str, str]]] = {}
    for row in connection.execute(query).mappings():
        found.setdefault(row["template_id"], []).append((row["name"], row["tag"]))
    return found


# --- who needs what -------------------------------------------------------------------------------


def dependents(
    connection: sa.Connection, template_id: str, most: int = 20
) -> list[tuple[str, str]]:
    """(kind, id) of what still starts from this template, or was built from it."""
    of_machines = sa.select(machines.c.id).where(
        machines.c.template_id == template_id,
        machines.c.phase != "destroyed",
        machines.c.tenant_id != NOBODY,
    )
    of_snapshots = sa.select(snapshots.c.id).where(
        snapshots.c.machine["template_id"].as_string() == template_id,
        snapshots.c.tenant_id != NOBODY,
    )
    of_templates = sa.select(t.c.id).where(t.c.parent_id == template_id)
    under_way = sa.select(builds.c.id).where(
        builds.c.template_id == template_id, builds.c.status.in_(("waiting", "queued", "running"))
    )
    found: list[tuple[str, str]] = []
    for kind, query in (
        ("machine", of_machines),
        ("snapshot", of_snapshots),
        ("template", of_templates),
        ("build", under_way),
    ):
        found += [(kind, each) for each in connection.execute(query.limit(most)).scalars()]
    return found[:most]


def nobody_uses(connection: sa.Connection, template_id: str) -> bool:
    """Machines of nobody (warm ones, bakes) included."""
    living = sa.select(machines.c.id).where(
        machines.c.template_id == template_id, machines.c.phase != "destroyed"
    )
    if connection.execute(living.limit(1)).first() is not None:
        return False
    return not dependents(connection, template_id, 1)


def nameless(connection: sa.Connection, tenant: str | None, before: datetime) -> list[Row]:
    """Of a tenant, or of all, without a tag, not touched since."""
    named = sa.select(tags.c.template_id)
    query = sa.select(t).where(
        t.c.tenant_id.is_not(None),
        t.c.status != "building",
        t.c.updated_at <= before,
        t.c.id.not_in(named),
    )
    if tenant is not None:
        query = query.where(t.c.tenant_id == tenant)
    return list(connection.execute(query).mappings())


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
    # A tenant's is its build's, which forgets it.
    building = sa.and_(t.c.status == "building", t.c.tenant_id.is_(None))
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


def abandon(
    connection: sa.Connection, template_id: str, error: Mapping[str, Any], now: datetime
) -> str | None:
    """At daemon start: what a tenant's build was making. It goes, unless the machine of a step that failed was kept,
    whose config it is: its id."""
    row = connection.execute(sa.select(t).where(t.c.id == template_id)).mappings().one_or_none()
    if row is None or row["status"] != "building":
        return None
    used = [each for each in dependents(connection, template_id) if each[0] != "build"]
    if not used:
        delete(connection, template_id)
        return None
    update(connection, template_id, {"status": "failed", "error": dict(error), "updated_at": now})
    return next((each for kind, each in used if kind == "machine"), None)


def image_needed(connection: sa.Connection, digest: str) -> bool:
    """Whether a template, a layer, or a machine that has no disk yet, starts from this image."""
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
    of_layer = sa.select(layers.c.key).where(layers.c.digest == digest).limit(1)
    queries = (of_template, of_machine, of_layer)
    return any(connection.execute(q).first() is not None for q in queries)
