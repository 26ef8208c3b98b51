"""Rows of keys and tenants."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import sqlalchemy as sa

from roost.store.schema import keys as t
from roost.store.schema import tenants

NOBODY = ":nobody"  # of what the daemon makes for itself; no key can be of a tenant of that name


def put_tenant(connection: sa.Connection, tenant: str, now: datetime) -> None:
    found = connection.execute(sa.select(tenants.c.id).where(tenants.c.id == tenant)).first()
    if found is None:
        connection.execute(sa.insert(tenants).values(id=tenant, name=tenant, created_at=now))


def insert(
    connection: sa.Connection, id: str, tenant: str, name: str, digest: str, now: datetime
) -> None:
    connection.execute(
        sa.insert(t).values(
            id=id, tenant_id=tenant, name=name, secret_sha256=digest, created_at=now
        )
    )


def valid(connection: sa.Connection, digest: str) -> sa.RowMapping | None:
    query = sa.select(t).where(t.c.secret_sha256 == digest, t.c.revoked_at.is_(None))
    return connection.execute(query).mappings().one_or_none()


def of_tenant(connection: sa.Connection, tenant: str) -> list[sa.RowMapping]:
    query = (
        sa.select(t.c.id, t.c.tenant_id, t.c.name, t.c.created_at, t.c.last_used_at)
        .where(t.c.tenant_id == tenant, t.c.revoked_at.is_(None))
        .order_by(t.c.created_at, t.c.id)
    )
    return list(connection.execute(query).mappings())


def any_valid(connection: sa.Connection) -> bool:
    return connection.execute(sa.select(t.c.id).where(t.c.revoked_at.is_(None))).first() is not None


def revoke(connection: sa.Connection, key_id: str, now: datetime) -> None:
    connection.execute(sa.update(t).where(t.c.id == key_id).values(revoked_at=now))


def used(connection: sa.Connection, when: Mapping[str, datetime]) -> None:
    for key_id, at in when.items():
        connection.execute(sa.update(t).where(t.c.id == key_id).values(last_used_at=at))
