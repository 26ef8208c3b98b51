"""Letting a machine in: its row and the row of its making, if it fits, in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from roost import ids
from roost.engine import quotas, reservations
from roost.engine.flows import Parts
from roost.engine.journal import Journal, Operation
from roost.engine.lifecycle import HOLDING, Placing, initial, step
from roost.engine.machine import Machine
from roost.engine.reservations import Held, HostSize
from roost.settings import Settings
from roost.store import machines


def reserve(
    connection: sa.Connection,
    parts: Parts,
    journal: Journal,
    settings: Settings,
    host: HostSize,
    values: Mapping[str, Any],
    *,
    placing: bool,
    in_place_of: str | None = None,
    also: Callable[[sa.Connection, str], None] | None = None,
) -> tuple[Machine, Operation]:
    """``placing``: its turn is now, so that its first stage begins with this. ``in_place_of``: a machine that waits
    for this one to be gone again. ``also`` writes with its row, given its id. Raises QUOTA_EXCEEDED, CAPACITY_EXCEEDED, IntegrityError (the key)."""
    quotas.check(connection, values["tenant_id"], quotas.of_machine(values))
    held = Held(*machines.held(connection, HOLDING, without=in_place_of))
    reservations.admit(settings, host, held, values["vcpu"], values["memory_mib"])
    state = initial()
    if placing:
        state, _ = step(state, Placing())
    now = parts.clock.now()
    row = {
        "id": ids.new(),
        "node_id": parts.identity.node_id,
        "desired_state": state.desired.value,
        "phase": state.phase.value,
        "reason": None,
        "retryable": False,
        "last_error": None,
        "revision": 1,
        "generation": 0,
        "disk_ready": False,
        "slot_index": None,
        "handle": None,
        "snapshot_id": None,
        "memory_image": None,
        "created_by": None,
        "egress": None,
        "parent_id": None,
        "from_snapshot_id": None,
        "replaces": None,
        "inside": None,
        "tools": None,
        "volumes": None,
        "expiry": "destroy",
        "autowake": True,
        "unrestricted": False,
        "brings_tree": False,
        "run_as": None,
        "created_at": now,
        "last_transition_at": now,
        "last_progress_at": now,
        "last_activity_at": None,
        "tier": None,
        "hibernate_after_seconds": settings.hibernate_after_s or None,
        **values,
    }
    machines.insert(connection, row)
    if also is not None:
        also(connection, row["id"])
    source = (
        f"snapshot {row['snapshot_id']}" if row["snapshot_id"] else f"template {row['template']}"
    )
    machines.record(connection, row["id"], now, "accepted", f"from {source}")
    operation = journal.open(connection, "create", row["id"], step=1 if placing else 0)
    made = row if also is None else machines.get(connection, row["id"])
    assert made is not None
    return Machine.from_row(made), operation
