"""Up the ladder: the same machine, with its id, disk, key and ports, of another driver. Down is refused.

    in its line:  hibernated -> woken, so that its programs end as at any stop; not where its driver is refused
                  runs, frozen -> stopped
                  climb   disk (of one that was a directory: a template's, and what was in it packed beside it)
                          -> row                                         undone when it fails
                  ran -> woken there

The row is one transaction: a daemon killed at any point finds the machine whole on the one rung or on the other. Memory
is its driver's and does not come along. Who starts a virtual machine marks its disk before that runs (``raw_written``);
from then on the host mounts it no more, which is why there is no way down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from roost.drivers.interface import Capabilities
from roost.engine import egress
from roost.engine.flows import TREE_S, Parts, image_of
from roost.engine.journal import Context, Plan, Stage, Step
from roost.engine.lifecycle import Phase, Tier, restartable
from roost.engine.machine import Machine, capabilities_to_json
from roost.engine.transitions import amend, load
from roost.errors import ConflictError, RoostError, UnsupportedError
from roost.store import machines, volumes

_GONE = (Phase.DESTROYING, Phase.DESTROYED)


@dataclass(frozen=True, slots=True)
class Onto:
    """Where it goes. ``values``: columns of its row besides, such as the template of one that gets a disk."""

    driver: str
    capabilities: Capabilities
    values: Mapping[str, Any]


def check(machine: Machine, driver: str, capabilities: Capabilities) -> None:
    """Raises RUNG_LOWER, INVALID_STATE, UNSUPPORTED (its egress policy)."""
    if capabilities.rank < machine.capabilities.rank:
        raw = machine.capabilities.raw_disk
        why = (
            "a virtual machine writes the blocks of its disk itself, and the host mounts no such disk"
            if raw
            else "what ran behind the stronger boundary may have prepared its disk for the weaker one"
        )
        raise ConflictError(
            f"The machine is {_standing(machine.driver, machine.capabilities)} and goes up the ladder only, not to "
            f"{_standing(driver, capabilities)}: {why}. Make another machine there and copy what it is to have.",
            code="RUNG_LOWER",
            details={"isolation": machine.capabilities.isolation.value, "driver": machine.driver},
        )
    if machine.phase not in (Phase.RUNNING, Phase.SLEEPING) and not restartable(machine.state):
        raise ConflictError(
            f"The machine is {machine.phase}: wait until it runs or sleeps.",
            details={"phase": machine.phase},
        )
    egress.require_enforced(machine.egress, driver, capabilities)


def check_volumes(machine: Machine, driver: str, has_volumes: bool) -> None:
    """Raises UNSUPPORTED."""
    if machine.volumes and not has_volumes:
        raise UnsupportedError(f"Machines of the {driver} driver have no volumes; this one has.")


class Climb:
    """What the steps of one climb share; ``machine`` as it stands before, and nothing of it runs."""

    def __init__(self, parts: Parts, machine: Machine, digest: str) -> None:
        self.parts = parts
        self.machine = machine
        self.digest = digest  # of the image its disk is made from, where it has none

    @property
    def brings_tree(self) -> bool:
        return not self.machine.capabilities.disk_image

    async def disk(self, context: Context) -> None:
        if not self.brings_tree:
            return
        storage, machine = self.parts.storage, self.machine
        image = await image_of(storage, self.digest)
        await storage.pack_tree(machine.id, (machine.storage_gib << 30) - image.allocated_bytes)
        await storage.clone(image, machine.id, machine.storage_gib)
        await storage.sync_disk(machine.id)

    async def no_disk(self, context: Context) -> None:
        if self.brings_tree:
            await self.parts.storage.delete_disk(context.machine_id)
            await self.parts.storage.delete_tree(context.machine_id)


def plan(climb: Climb, onto: Onto | None) -> Plan:
    """``onto``: None for one that is only undone any more."""

    def done(connection: sa.Connection, context: Context) -> None:
        assert context.now is not None
        assert onto is not None
        now = load(connection, context.machine_id)
        if now.phase in _GONE:
            return  # a destroy came meanwhile: it takes disk and directory, whichever there are
        values = {
            **onto.values,
            "driver": onto.driver,
            "isolation": onto.capabilities.isolation.value,
            "capabilities": capabilities_to_json(onto.capabilities),
            "memory_image": None,
            "disk_ready": climb.brings_tree or now.disk_ready,
            "brings_tree": climb.brings_tree or now.brings_tree,
        }
        if onto.capabilities.raw_disk:
            for each in now.volumes:
                if not each.read_only:
                    volumes.update(connection, each.volume_id, {"raw_written": True})
        if now.phase == Phase.SLEEPING:
            values["tier"] = Tier.STOPPED.value
        if now.tier == Tier.HIBERNATED:  # it could not be woken
            said = f"its programs ended as at a power cut: the driver {now.driver} cannot be used"
            machines.record(connection, context.machine_id, context.now, "memory_lost", said)
        told = (
            f"from {_standing(now.driver, now.capabilities)} to "
            f"{_standing(onto.driver, onto.capabilities)}, with its disk and without its memory"
        )
        machines.record(connection, context.machine_id, context.now, "promoted", told)
        amend(connection, context.machine_id, values, context.now)

    def left(connection: sa.Connection, context: Context, error: RoostError) -> None:
        """What could not be taken away is swept at the next start; the machine stands where it stood."""

    return Plan(
        "climb",
        (Stage("disk", (Step("disk", climb.disk, climb.no_disk, TREE_S),)),),
        finishes=False,
        done=done,
        stuck=left,
    )


def _standing(driver: str, capabilities: Capabilities) -> str:
    return f"{capabilities.isolation.value} ({driver})"
