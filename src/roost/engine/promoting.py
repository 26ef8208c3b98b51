"""One machine takes another's place: key, name, end and what services give along, in one transaction.

    in line of both, in order of their ids  ->  write  ->  both as their rows are  (-> the one replaced is destroyed)

A daemon killed in between finds it done or not begun. Once more changes nothing: there is nothing left to take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from roost.engine.engine import Engine
from roost.engine.journal import Operation
from roost.engine.lifecycle import Phase
from roost.engine.machine import Machine
from roost.engine.transitions import Change, amend, load
from roost.errors import ConflictError
from roost.store import machines

# What else the successor takes over, in the same transaction: (connection, from, to) -> what that was, in words.
HandOver = Callable[[sa.Connection, str, str], list[str]]
_GONE = (Phase.DESTROYING, Phase.DESTROYED)


async def promote(
    engine: Engine, child_id: str, onto_id: str, hand_over: HandOver, destroy: bool = False
) -> Machine:
    """The child in its place, and ``onto`` without key and name: kept, or (``destroy``) being destroyed. One of the
    two came of the other. Raises INVALID_STATE."""
    if child_id == onto_id:  # in its line it would wait for its own turn for ever
        raise ConflictError(
            f"Machine {child_id} is in its own place already: only a fork of a machine takes its place.",
            details={"machine_id": child_id},
        )
    condemned: list[tuple[Change, Operation | None]] = []

    def fn(connection: sa.Connection) -> tuple[Machine, Machine]:
        condemned.clear()
        child, onto = _moved(connection, engine, child_id, onto_id, hand_over)
        if destroy and onto.phase not in _GONE:
            condemned.append(engine.condemn(connection, onto_id))
        return child, onto

    async def write(_: asyncio.Event) -> Machine:
        child, onto = await engine.store.write(fn)
        engine.amended(child)
        if not condemned:
            engine.amended(onto)
        for change, operation in condemned:
            await engine.condemned(change, operation, wait=False)
        return child

    async def both(_: asyncio.Event) -> Machine:
        return await engine.desk.submit(second, "promote", write, join=False)

    # Always in the same order: two that wait for each other's lines would wait for ever.
    first, second = sorted((child_id, onto_id))
    return await asyncio.shield(engine.desk.submit(first, "promote", both, join=False))


def _moved(
    connection: sa.Connection, engine: Engine, child_id: str, onto_id: str, hand_over: HandOver
) -> tuple[Machine, Machine]:
    """Both as they are after it."""
    now = engine.clock.now()
    child, onto = load(connection, child_id), load(connection, onto_id)
    if onto_id != child.parent_id and child_id != onto.parent_id:
        raise ConflictError(
            f"Machine {child_id} did not come of {onto_id}: only a fork of a machine takes its place.",
            details={"machine_id": child_id, "parent_id": child.parent_id},
        )
    again = child.replaces == onto_id
    if child.phase not in (Phase.RUNNING, Phase.SLEEPING):
        _refuse(child, "it takes nobody's place: wake it first")
    if onto.phase in _GONE:
        if again:
            return child, onto
        _refuse(onto, "there is nothing to take over from it")
    if None not in (child.key, onto.key):
        raise ConflictError(
            f"Both have a key ({child.key}, {onto.key}), and a machine has one: take a fork, which has none.",
            details={"machine_id": child_id, "key": child.key},
        )
    took: list[str] = []
    mine: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    for what in ("key", "name"):
        if (value := getattr(onto, what)) is not None:
            took.append(f"{what} {value}")
            mine[what], theirs[what] = value, None
    took += hand_over(connection, onto_id, child_id)
    if again and not took:
        return child, onto
    if not again:
        mine |= {"ttl_seconds": onto.ttl_seconds, "expires_at": onto.expires_at}
        mine["expiry"] = onto.expiry
    mine["replaces"] = onto_id
    if onto.replaces == child_id:  # it takes its place back
        theirs["replaces"] = None
    told = ", ".join(took) or "nothing to take over"
    onto = amend(connection, onto_id, theirs, now)  # first: a key is one machine's
    child = amend(connection, child_id, mine, now)
    machines.record(connection, onto_id, now, "replaced", f"by {child_id}")
    machines.record(connection, child_id, now, "promoted", f"in place of {onto_id}: {told}")
    return child, onto


def _refuse(machine: Machine, why: str) -> None:
    raise ConflictError(
        f"Machine {machine.id} is {machine.phase}: {why}.",
        details={"machine_id": machine.id, "phase": machine.phase},
    )
