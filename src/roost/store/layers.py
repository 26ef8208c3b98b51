"""Rows of layers: disks after steps of builds."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from roost.store.schema import layers as t

Row = sa.RowMapping


def get(connection: sa.Connection, tenant: str, key: str) -> Row | None:
    query = sa.select(t).where(t.c.tenant_id == tenant, t.c.key == key)
    return connection.execute(query).mappings().one_or_none()


def by_image(connection: sa.Connection, digest: str) -> Row | None:
    query = sa.select(t).where(t.c.digest == digest).limit(1)
    return connection.execute(query).mappings().one_or_none()


def put(connection: sa.Connection, tenant: str, key: str, digest: str, now: datetime) -> str | None:
    """The image this key had before, if it was another."""
    before = get(connection, tenant, key)
    delete(connection, tenant, key)
    values = {"tenant_id": tenant, "key": key, "digest": digest, "created_at": now, "used_at": now}
    connection.execute(sa.insert(t).values(content_digest=None, **values))
    return before["digest"] if before is not None and before["digest"] != digest else None


def used(connection: sa.Connection, tenant: str, key: str, digest: str, now: datetime) -> bool:
    """False where it is not there any more."""
    mine = (t.c.tenant_id == tenant, t.c.key == key, t.c.digest == digest)
    return connection.execute(sa.update(t).where(*mine).values(used_at=now)).rowcount > 0


def set_content(connection: sa.Connection, digest: str, content: str) -> None:
    connection.execute(sa.update(t).where(t.c.digest == digest).values(content_digest=content))


def delete(connection: sa.Connection, tenant: str, key: str) -> None:
    connection.execute(sa.delete(t).where(t.c.tenant_id == tenant, t.c.key == key))


def every(connection: sa.Connection, tenant: str | None = None) -> list[Row]:
    """Used longest ago first."""
    query = sa.select(t).order_by(t.c.used_at, t.c.created_at)
    if tenant is not None:
        query = query.where(t.c.tenant_id == tenant)
    return list(connection.execute(query).mappings())
