"""What machines are made from besides templates: rows of snapshots, found for a tenant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from roost.drivers.interface import ForkKind
from roost.engine import keeping
from roost.engine.machine import Machine
from roost.errors import ConflictError, UnsupportedError
from roost.store import Store, snapshots

Row = Mapping[Any, Any]


async def find(store: Store, tenant: str, which: str, for_fork: bool = False) -> Row:
    """One that is made, by id or name. Raises SNAPSHOT_NOT_FOUND, also for another tenant's."""

    def fn(connection: sa.Connection) -> Row | None:
        found = snapshots.get(connection, which)
        return found if found is not None else snapshots.by_name(connection, tenant, which)

    row = await store.read(fn)
    if (
        row is None
        or row["tenant_id"] != tenant
        or row["status"] not in snapshots.MADE
        or row["for_fork"] != for_fork
    ):
        raise keeping.not_found(which)
    return row


def values(row: Row, memory: bool = True) -> dict[str, Any]:
    """The columns of a machine made from it; without ``memory`` from its disk alone."""
    taken = {name: row["machine"][name] for name in keeping.TAKEN_OVER}
    return {
        **taken,
        "snapshot_id": row["id"],
        "memory_image": row["memory_image"] if memory else None,
        "parent_id": row["machine_id"],
        "from_snapshot_id": None if row["for_fork"] else row["id"],
    }


def require_sound(row: Row) -> None:
    """Raises SNAPSHOT_INVALID for one whose memory could not be loaded before."""
    if row["status"] == "quarantined":
        why = row["machine"].get("quarantined", "its memory cannot be loaded")
        raise ConflictError(
            f"Snapshot {row['id']} is quarantined: {why} To start from its disk alone, create with "
            "memory=false.",
            code="SNAPSHOT_INVALID",
            details={"snapshot_id": row["id"], "status": "quarantined"},
        )


def require_of(row: Row, machine: Machine) -> None:
    """Raises INVALID_STATE for another machine's."""
    if row["machine_id"] != machine.id:
        raise ConflictError(
            f"Snapshot {row['id']} is of another machine ({row['machine_id']}): make a new one from it "
            "with create(snapshot=).",
            details={"machine_id": row["machine_id"]},
        )


def require_fork(machine: Machine) -> None:
    """Raises UNSUPPORTED."""
    if machine.capabilities.fork is ForkKind.NONE:
        raise UnsupportedError(
            f"Machines of the {machine.driver} driver cannot be captured; a container or microVM can."
        )
