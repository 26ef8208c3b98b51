"""Rows of keys and tokens."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from roost.store.schema import keys as t
from roost.store.schema import tenants

DEFAULT_TENANT = "default"  # the local admin's
NOBODY = ":nobody"  # of what the daemon makes for itself; no key can be of a tenant of that name
KEY_ROLES = ("admin", "tenant", "runner", "read_only")
TOKEN_ROLES = ("machine", "preview")

_SHOWN = [
    getattr(t.c, name)
    for name in (
        "id",
        "tenant_id",
        "name",
        "role",
        "machine_id",
        "port",
        "created_at",
        "last_used_at",
        "expires_at",
    )
]


def put_tenant(connection: sa.Connection, tenant: str, now: datetime) -> None:
    """One without quotas, named as its id."""
    found = connection.execute(sa.select(tenants.c.id).where(tenants.c.id == tenant)).first()
    if found is None:
        connection.execute(sa.insert(tenants).values(id=tenant, name=tenant, created_at=now))


def insert(connection: sa.Connection, values: Mapping[str, Any]) -> None:
    """Raises sqlalchemy.exc.IntegrityError where there is no such tenant."""
    connection.execute(sa.insert(t), dict(values))


def valid(connection: sa.Connection, digest: str) -> sa.RowMapping | None:
    """Not revoked; it may have expired."""
    query = sa.select(t).where(t.c.secret_sha256 == digest, t.c.revoked_at.is_(None))
    return connection.execute(query).mappings().one_or_none()


def get(connection: sa.Connection, key_id: str, now: datetime) -> sa.RowMapping | None:
    """One that counts: neither revoked nor expired."""
    query = sa.select(*_SHOWN).where(t.c.id == key_id, _counts(now))
    return connection.execute(query).mappings().one_or_none()


def of_tenant(connection: sa.Connection, tenant: str, now: datetime) -> list[sa.RowMapping]:
    """Its keys that count, oldest first; no tokens."""
    return _list(connection, now, t.c.tenant_id == tenant, t.c.role.in_(KEY_ROLES))


def of_machine(connection: sa.Connection, machine_id: str, now: datetime) -> list[sa.RowMapping]:
    """The tokens for it that count, oldest first."""
    return _list(connection, now, t.c.machine_id == machine_id, t.c.role.in_(TOKEN_ROLES))


def hand_over(connection: sa.Connection, machine_id: str, to: str) -> list[str]:
    """The one machine's preview tokens are the other's; their ids."""
    mine = sa.and_(t.c.machine_id == machine_id, t.c.role == "preview")
    ids = list(connection.execute(sa.select(t.c.id).where(mine)).scalars())
    connection.execute(sa.update(t).where(mine).values(machine_id=to))
    return ids


def lasting(connection: sa.Connection, tenant: str, role: str | None = None) -> list[str]:
    """Keys of a tenant (and role) that never expire."""
    query = sa.select(t.c.id).where(
        t.c.tenant_id == tenant,
        t.c.role.in_(KEY_ROLES if role is None else (role,)),
        t.c.revoked_at.is_(None),
        t.c.expires_at.is_(None),
    )
    return [row[0] for row in connection.execute(query)]


def ids_of(connection: sa.Connection, tenant: str) -> list[str]:
    """All there ever were, tokens too."""
    return [row[0] for row in connection.execute(sa.select(t.c.id).where(t.c.tenant_id == tenant))]


def revoke(connection: sa.Connection, key_id: str, now: datetime) -> None:
    connection.execute(sa.update(t).where(t.c.id == key_id).values(revoked_at=now))


def forget(connection: sa.Connection, before: datetime, limit: int = 500) -> int:
    """Removes rows of what was revoked or expired before that time."""
    query = sa.select(t.c.id).where(sa.or_(t.c.revoked_at < before, t.c.expires_at < before))
    ids = [row[0] for row in connection.execute(query.limit(limit))]
    connection.execute(sa.delete(t).where(t.c.id.in_(ids)))
    return len(ids)


def used(connection: sa.Connection, when: Mapping[str, datetime]) -> None:
    for key_id, at in when.items():
        connection.execute(sa.update(t).where(t.c.id == key_id).values(last_used_at=at))


def _counts(now: datetime) -> sa.ColumnElement[bool]:
    lasts = sa.or_(t.c.expires_at.is_(None), t.c.expires_at > now)
    return sa.and_(t.c.revoked_at.is_(None), lasts)


def _list(
    connection: sa.Connection, now: datetime, *which: sa.ColumnElement[bool]
) -> list[sa.RowMapping]:
    query = sa.select(*_SHOWN).where(*which, _counts(now)).order_by(t.c.created_at, t.c.id)
    return list(connection.execute(query).mappings())
