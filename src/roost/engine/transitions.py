"""One transition as one piece of a transaction: lifecycle decides, the row and the machine's log follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from roost.engine import metering
from roost.engine.lifecycle import Command, Event, Phase, step
from roost.engine.machine import Machine
from roost.errors import NotFoundError
from roost.store import machines
from roost.store.database import touched

_TRIM_EVERY = 16


@dataclass(frozen=True, slots=True)
class Change:
    """The machine as it is now, and what is to be done once that is durable."""

    machine: Machine
    commands: tuple[Command, ...]


def load(connection: sa.Connection, machine_id: str) -> Machine:
    return Machine.from_row(_row(connection, machine_id))


def _row(connection: sa.Connection, machine_id: str) -> sa.RowMapping:
    row = machines.get(connection, machine_id)
    if row is None:
        raise not_found(machine_id)
    return row


def advance(
    connection: sa.Connection,
    machine_id: str,
    event: Event,
    now: datetime,
    values: Mapping[str, Any] | None = None,
    message: str | None = None,
) -> Change:
    """Applies ``event`` and sets ``values`` with it. Raises ConflictError INVALID_STATE (nothing changed) and
    MACHINE_NOT_FOUND."""
    row = _row(connection, machine_id)
    before = Machine.from_row(row)
    old = before.state
    new, commands = step(old, event)
    changes = dict(values or {})
    if new == old and not changes:
        return Change(before, commands)
    changes["revision"] = before.revision + 1
    changes["last_progress_at"] = now
    if new != old:
        changes.update(
            phase=new.phase.value,
            desired_state=new.desired.value,
            reason=new.reason[:200] if new.reason else None,
            retryable=new.retryable,
            tier=new.tier.value if new.tier else None,
        )
    if new.phase is not old.phase or new.tier is not old.tier:
        changes["last_transition_at"] = now
        text = message or new.reason or (new.tier.value if new.tier else "")
        machines.record(connection, machine_id, now, new.phase.value, text)
        if changes["revision"] % _TRIM_EVERY == 0:
            machines.trim(connection, machine_id)
    if new.phase is Phase.RUNNING and old.phase is not Phase.RUNNING:
        changes["last_error"] = None
    machines.update(connection, machine_id, changes)
    touched(connection, machine_id)
    after = {**row, **changes}
    metering.moved(connection, row, after, now)
    return Change(Machine.from_row(after), commands)


def amend(
    connection: sa.Connection, machine_id: str, values: Mapping[str, Any], now: datetime
) -> Machine:
    """Sets columns without a transition; a new revision all the same."""
    row = _row(connection, machine_id)
    changes = {**values, "revision": row["revision"] + 1, "last_progress_at": now}
    machines.update(connection, machine_id, changes)
    touched(connection, machine_id)
    after = {**row, **changes}
    metering.moved(connection, row, after, now)
    return Machine.from_row(after)


def not_found(machine_id: str) -> NotFoundError:
    return NotFoundError(f"There is no machine {machine_id[:64]}.", code="MACHINE_NOT_FOUND")
