"""Rows of public keys that may come in over SSH."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from roost.store.schema import ssh_keys as t

Row = sa.RowMapping


def insert(connection: sa.Connection, values: Mapping[str, Any]) -> None:
    """Raises sqlalchemy.exc.IntegrityError where the tenant has this key, or there is no such tenant."""
    connection.execute(sa.insert(t), dict(values))


def of_tenant(connection: sa.Connection, tenant: str) -> list[Row]:
    """Oldest first."""
    query = sa.select(t).where(t.c.tenant_id == tenant).order_by(t.c.created_at, t.c.id)
    return list(connection.execute(query).mappings())


def of_fingerprint(connection: sa.Connection, fingerprint: str) -> list[Row]:
    """One of each tenant that has it."""
    query = sa.select(t).where(t.c.fingerprint == fingerprint).order_by(t.c.created_at, t.c.id)
    return list(connection.execute(query).mappings())


def ids_of(connection: sa.Connection, tenant: str) -> list[str]:
    return [row[0] for row in connection.execute(sa.select(t.c.id).where(t.c.tenant_id == tenant))]


def delete(connection: sa.Connection, tenant: str, key_id: str) -> bool:
    query = sa.delete(t).where(t.c.id == key_id, t.c.tenant_id == tenant)
    return connection.execute(query).rowcount > 0


def used(connection: sa.Connection, when: Mapping[str, datetime]) -> None:
    for key_id, at in when.items():
        connection.execute(sa.update(t).where(t.c.id == key_id).values(last_used_at=at))
