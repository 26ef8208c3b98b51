"""Tenants: who has machines here, and how much of everything. Calls of this service are the admin's."""

from __future__ import annotations

import builtins
import math
import re
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from roost import ids
from roost.drivers.interface import Isolation
from roost.engine.lifecycle import HOLDING
from roost.errors import ConflictError, InvalidRequestError, NotFoundError
from roost.services.keys import DEFAULT_TENANT, Keys
from roost.services.models import UNSET, Tenant, Unset
from roost.services.rates import Rates
from roost.settings import Settings
from roost.store import Store
from roost.store import keys as key_rows
from roost.store import ssh_keys as ssh_key_rows
from roost.store import tenants as rows

# Whole numbers, and those that need not be.
COUNTS = (
    "machines",
    "awake_machines",
    "memory_mib",
    "storage_gib",
    "forks_per_minute",
    "request_burst",
)
AMOUNTS = ("vcpu", "requests_per_second")
QUOTAS = (*COUNTS, *AMOUNTS)
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_MOST = 1e12


class Tenants:
    """``which`` is a tenant's id or name; TENANT_NOT_FOUND for neither."""

    def __init__(self, store: Store, settings: Settings, keys: Keys, rates: Rates) -> None:
        self._store = store
        self._settings = settings
        self._keys = keys
        self._rates = rates

    async def open(self) -> None:
        """At daemon start: how often each may ask."""
        for row in await self._store.read(rows.every):
            self._rates.set(row["id"], row["quotas"] or {})

    async def create(
        self,
        name: str,
        quotas: Mapping[str, Any] | None = None,
        isolation: str | None = None,
    ) -> Tenant:
        """``quotas``: what differs from the settings' for a new one; None: no limit. ``isolation``: the least of its
        machines; None: the profile's.

        Raises VALIDATION_FAILED, ALREADY_EXISTS (the name)."""
        _check_name(name)
        _check_isolation(isolation)
        given = {
            "machines": self._settings.tenant_machines,
            "requests_per_second": self._settings.tenant_requests_per_second,
            "request_burst": self._settings.tenant_request_burst,
        }
        made: dict[str, Any] = {
            "id": ids.new(),
            "name": name,
            "quotas": _changed(given, quotas or {}),
            "isolation": isolation,
            "created_at": self._store.clock.now(),
        }
        try:
            await self._store.write(lambda c: rows.insert(c, made))
        except IntegrityError as error:
            raise _taken(name) from error
        self._rates.set(made["id"], made["quotas"])
        return Tenant(**made)

    async def list(self) -> builtins.list[Tenant]:
        """Oldest first."""
        return [_tenant(row) for row in await self._store.read(rows.every)]

    async def get(self, which: str) -> Tenant:
        """With what it has."""

        def fn(connection: sa.Connection) -> Tenant:
            row = _row(connection, which)
            return _tenant(row, rows.used(connection, row["id"], HOLDING))

        return await self._store.read(fn)

    async def find(self, which: str) -> str:
        """Its id."""
        return str((await self._store.read(lambda c: _row(c, which)))["id"])

    async def set(
        self,
        which: str,
        name: str | None = None,
        quotas: Mapping[str, Any] | None = None,
        isolation: str | Unset | None = UNSET,
    ) -> Tenant:
        """Quotas that are not named stay; None: no limit. One below what is used takes nothing away and lets
        nothing more in; machines below its ``isolation`` run on, and wake no more until they are promoted. Raises VALIDATION_FAILED, ALREADY_EXISTS (the name)."""
        if name is not None:
            _check_name(name)
        if isolation is not UNSET:
            _check_isolation(isolation)

        def fn(connection: sa.Connection) -> Tenant:
            row = _row(connection, which)
            values: dict[str, Any] = {"quotas": _changed(row["quotas"] or {}, quotas or {})}
            if name is not None:
                values["name"] = name
            if isolation is not UNSET:
                values["isolation"] = isolation
            rows.update(connection, row["id"], values)
            return _tenant(_row(connection, row["id"]))

        try:
            changed = await self._store.write(fn)
        except IntegrityError as error:
            raise _taken(name or "") from error
        if quotas:
            self._rates.set(changed.id, changed.quotas)
        return changed

    async def delete(self, which: str) -> None:
        """With its keys, at once. Raises IN_USE while it has machines or snapshots, or for the admin's own."""

        def fn(connection: sa.Connection) -> tuple[str, builtins.list[str]]:
            row = _row(connection, which)
            if row["id"] == DEFAULT_TENANT:
                raise ConflictError("This is the admin's own tenant.", code="IN_USE")
            if held := rows.holds(connection, row["id"]):
                what = ", ".join(f"{number} {name}" for name, number in held.items())
                raise ConflictError(
                    f"The tenant has {what}: delete those first.", code="IN_USE", details=held
                )
            keys = key_rows.ids_of(connection, row["id"])
            keys += ssh_key_rows.ids_of(connection, row["id"])
            rows.delete(connection, row["id"])
            return row["id"], keys

        tenant, keys = await self._store.write(fn)
        self._keys.ended(keys)
        self._rates.forget(tenant)


def _row(connection: sa.Connection, which: str) -> rows.Row:
    row = rows.find(connection, which)
    if row is None:
        raise NotFoundError(f"There is no tenant {which[:64]}.", code="TENANT_NOT_FOUND")
    return row


def _tenant(row: rows.Row, usage: Mapping[str, Any] | None = None) -> Tenant:
    quotas = dict(row["quotas"] or {})
    return Tenant(row["id"], row["name"], quotas, row["created_at"], usage, row["isolation"])


def _changed(before: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Raises VALIDATION_FAILED naming the quota."""
    after = dict(before)
    for name, value in changes.items():
        if name not in QUOTAS:
            raise _bad(name, f"is none of {', '.join(QUOTAS)}")
        if value is None:
            after.pop(name, None)
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not 0 <= value <= _MOST:
            raise _bad(name, "is a number from 0 on, or null for no limit")
        if name in COUNTS and value != int(value):
            raise _bad(name, "is a whole number")
        if name in ("requests_per_second", "request_burst") and value < 0.01:
            raise _bad(name, "is above 0")
        after[name] = int(value) if name in COUNTS else float(value)
    return after


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise _bad("name", "is 1-63 of [a-z0-9-], starting and ending with a letter or digit")


def _check_isolation(isolation: str | None) -> None:
    if isolation is not None and isolation not in {each.value for each in Isolation}:
        raise _bad("isolation", f"is one of {', '.join(each.value for each in Isolation)}, or null")


def _bad(field: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field}: {message}.", details={"field": field})


def _taken(name: str) -> ConflictError:
    return ConflictError(
        f"There is a tenant named {name}.", code="ALREADY_EXISTS", details={"name": name}
    )
