"""Snapshots: machines at one instant, to make others from and to go back to."""

from __future__ import annotations

import json

from sqlalchemy.exc import IntegrityError

from roost.engine import quotas
from roost.engine.engine import Engine
from roost.engine.machine import Machine
from roost.errors import ConflictError, RoostError
from roost.services import captured, limits
from roost.services.machines import Machines
from roost.services.models import Page, Snapshot
from roost.store import snapshots as rows
from roost.store.cursor import Cursors

MAX_SNAPSHOTS = 1000  # of a tenant


class Snapshots:
    """Every call takes the caller's tenant first; another tenant's snapshot answers SNAPSHOT_NOT_FOUND."""

    def __init__(self, engine: Engine, machines: Machines) -> None:
        self._engine = engine
        self._store = engine.store
        self._machines = machines
        self._cursors = Cursors(engine.identity.secret)

    async def create(self, tenant: str, machine_id: str, name: str | None = None) -> Snapshot:
        """Of a running or sleeping machine; it runs on. Durable on return.

        Raises ALREADY_EXISTS (the name; details.snapshot_id), QUOTA_EXCEEDED, INVALID_STATE, UNSUPPORTED,
        STORAGE_FULL, MACHINE_FAILED, TIMEOUT: nothing is kept and the machine runs on.
        """
        limits.name(name)
        machine = await self._machines.get(tenant, machine_id)
        captured.require_fork(machine)
        if (used := await self._store.read(lambda c: rows.count(c, tenant))) >= MAX_SNAPSHOTS:
            raise quotas.exceeded("snapshots", MAX_SNAPSHOTS, used, 1, "Delete one, then retry.")
        values = {"tenant_id": tenant, "name": name, "for_fork": False}
        try:
            snapshot_id = await self._engine.snapshot(machine_id, values)
        except IntegrityError as error:
            raise await self._taken(tenant, name, error) from error
        return await self.get(tenant, snapshot_id)

    async def get(self, tenant: str, which: str) -> Snapshot:
        """By id or name."""
        return Snapshot.from_row(await captured.find(self._store, tenant, which))

    async def list(
        self,
        tenant: str,
        machine_id: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[Snapshot]:
        """Newest first. Raises INVALID_CURSOR."""
        if not 1 <= limit <= 500:
            raise limits.bad("limit", "is from 1 to 500")
        scope = json.dumps(["snapshots", tenant, machine_id])
        after = None if cursor is None else self._cursors.decode(scope, cursor)
        found = await self._store.read(
            lambda c: rows.page(c, tenant, machine_id=machine_id, limit=limit + 1, after=after)
        )
        items = [Snapshot.from_row(row) for row in found[:limit]]
        last = items[-1] if len(found) > limit else None
        return Page(items, self._cursors.encode(scope, last.created_at, last.id) if last else None)

    async def delete(self, tenant: str, which: str) -> None:
        """Machines made from it live on. Raises IN_USE while one is being made from it, or sleeps rolled
        back to it."""
        row = await captured.find(self._store, tenant, which)
        if not await self._engine.delete_snapshot(row["id"]):
            raise ConflictError(
                "A machine is being made from this snapshot, or sleeps on it: try again when it runs.",
                code="IN_USE",
            )

    async def rollback(self, tenant: str, machine_id: str, which: str) -> Machine:
        """The machine as it was; what it did since is gone. Raises INVALID_STATE for another machine's,
        SNAPSHOT_INVALID for one that is quarantined."""
        machine = await self._machines.get(tenant, machine_id)
        row = await captured.find(self._store, tenant, which)
        captured.require_sound(row)
        captured.require_of(row, machine)
        return await self._engine.rollback(machine.id, row["id"])

    async def _taken(self, tenant: str, name: str | None, error: IntegrityError) -> RoostError:
        row = None
        if name is not None:
            row = await self._store.read(lambda c: rows.by_name(c, tenant, name))
        return ConflictError(
            f"You have a snapshot named {name}: delete it or take another name.",
            code="ALREADY_EXISTS",
            details={"snapshot_id": row["id"]} if row is not None else {},
        )
