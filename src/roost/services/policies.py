"""Egress policies: what a machine may reach, what it tried to, and changing the one by the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from roost.egress import edit
from roost.egress.interface import Decision
from roost.egress.policy import Policy, Reach, private_ranges
from roost.egress.suggest import Suggestion, suggest
from roost.engine import egress
from roost.engine.engine import Engine, check_revision
from roost.engine.machine import Machine
from roost.services.machines import Machines


@dataclass(frozen=True, slots=True)
class PatchPolicy:
    """What to change; None and empty stays. As ``edit.edited``."""

    mode: str | None = None
    allow: Sequence[str] | None = None
    observe: bool | None = None
    add: Sequence[str] = ()
    remove: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class EgressReport:
    """``decisions``: what was tried since the machine last started, newest first; none of one that sleeps without its
    network. Which process in the machine it was is not to be seen from outside."""

    policy: Policy
    decisions: list[Decision]
    suggested: Suggestion


class Policies:
    """As ``Machines``: the caller's tenant first, MACHINE_NOT_FOUND for another's."""

    def __init__(self, engine: Engine, machines: Machines) -> None:
        self._engine = engine
        self._machines = machines
        self._reach = Reach(private_ranges(engine.settings.egress_private))

    async def report(self, tenant: str, machine_id: str) -> EgressReport:
        machine = await self._machines.get(tenant, machine_id)
        decisions = await self._engine.parts.network.decisions(machine_id)
        decisions.sort(key=lambda each: -each.last_at)
        suggested = suggest(machine.egress, decisions, self._reach)
        return EgressReport(machine.egress, decisions, suggested)

    async def replace(
        self, tenant: str, machine_id: str, policy: Policy, if_match: int | None = None
    ) -> Machine:
        """On return it holds for new connections and live ones; for a machine that sleeps from its next start on.
        Raises as ``engine.egress.change``, and REVISION_MISMATCH."""
        return await self._change(tenant, machine_id, lambda _: policy, if_match)

    async def patch(
        self, tenant: str, machine_id: str, patch: PatchPolicy, if_match: int | None = None
    ) -> Machine:
        """Raises as ``replace``, and VALIDATION_FAILED."""

        def wanted(machine: Machine) -> Policy:
            return edit.edited(
                machine.egress,
                mode=patch.mode,
                allow=patch.allow,
                observe=patch.observe,
                add=patch.add,
                remove=patch.remove,
            )

        return await self._change(tenant, machine_id, wanted, if_match)

    async def restore(self, tenant: str, machine_id: str) -> Machine:
        """The host's default again. Raises as ``replace``."""
        return await self.replace(tenant, machine_id, self._engine.settings.egress_policy)

    async def _change(
        self,
        tenant: str,
        machine_id: str,
        wanted: Callable[[Machine], Policy],
        if_match: int | None,
    ) -> Machine:
        await self._machines.get(tenant, machine_id)

        def checked(machine: Machine) -> Policy:
            check_revision(machine, if_match)
            return wanted(machine)

        return await egress.change(self._engine, machine_id, checked)
