"""Which programs may be run in a machine without asking, shown and changed while it lives.

A change holds for what is begun from then on; what runs, and terminals that are open, go on.
"""

from __future__ import annotations

import sqlalchemy as sa

from roost.engine.engine import Engine, check_revision
from roost.engine.lifecycle import Phase
from roost.engine.machine import Machine
from roost.engine.tools import OFF, Tools
from roost.engine.transitions import amend, load
from roost.errors import ConflictError
from roost.services.machines import Machines
from roost.store import machines as rows


class Toolsets:
    """As ``Machines``: the caller's tenant first, MACHINE_NOT_FOUND for another's."""

    def __init__(self, engine: Engine, machines: Machines) -> None:
        self._engine = engine
        self._machines = machines

    async def replace(
        self, tenant: str, machine_id: str, tools: Tools, if_match: int | None = None
    ) -> Machine:
        """Raises INVALID_STATE (it is being destroyed), REVISION_MISMATCH."""
        await self._machines.get(tenant, machine_id)
        engine = self._engine

        def fn(connection: sa.Connection) -> Machine:
            machine = load(connection, machine_id)
            check_revision(machine, if_match)
            if machine.phase in (Phase.DESTROYING, Phase.DESTROYED):
                raise ConflictError(
                    f"The machine is {machine.phase}: it cannot be changed any more.",
                    details={"phase": machine.phase},
                )
            if machine.unrestricted and tools != OFF:
                raise ConflictError(
                    "The machine was made unrestricted: no tool policy holds in it. Make another for that.",
                    details={"unrestricted": True},
                )
            if tools == machine.tools:
                return machine
            now = engine.clock.now()
            rows.record(connection, machine_id, now, "tools", told(tools))
            rows.trim(connection, machine_id)
            return amend(connection, machine_id, {"tools": tools.to_json()}, now)

        machine = await engine.store.write(fn)
        engine.amended(machine)
        return machine


def told(tools: Tools) -> str:
    """In one line."""
    if not tools.allow:
        return tools.mode.value
    programs = list(dict.fromkeys(each.program for each in tools.allow))
    more = ", ..." if len(programs) > 8 else ""
    return f"{tools.mode.value} beyond {len(tools.allow)}: {', '.join(programs[:8])}{more}"
