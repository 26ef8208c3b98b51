"""Warm machines: made ahead, their first command run, waiting for somebody to whom one of them is just it.

One belongs to nobody until it is handed out: then its row becomes the new owner's, its clock is set, it gets its name,
and that is all a create has left to do. What is kept ready is what was asked for last: a kind is a driver, an
image and a size. Warm machines count against the host's memory and CPU like any other, and make room for one
that is asked for and is not of their kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa
import structlog

from roost import ids
from roost.agent.v1 import agent_pb2 as pb
from roost.drivers.interface import Size
from roost.egress.policy import Policy
from roost.engine import quotas
from roost.engine.engine import Engine
from roost.engine.machine import Machine
from roost.engine.roster import Running
from roost.engine.transitions import amend, load
from roost.errors import CapacityError, LimitError, RoostError
from roost.services import starting
from roost.services.bakes import NOBODY, NOBODYS, Bakes
from roost.services.models import Template
from roost.store import keys, machines

if TYPE_CHECKING:
    from roost.agent.client import AgentClient

log = structlog.get_logger(__name__)

KINDS = 2  # that are kept ready at the same time
REFILL_AFTER_S = 1.0  # after the last create: one that is being made has the processors to itself
RETRY_S = 30.0


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    driver: str
    template_id: str
    image_digest: str
    size: Size

    @staticmethod
    def of(values: Mapping[str, Any]) -> Kind:
        size = Size(values["vcpu"], values["memory_mib"], values["storage_gib"])
        return Kind(values["driver"], values["template_id"], values["image_digest"], size)


@dataclasses.dataclass(slots=True)
class _Shelf:
    """Of one kind."""

    template: Template
    values: Mapping[str, Any]  # the columns that do not tell whose a machine is
    ready: deque[str] = dataclasses.field(default_factory=deque)  # machine ids


class Warm:
    """``each``: how many of a kind are kept; 0: none, ever."""

    def __init__(self, engine: Engine, bakes: Bakes, each: int) -> None:
        self._engine = engine
        self._bakes = bakes
        self._each = each
        self._shelves: OrderedDict[Kind, _Shelf] = OrderedDict()  # the one asked for last, last
        self._wanted = asyncio.Event()
        self._asked_at = 0.0
        self._keeper: asyncio.Task[None] | None = None
        self._adding: asyncio.Task[None] | None = None
        self._clearing: asyncio.Task[None] | None = None
        engine.room.insert(0, self.make_room)

    async def open(self) -> None:
        """Ends those that a daemon before had ready: nobody knows them any more."""

        def fn(connection: sa.Connection) -> list[str]:
            keys.put_tenant(connection, NOBODY, self._engine.clock.now())
            return machines.living_of(connection, NOBODY)

        for machine_id in await self._engine.store.write(fn):
            await self._discard(machine_id)
        if self._each:
            self._keeper = asyncio.create_task(self._keep(), name="warm-machines")

    async def close(self) -> None:
        """Ends them: without a daemon there is nobody to hand them out."""
        await self.halt()
        await self.make_room()

    async def halt(self) -> None:
        """No more are made."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper

    @property
    def count(self) -> int:
        return sum(len(shelf.ready) for shelf in self._shelves.values())

    async def take(self, values: Mapping[str, Any]) -> Machine | None:
        """A running machine with these columns, if one of their kind is ready and can still be given its name.
        Raises QUOTA_EXCEEDED; sqlalchemy's IntegrityError for a key in use."""
        kind = Kind.of(values)
        if values["name"] is not None and not self._engine.rungs.driver(kind.driver).renames:
            return None
        shelf = self._shelves.get(kind)
        while shelf is not None and shelf.ready:
            machine_id = shelf.ready.popleft()
            running = self._engine.roster.peek(machine_id)
            if running is None:  # it ended meanwhile
                self._spawn_discard(machine_id)
                continue
            try:
                with self._engine.journal.observed("take_warm"):
                    return await self._hand_over(running, values)
            except RoostError as error:
                self._spawn_discard(machine_id)
                if isinstance(error, LimitError):
                    raise
                log.warning("warm.lost", machine_id=machine_id, error=error.code)
            except BaseException:
                self._spawn_discard(machine_id)
                raise
        return None

    def want(self, template: Template, values: Mapping[str, Any]) -> None:
        """A machine of this kind was asked for: more of them may be."""
        if not self._each:
            return
        kind = Kind.of(values)
        if kind not in self._shelves:
            plain = {name: value for name, value in values.items() if name not in NOBODYS}
            self._shelves[kind] = _Shelf(template, {**plain, "env": {}})
        self._shelves.move_to_end(kind)
        while len(self._shelves) > KINDS:
            _, shelf = self._shelves.popitem(last=False)
            for machine_id in shelf.ready:
                self._spawn_discard(machine_id)
        self._asked_at = max(self._asked_at, self._engine.clock.monotonic())
        self._wanted.set()

    async def make_room(self) -> bool:
        """Ends all that are ready or being made, and makes no more for a while; whether there were any. Whoever
        asks meanwhile waits for the same."""
        if self._clearing is None:
            if not self.count and self._adding is None:
                return False
            self._asked_at = self._engine.clock.monotonic() + RETRY_S
            self._clearing = asyncio.create_task(self._clear())
        await asyncio.shield(self._clearing)
        return True

    async def _clear(self) -> None:
        try:
            found = [each for shelf in self._shelves.values() for each in shelf.ready]
            for shelf in self._shelves.values():
                shelf.ready.clear()
            if self._adding is not None:
                self._adding.cancel()
                await asyncio.wait({self._adding})
            await asyncio.gather(*(self._discard(each) for each in found))
        finally:
            self._clearing = None

    # --- handing out ----------------------------------------------------------------------------

    async def _hand_over(self, running: Running, values: Mapping[str, Any]) -> Machine:
        engine, machine = self._engine, running.machine
        now = engine.clock.now()

        def fn(connection: sa.Connection) -> Machine:
            quotas.check(connection, values["tenant_id"], quotas.of_machine(values))
            if load(connection, machine.id).handle != running.handle:
                raise CapacityError("The machine ended meanwhile.")
            own = {name: values[name] for name in (*NOBODYS, "env", "egress")}
            times = dict.fromkeys(("created_at", "last_transition_at", "last_activity_at"), now)
            machines.forget_events(connection, machine.id)
            machines.record(connection, machine.id, now, "accepted", "a warm machine was taken")
            machines.record(connection, machine.id, now, "running", "")
            return amend(connection, machine.id, {**own, **times}, now)

        # The row last: one that cannot be renewed is still nobody's, and holds no key.
        made = await engine.change(machine.id, fn, before=lambda: self._renew(running, values))
        engine.roster.touch(machine.id)  # idle until now, and nobody's
        await engine.begun(machine.id, booted=False)
        return made

    async def _renew(self, running: Running, values: Mapping[str, Any]) -> None:
        machine, name = running.machine, values["name"]
        policy = Policy.read(values["egress"])
        if policy != machine.egress:
            await self._engine.parts.network.apply(machine.id, policy)
        if self._freezes(running):
            await self._engine.rungs.driver(machine.driver).thaw(running.handle)
        calls: list[Any] = []
        if machine.capabilities.own_clock:
            calls.append(running.agent.reseed(secrets.token_bytes(64)))
            calls.append(running.agent.set_clock(int(self._engine.clock.now().timestamp() * 1e9)))
        if name is not None:
            calls.append(running.agent.renew_identity(pb.RenewIdentityRequest(hostname=name)))
        await asyncio.gather(*calls)

    # --- making ---------------------------------------------------------------------------------

    def _freezes(self, running: Running) -> bool:
        """Where a kernel of its own ticks while nobody needs it, or what the template started is at work."""
        if self._engine.rungs.driver(running.machine.driver).bakes:
            return True
        return running.machine.capabilities.freeze and starting.of(running.config) is not None

    async def _keep(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            left = self._asked_at + REFILL_AFTER_S - self._engine.clock.monotonic()
            if left > 0:
                await asyncio.sleep(left)
                self._wanted.set()
                continue
            available = self._engine.rungs.available
            lacking = (
                shelf
                for kind, shelf in reversed(self._shelves.items())
                if len(shelf.ready) < self._each and available(kind.driver)
            )
            if (shelf := next(lacking, None)) is None:
                continue
            adding = self._adding = asyncio.create_task(self._add(shelf))
            try:
                await asyncio.wait({adding})
            except asyncio.CancelledError:
                adding.cancel()
                await asyncio.wait({adding})
                raise
            finally:
                self._adding = None
            failure = None if adding.cancelled() else adding.exception()
            if failure is not None:
                known = isinstance(failure, RoostError)
                log.warning(
                    "warm.not_made", error=str(failure), exc_info=None if known else failure
                )
                await asyncio.sleep(RETRY_S)
            self._wanted.set()

    async def _add(self, shelf: _Shelf) -> None:
        engine, values = self._engine, shelf.values
        kind = Kind.of(values)
        async with self._bakes.source(shelf.template, kind.driver, kind.size, {}) as source:
            machine = await engine.create(
                {**values, **NOBODYS, **source}, shelf.template.config, make_room=False
            )
            try:
                await engine.settled(machine.id)
                running = engine.roster.peek(machine.id)
                if running is None:
                    raise CapacityError("The warm machine ended at once.")
                await cast("AgentClient", running.agent).run(
                    pb.StartRequest(execution_id=ids.new(), argv=["/bin/true"], timeout_ms=60_000)
                )
                if self._freezes(running):
                    await engine.rungs.driver(machine.driver).freeze(running.handle)
            except BaseException:
                await asyncio.shield(self._discard(machine.id))
                raise
        if self._shelves.get(kind) is shelf:
            shelf.ready.append(machine.id)
        else:  # others were asked for meanwhile
            await self._discard(machine.id)

    def _spawn_discard(self, machine_id: str) -> None:
        self._engine.background(self._discard(machine_id))
        self._wanted.set()  # another in its place

    async def _discard(self, machine_id: str) -> None:
        try:
            await self._engine.destroy(machine_id)
        except RoostError as error:
            log.warning("warm.left", machine_id=machine_id, error=error.code)
