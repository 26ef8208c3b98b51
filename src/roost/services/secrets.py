"""Secrets of machines: the one door. Values go in here and never come out."""

from __future__ import annotations

import asyncio
import builtins
import functools
from collections.abc import Sequence

import sqlalchemy as sa
import structlog

from roost.engine.engine import Engine
from roost.engine.lifecycle import Phase
from roost.engine.machine import Machine
from roost.engine.transitions import load
from roost.errors import ConflictError, NotFoundError, RoostError, UnsupportedError, bad
from roost.secrets import Secret, SecretSpec
from roost.secrets.keeper import Keeper
from roost.secrets.secret import check_value
from roost.services.machines import Machines

log = structlog.get_logger(__name__)


class Secrets:
    """Every call takes the caller's tenant first; another tenant's machine answers MACHINE_NOT_FOUND."""

    def __init__(self, engine: Engine, machines: Machines, keeper: Keeper) -> None:
        self._engine = engine
        self._store = engine.store
        self._machines = machines
        self._keeper = keeper
        self._unfinished: set[str] = set()  # machines of which a secret went, but not everywhere

    async def list(self, tenant: str, machine_id: str) -> builtins.list[Secret]:
        """By name, without values."""
        machine = await self._machines.get(tenant, machine_id)
        return builtins.list(await self._keeper.of(machine.id))

    async def put(self, tenant: str, machine_id: str, spec: SecretSpec) -> tuple[Secret, bool]:
        """Makes or changes one, effective for the next request of the machine; and whether it is new.

        Raises VALIDATION_FAILED, UNSUPPORTED (its rung does not enforce egress, or mitmproxy is not installed),
        INVALID_STATE, DEPENDENCY_UNAVAILABLE (it is stored; ask again).
        """
        machine = await self._machines.get(tenant, machine_id)
        new = (await self._put(machine, [spec]))[0]
        await self._spread(machine, wait=True)
        found = next(each for each in await self._keeper.of(machine.id) if each.name == spec.name)
        return found, new

    def check(self, specs: Sequence[SecretSpec]) -> None:
        """Before a machine is made for them. Raises VALIDATION_FAILED, UNSUPPORTED."""
        for spec in specs:
            if spec.value is None:
                raise bad("value", "is missing")
            check_value(spec.value)
        names = [each.name for each in specs]
        if len(set(names)) != len(names):
            raise bad("secrets", "have names of their own")
        if specs:
            self._keeper.process.check()

    async def give(self, machine: Machine, specs: Sequence[SecretSpec], wait: bool) -> None:
        """To one that was just made. Raises as ``put``; the machine is then destroyed."""
        if not specs:
            return
        try:
            await self._put(machine, specs)
            await self._spread(machine, wait)
        except BaseException:
            await self._engine.destroy(machine.id, wait=False)
            raise

    async def delete(self, tenant: str, machine_id: str, name: str) -> None:
        """From now on no request has it. Raises NOT_FOUND, and DEPENDENCY_UNAVAILABLE: it is gone, but the boundary was
        not told; ask again."""
        machine = await self._machines.get(tenant, machine_id)
        gone = await self._store.write(lambda c: self._keeper.delete(c, machine.id, name))
        if not gone and machine.id not in self._unfinished:
            raise NotFoundError(
                f"The machine has no secret {name[:64]!r}.", code="SECRET_NOT_FOUND"
            )
        self._unfinished.add(machine.id)
        await self._spread(machine, wait=True)
        self._unfinished.discard(machine.id)

    async def _put(self, machine: Machine, specs: Sequence[SecretSpec]) -> builtins.list[bool]:
        if not machine.capabilities.egress_enforced:
            raise UnsupportedError(
                f"Machines of the {machine.driver} driver reach the network by the host's own: nothing stands between"
                " them and a secret. Use a container or a microVM."
            )
        self._keeper.process.check()
        for spec in specs:
            if spec.value is not None:
                check_value(spec.value)

        def fn(connection: sa.Connection) -> builtins.list[bool]:
            phase = load(connection, machine.id).phase
            if phase in (Phase.DESTROYING, Phase.DESTROYED):
                raise ConflictError(
                    f"The machine is {phase}: it can be given nothing any more.",
                    details={"phase": phase},
                )
            return [
                self._keeper.put(connection, machine.tenant_id, machine.id, each) for each in specs
            ]

        return await self._store.write(fn)

    async def _spread(self, machine: Machine, wait: bool) -> None:
        """To the boundary first, then into the machine, then the network leads there: nothing is sent astray. Where the
        boundary does not answer the network is told all the same, and it is raised afterwards."""
        failed: RoostError | None = None
        try:
            await self._keeper.refresh(machine.id)
        except RoostError as failure:
            failed = failure

        told = False

        async def work() -> None:
            nonlocal told
            now = await self._engine.load(machine.id)
            if now.frozen:  # its programs could not be told
                return
            intercepts = await self._keeper.intercepts(machine.id)
            running = self._engine.roster.peek(machine.id)
            one_user = machine.capabilities.one_user
            if running is not None and intercepts:
                await self._keeper.greeted(machine.id, running.agent, one_user)
            await self._engine.parts.network.apply(machine.id, now.egress, intercepts)
            if running is not None and not intercepts:
                await self._keeper.bade_farewell(machine.id, running.agent, one_user)
            told = True

        if machine.frozen:
            await self._engine.wake(machine.id)
        lined_up = self._engine.line_up(machine.id, work)
        if not wait:
            lined_up.add_done_callback(functools.partial(_log, machine.id))
        else:
            await asyncio.shield(lined_up)
            if not told:  # it was frozen meanwhile
                await self._engine.wake(machine.id)
                await asyncio.shield(self._engine.line_up(machine.id, work))
        if failed is not None:
            raise failed


def _log(machine_id: str, done: asyncio.Future[Machine]) -> None:
    """Of what nobody waits for."""
    if not done.cancelled() and (failure := done.exception()) is not None:
        log.warning("secrets.spread", machine_id=machine_id, error=repr(failure)[:200])
