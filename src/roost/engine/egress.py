"""A machine's egress policy, changed while it lives.

    row (durable) -> network                         what comes back is then true of both
    row -> network refuses -> network back -> row back    it is as it was, and the caller is told why
    ... and cannot be put back                       the machine is ended: nobody knows what it may reach

The row first: a daemon that dies in between attaches what the row says when it starts again, so nothing is ever looser
than what was acknowledged. All of it in the machine's line: no start, wake or fork sees half of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import sqlalchemy as sa

from roost.drivers.interface import Capabilities
from roost.egress.policy import Mode, Policy
from roost.engine.lifecycle import Phase
from roost.engine.machine import Machine
from roost.engine.transitions import amend, load
from roost.errors import ConflictError, RoostError, UnavailableError, UnsupportedError
from roost.store import machines

if TYPE_CHECKING:
    from roost.engine.engine import Engine

log = logging.getLogger(__name__)
APPLY_S = 40.0  # after which the network has failed; it gives up sooner by itself
TRIES = 3
PAUSE_S = 0.2

Failure = (RoostError, OSError, TimeoutError)


def require_enforced(policy: Policy, driver: str, capabilities: Capabilities) -> None:
    """Raises UNSUPPORTED for a policy that this driver's machines could ignore."""
    if policy.mode is Mode.OPEN and not policy.observe:
        return
    if not (capabilities.egress_enforced and capabilities.own_network):
        raise UnsupportedError(
            f"Machines of the {driver} driver have the host's network: nothing holds them to an egress policy. "
            "Leave egress open, or ask for a container or microVM.",
            details={"field": "egress", "driver": driver},
        )


async def change(engine: Engine, machine_id: str, wanted: Callable[[Machine], Policy]) -> Machine:
    """``wanted`` is asked in the transaction, of the machine as it is then; the policy holds on return. Raises INVALID_STATE (it is being destroyed), UNSUPPORTED, DEPENDENCY_UNAVAILABLE (it
    is as it was, or was ended), and what ``wanted`` raises."""

    async def job(_: asyncio.Event) -> Machine:
        before, machine = await engine.store.write(lambda c: _write(engine, c, machine_id, wanted))
        engine.amended(machine)
        try:
            await _apply(engine, machine_id, machine.egress)
        except Failure as failure:
            log.warning("the egress policy of %s was not applied: %r", machine_id, failure)
            raise await _refused(engine, before) from failure
        return machine

    return await asyncio.shield(engine.desk.submit(machine_id, "egress", job, join=False))


def _write(
    engine: Engine,
    connection: sa.Connection,
    machine_id: str,
    wanted: Callable[[Machine], Policy],
) -> tuple[Machine, Machine]:
    """Before, and after."""
    before = load(connection, machine_id)
    if before.phase in (Phase.DESTROYING, Phase.DESTROYED):
        raise ConflictError(
            f"The machine is {before.phase}: it cannot be changed any more.",
            details={"phase": before.phase},
        )
    policy = wanted(before)
    require_enforced(policy, before.driver, before.capabilities)
    if policy == before.egress:
        return before, before
    return before, _amend(engine, connection, machine_id, policy)


def _amend(engine: Engine, connection: sa.Connection, machine_id: str, policy: Policy) -> Machine:
    now = engine.clock.now()
    machines.record(connection, machine_id, now, "egress", told(policy))
    machines.trim(connection, machine_id)
    return amend(connection, machine_id, {"egress": policy.to_json()}, now)


def told(policy: Policy) -> str:
    """In one line."""
    text = policy.mode.value
    if policy.mode is Mode.ALLOWLIST:
        text += f" of {len(policy.allow)}: {', '.join(map(str, policy.allow[:8]))}"
        text += ", ..." if len(policy.allow) > 8 else ""
    return f"{text}; observed" if policy.observe else text


async def _apply(engine: Engine, machine_id: str, policy: Policy) -> None:
    async with asyncio.timeout(APPLY_S):
        intercepts = await engine.parts.boundary.intercepts(machine_id)
        await engine.parts.network.apply(machine_id, policy, intercepts)


async def _refused(engine: Engine, before: Machine) -> RoostError:
    """What the caller hears, once network and row say the same again."""
    for _ in range(TRIES):
        try:
            # Where names are proven nobody answers: the rules hold, and that process is told when it is back.
            with contextlib.suppress(UnavailableError):
                await _apply(engine, before.id, before.egress)
            _, machine = await engine.store.write(
                lambda c: _write(engine, c, before.id, lambda _: before.egress)
            )
        except ConflictError as gone:  # it is being destroyed by now
            return gone
        except Failure as failure:
            log.warning("the egress policy of %s was not put back: %r", before.id, failure)
            await asyncio.sleep(PAUSE_S)
            continue
        engine.amended(machine)
        return UnavailableError(
            "The egress policy could not be applied; the one before holds. Try again; the daemon's log says why.",
            details={"machine_id": before.id},
        )
    await _end(engine, before)
    return UnavailableError(
        "The egress policy could neither be applied nor put back, so the machine was ended. Wake it to start it from"
        " its disk under the policy it has then; the daemon's log says why.",
        details={"machine_id": before.id},
    )


async def _end(engine: Engine, machine: Machine) -> None:
    """Whoever watches its process does the rest."""
    log.error("machine %s is ended: nothing holds it to its egress policy", machine.id)
    try:
        await engine.parts.rungs.driver(machine.driver).remove(machine.id)
    except Failure as failure:
        log.error("machine %s could not be ended: %r", machine.id, failure)
