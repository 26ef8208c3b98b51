"""Promotions: a machine goes up the ladder (``climb``), or a fork takes its parent's place, with key, name, end, ports, their links and their preview tokens.

What it keeps of its own: size, environment, labels, idle times, policy and secrets. The parent is left without those,
or destroyed; before the one transaction that moves them nothing has changed.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from roost.engine import climbing, reservations
from roost.engine.climbing import Onto
from roost.engine.engine import Engine
from roost.engine.machine import Machine
from roost.engine.promoting import promote
from roost.errors import InvalidRequestError
from roost.services.keys import Keys
from roost.services.machines import Machines
from roost.services.ports import Ports
from roost.services.templates import Templates
from roost.store import keys as key_rows

DEFAULT_TEMPLATE = "base"  # whose disk a machine gets that was a directory


class Promotions:
    def __init__(
        self,
        engine: Engine,
        machines: Machines,
        ports: Ports,
        keys: Keys,
        templates: Templates,
    ) -> None:
        self._engine = engine
        self._templates = templates
        self._machines = machines
        self._ports = ports
        self._keys = keys

    async def climb(
        self, tenant: str, machine_id: str, isolation: str | None, driver: str | None
    ) -> Machine:
        """The same machine on a higher rung, with its disk; running there if it ran. Its memory is dropped and what runs
        in it ends. Again: nothing changes.

        Raises MACHINE_NOT_FOUND, VALIDATION_FAILED, RUNG_UNAVAILABLE, RUNG_REFUSED, RUNG_LOWER, INVALID_STATE,
        UNSUPPORTED (its egress policy, its volumes), QUOTA_EXCEEDED (it runs, and is larger there), before anything is
        stopped; then what a stop and a wake raise."""
        engine = self._engine
        machine = await self._machines.get(tenant, machine_id)
        if driver is None and isolation == machine.capabilities.isolation.value:
            return machine
        least = await engine.store.read(lambda c: engine.least(c, tenant, machine.unrestricted))
        name, capabilities = engine.rungs.choose(isolation or "auto", driver, least)
        if name == machine.driver:
            return machine
        climbing.check(machine, name, capabilities)
        climbing.check_volumes(machine, name, engine.rungs.driver(name).volumes)
        values: dict[str, Any] = {}
        if not machine.capabilities.disk_image:
            template = await self._templates.resolve(tenant, DEFAULT_TEMPLATE)
            assert template.image is not None
            values = {
                "template_id": template.id,
                "template": template.name,
                "image_digest": template.image.digest,
            }
        size = engine.rungs.driver(name).fit(machine.size)
        reservations.check_size(engine.host(), size.vcpu, size.memory_mib)
        values["memory_mib"] = size.memory_mib
        capabilities = await engine.rungs.prepared(name)
        return await engine.climb(machine_id, Onto(name, capabilities, values))

    async def promote(
        self, tenant: str, machine_id: str, onto: str | None = None, destroy: bool = False
    ) -> Machine:
        """The machine in the place of ``onto`` (its parent unless told otherwise); with ``destroy`` that one is taken
        down then. Also the way back: of a parent onto the child that replaced it. Again: nothing changes.

        Raises MACHINE_NOT_FOUND, VALIDATION_FAILED (it has no parent), INVALID_STATE (they are not parent and child,
        one is being destroyed, or both have a key), QUOTA_EXCEEDED (ports)."""
        child = await self._machines.get(tenant, machine_id)
        onto = child.parent_id if onto is None else onto
        if onto is None:
            raise InvalidRequestError(
                "onto: this machine has no parent whose place it could take.",
                details={"field": "onto"},
            )
        await self._machines.get(tenant, onto)
        tokens: list[str] = []

        def hand_over(connection: sa.Connection, source: str, to: str) -> list[str]:
            tokens[:] = key_rows.hand_over(connection, source, to)
            return self._ports.hand_over(connection, source, to)

        promoted = await promote(self._engine, machine_id, onto, hand_over, destroy)
        await self._ports.handed_over(onto, machine_id)
        if tokens:
            self._keys.ended(tokens)  # what is remembered of them is of the other machine
        return promoted
