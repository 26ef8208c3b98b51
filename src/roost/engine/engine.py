"""The engine: what services ask of machines' lives, in the order it is asked."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from datetime import timedelta
from typing import Any, TypeVar

import sqlalchemy as sa

from roost import ids
from roost.clock import Clock
from roost.drivers.interface import Driver, Exit, Isolation
from roost.engine import (
    admission,
    climbing,
    ending,
    flows,
    keeping,
    ladder,
    metering,
    quotas,
    recovery,
    reservations,
)
from roost.engine.changes import Changes
from roost.engine.climbing import Onto
from roost.engine.desk import Desk
from roost.engine.flows import Parts
from roost.engine.identity import HostIdentity
from roost.engine.idle import Idle
from roost.engine.journal import Context, Hook, Interrupted, Journal, Operation, Plan
from roost.engine.ladder import Least, Profile
from roost.engine.lifecycle import (
    HOLDING,
    Command,
    DestroyAsked,
    Phase,
    RollbackAsked,
    SleepAsked,
    Tier,
    WakeAsked,
    WentDown,
    illegal,
)
from roost.engine.machine import Machine, capabilities_to_json
from roost.engine.meter import Meter
from roost.engine.ports import Agents, Boundary, NoBoundary
from roost.engine.reconciler import Reconciler
from roost.engine.reservations import HostSize
from roost.engine.roster import Roster, Running
from roost.engine.rungs import Rungs
from roost.engine.samples import Samples
from roost.engine.timers import Timers
from roost.engine.transitions import Change, advance, amend, load
from roost.engine.turns import Turns
from roost.errors import (
    CapacityError,
    ConflictError,
    MachineError,
    RoostError,
    UnavailableError,
    UnsupportedError,
)
from roost.network.interface import Network
from roost.settings import Settings
from roost.storage.interface import Storage
from roost.store import Store, keys, machines, operations, snapshots, tenants

T = TypeVar("T")
log = logging.getLogger(__name__)
STARTS_AT_ONCE = 8
HOUSEKEEPING_S = 30.0
REMEMBER_DESTROYED = timedelta(hours=1)
REMEMBER_OPERATIONS = timedelta(days=1)


Source = Callable[[Machine], contextlib.AbstractAsyncContextManager[Mapping[str, Any]]]
# What a machine that came up begins with: whether it booted from its disk, and what tells that it is being destroyed.
Begin = Callable[[Running, bool, asyncio.Event], Awaitable[None]]


class Engine:
    """``open`` before anything else, ``close`` last; machines live on in between and after."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        clock: Clock,
        *,
        drivers: Mapping[str, Driver],
        network: Network,
        storage: Storage,
        agents: Agents,
        boundary: Boundary | None = None,
        identity: HostIdentity | None = None,
        host: Callable[[], HostSize] = HostSize.measure,
        boot_id: Callable[[], str] | None = None,
        hook: Hook | None = None,
        retry_delay_s: float = 0.1,
    ) -> None:
        self.store = store
        self.settings = settings
        self.clock = clock
        self.identity = identity or HostIdentity.load(settings.data_dir)
        self.rungs = Rungs(drivers, settings.driver_names, Profile(settings.profile))
        self.host = host
        self.boot_id = boot_id or recovery.host_boot_id
        self.parts = Parts(
            store=store,
            clock=clock,
            rungs=self.rungs,
            network=network,
            storage=storage,
            agents=agents,
            identity=self.identity,
            agent_timeout_s=settings.operation_timeout_s,
            boundary=boundary or NoBoundary(),
        )
        self.journal = Journal(
            store,
            step_timeout_s=settings.operation_timeout_s + 5,
            retry_delay_s=retry_delay_s,
            hook=hook,
        )
        self.roster = Roster(clock.monotonic, self._ended)
        self.desk = Desk()
        self.samples = Samples(clock, self.rungs, self.roster)
        self.meter = Meter(self.parts, self.roster, settings.usage_interval_s, self.samples)
        self.timers = Timers(clock, self._expired)
        self.idle = Idle(self)
        self.reconciler = Reconciler(self)
        # Each gives up what nobody uses now, before any frozen machine goes to the disk; whether there was any.
        self.room: list[Callable[[], Awaitable[bool]]] = []
        self.changes = Changes(store)
        self.source: Source | None = None  # where a machine begins that was not told
        self.begin: Begin | None = None
        self.strangers: set[str] = set()  # adopted frozen: their agents said nothing yet
        self._starts = Turns(STARTS_AT_ONCE)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._held: Counter[str] = Counter()  # snapshots somebody is about to make machines from

    # --- the daemon's life ----------------------------------------------------------------------

    async def open(self) -> None:
        """Opens storage and network, settles what a daemon before left, adopts what lives."""
        await self.parts.storage.open()
        await self.rungs.probe()
        await recovery.recover(self)
        for machine_id, when in await self.store.read(machines.expiring):
            self.timers.set(machine_id, when)
        self.timers.start()
        self.background(self.idle.watch())
        self.background(self._housekeeping())
        self.background(self.meter.run())

    async def close(self, grace_s: float = 10.0) -> None:
        """Lets operations under way end (what cannot in time is recovered at the next start); machines run on."""
        await self.timers.stop()
        await self.desk.drain(grace_s)
        await self._stop_tasks()
        await self.flush_activity()
        self.roster.clear()
        await self.parts.network.close()
        await self.parts.storage.close()

    async def kill(self) -> None:
        """For tests: as if the process ended now."""
        await self.timers.stop()
        await self.desk.kill()
        await self._stop_tasks()
        self.roster.clear()

    # --- what can be asked ----------------------------------------------------------------------

    async def create(
        self,
        values: Mapping[str, Any],
        config: Mapping[str, Any],
        make_room: bool = True,
        *,
        find_source: bool = False,
        in_place_of: str | None = None,
        also: Callable[[sa.Connection, str], None] | None = None,
    ) -> Machine:
        """Reserves the machine (row, memory, CPU) and lines up its making; ``settled`` waits for that.

        ``find_source``: where it begins is asked of ``source`` in its line, which may take long. ``in_place_of``:
        a machine whose reservation is this one's as long, since it waits for it. ``also`` writes in the transaction of
        its row, whose id it is given.

        Raises RUNG_UNAVAILABLE, RUNG_REFUSED, QUOTA_EXCEEDED, CAPACITY_EXCEEDED; sqlalchemy's IntegrityError for a key
        in use.
        """
        self.desk.check()
        placing = self._starts.free and not find_source
        tenant, isolation = values["tenant_id"], Isolation(values["isolation"])

        async def reserve() -> tuple[Machine, Operation]:
            host = self.host()  # each time: room may have been made

            def fn(connection: sa.Connection) -> tuple[Machine, Operation]:
                # It may be held to more since its driver was chosen, or that refused: a bake takes its time.
                self.rungs.require(values["driver"])
                least = self.least(connection, tenant, bool(values.get("unrestricted")))
                ladder.check(least, isolation, "A new machine", "Ask for another isolation.")
                return admission.reserve(
                    connection,
                    self.parts,
                    self.journal,
                    self.settings,
                    host,
                    values,
                    placing=placing,
                    in_place_of=in_place_of,
                    also=also,
                )

            return await self.store.write(fn)

        machine, operation = await (self.with_room(reserve, tenant) if make_room else reserve())
        self.timers.set(machine.id, machine.expires_at)
        self.desk.submit(
            machine.id,
            "create",
            lambda interrupt: self._create(machine, operation, config, interrupt, find_source),
        )
        return machine

    async def settled(self, machine_id: str) -> Machine:
        """Waits for the work in line now; raises what it raised."""
        future = self.desk.last(machine_id)
        if future is not None:
            return await asyncio.shield(future)
        return await self.load(machine_id)

    async def sleep(self, machine_id: str, tier: Tier | None = None) -> Machine:
        """As asked, or the deepest that keeps all its rung can; one that sleeps as deep already stays as it
        is. Raises INVALID_STATE; MACHINE_FAILED and TIMEOUT where it could not."""
        return await asyncio.shield(
            self.desk.submit(machine_id, f"sleep {tier}", lambda _: self._sleep(machine_id, tier))
        )

    async def doze(self, machine_id: str, tier: Tier) -> bool:
        """``sleep`` of one that still is idle, or frozen, when its turn comes; whether it was put to sleep."""

        async def job(_: asyncio.Event) -> Machine:
            machine = await self.load(machine_id)
            limit, idle = machine.autosleep_seconds, self.roster.idle_for(machine_id)
            if machine.frozen or (limit is not None and idle is not None and idle >= limit):
                return await self._sleep(machine_id, tier)
            return machine

        machine = await asyncio.shield(self.desk.submit(machine_id, f"doze {tier}", job))
        return machine.phase == Phase.SLEEPING

    async def snapshot(
        self,
        machine_id: str,
        values: Mapping[str, Any],
        snapshot_id: str | None = None,
        memory: bool = True,
    ) -> str:
        """Keeps a running or sleeping machine at one instant; the snapshot's id once it is durable. ``values``
        are the caller's columns (tenant_id, name, for_fork). ``snapshot_id``: a new one that the caller holds.
        Without ``memory`` the disk alone, synced first where it runs.

        Raises INVALID_STATE, UNSUPPORTED, STORAGE_FULL, MACHINE_FAILED, TIMEOUT (nothing is kept, the machine
        runs on); sqlalchemy's IntegrityError for a name in use."""
        made = snapshot_id or ids.new()
        await asyncio.shield(
            self.desk.submit(
                machine_id,
                "snapshot",
                lambda _: self._snapshot(machine_id, made, values, memory),
                join=False,
            )
        )
        return made

    async def rollback(self, machine_id: str, snapshot_id: str) -> Machine:
        """Back to a snapshot of its own: what it did since is gone. Runs if it ran, else sleeps."""
        return await asyncio.shield(
            self.desk.submit(
                machine_id,
                "rollback",
                lambda interrupt: self._rollback(machine_id, snapshot_id, interrupt),
                join=False,
            )
        )

    @contextlib.contextmanager
    def holding(self, snapshot_id: str) -> Iterator[None]:
        """Meanwhile it is not deleted."""
        self._held[snapshot_id] += 1
        try:
            yield
        finally:
            self._held[snapshot_id] -= 1
            self._held += Counter()  # drops what is at zero

    async def delete_snapshot(self, snapshot_id: str) -> bool:
        """False while machines are being made from it or sleep on it."""

        def fn(connection: sa.Connection) -> bool:
            if snapshots.users(connection, snapshot_id):
                return False
            snapshots.delete(connection, snapshot_id)
            metering.end(connection, snapshot_id, self.clock.now())
            return True

        if self._held[snapshot_id] or not await self.store.write(fn):
            return False
        await self.parts.storage.delete_snapshot(snapshot_id)
        return True

    async def climb(self, machine_id: str, onto: Onto) -> Machine:
        """The same machine of another driver (``climbing``): running there if it ran, else as it was. One that is of
        that driver already stays as it is. Raises RUNG_LOWER, INVALID_STATE, UNSUPPORTED, QUOTA_EXCEEDED of one that
        runs, and what a stop and a wake raise; the last with the machine where it was to go."""
        return await asyncio.shield(
            self.desk.submit(
                machine_id,
                f"climb {onto.driver}",
                lambda interrupt: self._climb(machine_id, onto, interrupt),
            )
        )

    async def wake(self, machine_id: str, from_failed: bool = True) -> Machine:
        """Running, or as it was: RUNG_UNAVAILABLE where its driver may start none now (one that is frozen goes on: it
        is not started). With ``from_failed=False``, for what needs it and nobody asked to be woken, a failed machine raises
        MACHINE_FAILED instead, and one asleep that is not to be woken so MACHINE_SLEEPING."""
        kind = "wake" if from_failed else "awake"
        return await asyncio.shield(
            self.desk.submit(
                machine_id, kind, lambda interrupt: self._wake(machine_id, from_failed, interrupt)
            )
        )

    async def destroy(
        self, machine_id: str, wait: bool = True, revision: int | None = None
    ) -> Machine:
        """Marks it at once, interrupts its create or wake, then takes everything down."""

        def fn(connection: sa.Connection) -> tuple[Change, Operation | None]:
            check_revision(load(connection, machine_id), revision)
            return self.condemn(connection, machine_id)

        self.desk.check()
        return await self.condemned(*await self.store.write(fn), wait)

    def condemn(
        self, connection: sa.Connection, machine_id: str
    ) -> tuple[Change, Operation | None]:
        """Marks it, in somebody's transaction, after which ``condemned`` takes it down."""
        change = advance(connection, machine_id, DestroyAsked(), self.clock.now())
        if Command.RUN_DESTROY not in change.commands:
            return change, None
        operations.supersede(connection, machine_id, self.clock.now(), "stuck")
        return change, self.journal.open(connection, "destroy", machine_id, step=1)

    async def condemned(self, change: Change, operation: Operation | None, wait: bool) -> Machine:
        machine_id = change.machine.id
        self.timers.set(machine_id, None)
        self.samples.forget(machine_id)
        if operation is None:
            future = self.desk.last(machine_id)
        else:
            self.roster.remove(machine_id)
            self.desk.interrupt(machine_id)
            end = flows.End(self.parts, change.machine, settle=True)
            future = self.desk.submit(
                machine_id,
                "destroy",
                lambda _: self._run(operation, flows.destroy(end)),
                join=False,
            )
        if not wait or future is None:
            return change.machine
        try:
            return await asyncio.shield(future)
        except RoostError as error:
            raise failed(machine_id, "destroyed", error) from error

    async def change(
        self,
        machine_id: str,
        fn: Callable[[sa.Connection], Machine],
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> Machine:
        """A change of the row in line with the machine's operations, ``before`` (live limits) first."""

        async def job(_: asyncio.Event) -> Machine:
            if before is not None:
                await before()
            return await self.store.write(fn)

        machine = await asyncio.shield(self.desk.submit(machine_id, "change", job, join=False))
        self.amended(machine)
        return machine

    def line_up(
        self, machine_id: str, work: Callable[[], Awaitable[None]]
    ) -> asyncio.Future[Machine]:
        """``work`` once nobody else is at work on the machine; await the answer shielded."""

        async def job(_: asyncio.Event) -> Machine:
            await work()
            return await self.load(machine_id)

        return self.desk.submit(machine_id, "settle", job, join=False)

    async def with_room(
        self,
        attempt: Callable[[], Awaitable[T]],
        tenant: str | None = None,
        without: str | None = None,
    ) -> T:
        """What may raise CAPACITY_EXCEEDED: again for as long as room can be made for it. Nothing is given up where
        all of it would not do. Frozen machines of ``tenant`` go first; ``without`` is one that asks for itself.
        """
        try:
            return await attempt()
        except CapacityError as error:
            if error.code != "CAPACITY_EXCEEDED" or "short" not in error.details:
                raise
        while True:
            # Before it is refused again: what others give up in between is then counted twice, and not never.
            free = await self.store.read(lambda c: machines.yielding(c, HOLDING, without))
            try:
                return await attempt()
            except CapacityError as error:
                known = error.code == "CAPACITY_EXCEEDED" and "short" in error.details
                if not (known and reservations.could_fit(error.details, *free)):
                    raise
                if not await self._make_room(error.details["short"], tenant):
                    raise

    async def _make_room(self, short: str, tenant: str | None) -> bool:
        """Whether anything was given up."""
        for give_up in self.room:
            if await give_up():
                return True
        return short != "vcpu" and await self.idle.make_room(tenant)  # the frozen hold no CPU

    def amended(self, machine: Machine) -> None:
        """Tells memory what the row has become."""
        self.roster.update(machine)
        if machine.phase not in (Phase.DESTROYING, Phase.DESTROYED):
            self.timers.set(machine.id, machine.expires_at)

    async def load(self, machine_id: str) -> Machine:
        return await self.store.read(lambda c: load(c, machine_id))

    def least(self, connection: sa.Connection, tenant: str, unrestricted: bool = False) -> Least:
        """Where machines of the tenant may stand."""
        operators = tenant in (keys.DEFAULT_TENANT, keys.NOBODY)
        required = tenants.isolation(connection, tenant)
        return ladder.least(self.rungs.profile, operators, required, unrestricted)

    async def stuck(self) -> list[dict[str, Any]]:
        """Operations that can neither be done nor undone."""
        rows = await self.store.read(lambda c: operations.open_ones(c, state="stuck"))
        return [
            {"machine_id": r["machine_id"], "operation": r["kind"], "error": r["error"]}
            for r in rows
        ]

    # --- jobs (in line, one at a time a machine) ------------------------------------------------

    async def _create(
        self,
        machine: Machine,
        operation: Operation,
        config: Mapping[str, Any],
        interrupt: asyncio.Event,
        find_source: bool,
    ) -> Machine:
        failure: Exception | None = None
        if find_source:
            machine, failure = await self._found(machine, interrupt)
        start = flows.Start(self.parts, machine, config, fresh_disk=True)
        start.failure = failure
        async with self._starts.turn(interrupt):
            try:
                made = await self._run_start(operation, flows.create(start), start, interrupt)
            except Interrupted:
                raise
            except RoostError as error:
                raise failed(machine.id, "created", error) from error
        await self.begun(machine.id, start.image is None, interrupt)
        return made

    async def _found(
        self, machine: Machine, interrupt: asyncio.Event
    ) -> tuple[Machine, Exception | None]:
        """The machine once its row says where it begins, or why that cannot be: for its flow to undo. An interrupt
        ends the waiting, and the flow."""
        if self.source is None or machine.snapshot_id is not None:
            return machine, None
        finding = asyncio.ensure_future(self._find(self.source, machine))
        told = asyncio.ensure_future(interrupt.wait())
        try:
            await asyncio.wait({finding, told}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            told.cancel()
            finding.cancel()  # of no effect on one that is done
            await asyncio.wait({finding})
        if finding.cancelled():
            return machine, None
        failure = finding.exception()
        if failure is None:
            return finding.result(), None
        if not isinstance(failure, Exception):
            raise failure
        return machine, failure

    async def _find(self, source: Source, machine: Machine) -> Machine:
        async with source(machine) as values:
            if values:
                await self.store.write(lambda c: machines.update(c, machine.id, values))
        return await self.load(machine.id)

    async def _wake(
        self,
        machine_id: str,
        from_failed: bool,
        interrupt: asyncio.Event,
        climbing: bool = False,
    ) -> Machine:
        machine = await self.load(machine_id)
        if machine.phase == Phase.FAILED and not from_failed:
            raise MachineError(
                f"The machine failed ({machine.reason}). "
                + (
                    "Wake it to start it again from its disk."
                    if machine.retryable
                    else "Delete it."
                ),
                code="MACHINE_FAILED",
                retryable=False,
                details={"machine_id": machine_id, "reason": machine.reason},
            )
        if machine.phase == Phase.SLEEPING and not (from_failed or machine.autowake):
            raise sleeping(
                machine
            )  # every visitor of its previews may come here: nothing is written
        await recovery.unstick(self, machine_id)

        def fn(connection: sa.Connection) -> tuple[Change, Operation | None, dict[str, Any]]:
            before = load(connection, machine_id)
            values: dict[str, Any] = {}
            if (capabilities := self.rungs.capabilities(before.driver)) is not None:
                values = {"capabilities": capabilities_to_json(capabilities)}
            if before.phase == Phase.SLEEPING and not (from_failed or before.autowake):
                raise sleeping(before)
            if before.phase == Phase.RUNNING:
                values = {}
            if before.frozen:
                values = {}
            if before.phase != Phase.RUNNING and not climbing:
                least = self.least(connection, before.tenant_id, before.unrestricted)
                remedy = "It keeps its disk: take it up with promote."
                ladder.check(least, before.capabilities.isolation, "The machine", remedy)
            change = advance(connection, machine_id, WakeAsked(), self.clock.now(), values)
            if not change.commands:
                return change, None, {}
            if Command.RUN_THAW not in change.commands:
                self.rungs.require(before.driver)
            asked = quotas.of_start({"vcpu": before.vcpu, "memory_mib": before.memory_mib})
            quotas.check(connection, before.tenant_id, asked, without=machine_id)
            held = reservations.Held(*machines.held(connection, HOLDING, without=machine_id))
            reservations.admit(self.settings, self.host(), held, before.vcpu, before.memory_mib)
            if Command.RUN_THAW in change.commands:
                return change, self.journal.open(connection, "thaw", machine_id, step=1), {}
            context = {
                "fresh_disk": not before.disk_ready,
                "failed_before": before.reason if before.phase == Phase.FAILED else None,
            }
            operation = self.journal.open(connection, "wake", machine_id, context, step=1)
            return change, operation, flows.config_of(connection, before.template_id)

        change, operation, config = await self.with_room(
            lambda: self.store.write(fn), without=machine_id
        )
        if operation is None:
            if self.roster.peek(machine_id) is None and change.machine.phase == Phase.RUNNING:
                self.roster.thaw(change.machine)  # a freeze was undone when nobody looked
            return change.machine
        machine = change.machine
        if operation.kind == "thaw":
            return await self._thaw(machine, operation)
        fresh = bool(operation.context["fresh_disk"])
        failure: Exception | None = None
        if fresh:
            machine, failure = await self._found(machine, interrupt)
        start = flows.Start(self.parts, machine, config, fresh)
        start.failure = failure
        async with self._starts.turn(interrupt):
            try:
                woken = await self._run_start(operation, flows.wake(start), start, interrupt)
            except (Interrupted, ConflictError):
                raise
            except RoostError as error:
                if start.lost is not None:  # its row does not name it any more
                    await self._discard(machine_id)
                raise failed(machine_id, "woken", error) from error
        await self.begun(machine_id, start.image is None, interrupt)
        return woken

    async def _thaw(self, machine: Machine, operation: Operation) -> Machine:
        try:
            thawed = await self._run(operation, flows.thaw(flows.Still(self.parts, machine)))
        except RoostError as error:
            raise failed(machine.id, "woken", error) from error
        if thawed.phase != Phase.RUNNING:  # a destroy came meanwhile
            raise illegal(thawed.state, WakeAsked())
        self.roster.thaw(thawed)
        if machine.id in self.strangers:
            self.strangers.discard(machine.id)
            self.background(recovery.acquainted(self, thawed))
        return thawed

    async def _run_start(
        self, operation: Operation, plan: Plan, start: flows.Start, interrupt: asyncio.Event
    ) -> Machine:
        context = await self.journal.run(operation, plan, interrupt)
        machine = changed(context)
        self.meter.soon()
        self.enlist(machine, start.config)
        image = start.machine.memory_image
        if image is not None and image.snapshot_id is None:
            await self._discard(machine.id)
        if start.machine.brings_tree:
            await self._left(machine.id, self.parts.storage.delete_tree)
        return machine

    async def begun(
        self, machine_id: str, booted: bool, interrupt: asyncio.Event | None = None
    ) -> None:
        """After it is listed as live: it runs whatever comes of this. Raises TEMPLATE_NOT_READY."""
        running = self.roster.peek(machine_id)
        if self.begin is not None and running is not None:
            await self.begin(running, booted, interrupt or asyncio.Event())

    async def _discard(self, machine_id: str) -> None:
        """The memory of a machine's sleep; what fails here is swept at the next start."""
        try:
            await self.parts.storage.delete_memory(machine_id)
        except (RoostError, OSError) as error:
            log.warning("the memory of %s could not be deleted: %s", machine_id, error)

    async def _snapshot(
        self, machine_id: str, snapshot_id: str, values: Mapping[str, Any], memory: bool
    ) -> Machine:
        def fn(connection: sa.Connection) -> tuple[Machine, Operation]:
            machine = load(connection, machine_id)
            if machine.phase not in (Phase.RUNNING, Phase.SLEEPING) or not machine.disk_ready:
                raise illegal(machine.state, "be captured")
            if machine.brings_tree:
                raise ConflictError(
                    "What was in its directory before it was promoted is not on its disk yet: wake it first.",
                    details={"phase": machine.phase},
                )
            row = machines.get(connection, machine_id)
            assert row is not None
            now = self.clock.now()
            if not values.get("for_fork", False):
                asked = {"storage_gib": machine.storage_gib}
                quotas.check(connection, values["tenant_id"], asked)
            snapshots.insert(
                connection,
                {
                    "id": snapshot_id,
                    "machine_id": machine_id,
                    "status": "creating",
                    "machine": {name: row[name] for name in keeping.TAKEN_OVER},
                    "created_at": now,
                    **values,
                },
            )
            context = {"snapshot_id": snapshot_id}
            return machine, self.journal.open(connection, "snapshot", machine_id, context, step=1)

        frozen = (await self.load(machine_id)).frozen
        if (
            frozen
        ):  # whoever asked for the capture asked for this, also where nothing else may wake it
            await self._wake(machine_id, True, asyncio.Event())
        try:
            return await self._kept(machine_id, snapshot_id, values, fn, memory)
        finally:
            if frozen:
                await self._again(machine_id)

    async def _again(self, machine_id: str) -> None:
        """Frozen, as it was before it was woken for a capture."""
        try:
            await self._sleep(machine_id, Tier.FROZEN)
        except RoostError as error:
            log.warning("machine %s was woken for a capture and runs on: %s", machine_id, error)

    async def _kept(
        self,
        machine_id: str,
        snapshot_id: str,
        values: Mapping[str, Any],
        fn: Callable[[sa.Connection], tuple[Machine, Operation]],
        memory: bool,
    ) -> Machine:
        machine, operation = await self.store.write(fn)
        durable = not values.get("for_fork", False)
        keep = keeping.Keep(self.parts, machine, snapshot_id, durable, memory)
        async with self._quiet(machine, keep.memory):
            await self.journal.run(operation, keeping.snapshot(keep))
        self.meter.soon()
        return await self.load(machine_id)

    @contextlib.asynccontextmanager
    async def _quiet(self, machine: Machine, memory: bool) -> AsyncIterator[None]:
        """Where its driver needs that to keep memory, nobody speaks to the agent meanwhile: calls wait in the machine's
        line."""
        running = self.roster.peek(machine.id)
        hangs_up = self.rungs.driver(machine.driver).hangs_up and machine.memory_kept
        if running is None or not (hangs_up and memory):
            yield
            return
        self.roster.remove(machine.id)
        self.parts.agents.drop(machine.id)
        try:
            yield
        finally:
            now = await self.load(machine.id)
            if now.phase == Phase.RUNNING:
                self.enlist(now, running.config)

    async def _rollback(
        self, machine_id: str, snapshot_id: str, interrupt: asyncio.Event
    ) -> Machine:
        def fn(connection: sa.Connection) -> tuple[Machine, Change, Operation]:
            before = load(connection, machine_id)
            row = snapshots.get(connection, snapshot_id)
            if row is None or row["machine_id"] != machine_id or row["status"] != "ready":
                raise keeping.not_found(snapshot_id)
            if before.phase == Phase.RUNNING:
                self.rungs.require(before.driver)  # it would not come back
            change = advance(connection, machine_id, RollbackAsked(), self.clock.now())
            if row["machine"]["capabilities"]["disk_image"] != before.capabilities.disk_image:
                raise UnsupportedError(
                    "That snapshot is of the directory it was before it was promoted; it has a disk now. Make another"
                    " machine from it."
                )
            # Memory is its driver's: one that was promoted since goes back to the disk alone.
            mine = row["machine"]["driver"] == before.driver
            context = {
                "snapshot_id": snapshot_id,
                "memory_image": row["memory_image"] if mine else None,
            }
            operation = self.journal.open(connection, "rollback", machine_id, context, step=1)
            return before, change, operation

        with self.holding(snapshot_id):
            before, change, operation = await self.store.write(fn)
            self.roster.remove(machine_id)
            end = keeping.Rollback(self.parts, change.machine, snapshot_id)
            machine = await self._run(operation, keeping.rollback(end))
            if before.phase == Phase.RUNNING and machine.phase == Phase.SLEEPING:
                machine = await self._wake(machine_id, True, interrupt)
        return machine

    async def _climb(self, machine_id: str, onto: Onto, interrupt: asyncio.Event) -> Machine:
        before = await self.load(machine_id)
        if before.driver == onto.driver:
            return before
        climbing.check(before, onto.driver, onto.capabilities)
        ran = before.phase == Phase.RUNNING
        if ran:  # as large as it is there it wakes: that is refused while it still runs
            memory = onto.values.get("memory_mib", before.memory_mib)
            asked = quotas.of_start({"vcpu": before.vcpu, "memory_mib": memory})
            await self.store.read(
                lambda c: quotas.check(c, before.tenant_id, asked, without=machine_id)
            )
        hibernated = before.phase == Phase.SLEEPING and before.tier == Tier.HIBERNATED
        if hibernated and self.rungs.available(before.driver):
            try:
                await self._wake(machine_id, True, interrupt, climbing=True)
            except RoostError as error:
                # One without its memory booted, maybe where it may not be: it is stopped, whatever its template says.
                if error.code != "TEMPLATE_NOT_READY":
                    if (await self.load(machine_id)).phase == Phase.RUNNING:
                        await self._sleep(machine_id, Tier.STOPPED)
                    raise
        if before.phase != Phase.FAILED and before.tier != Tier.STOPPED:
            await self._sleep(machine_id, Tier.STOPPED)
        await recovery.unstick(self, machine_id)

        def fn(connection: sa.Connection) -> tuple[Machine, Operation]:
            now = load(connection, machine_id)
            climbing.check(now, onto.driver, onto.capabilities)
            return now, self.journal.open(connection, "climb", machine_id, step=1)

        machine, operation = await self.store.write(fn)
        climb = climbing.Climb(self.parts, machine, str(onto.values.get("image_digest", "")))
        try:
            climbed = await self._run(operation, climbing.plan(climb, onto))
        except RoostError as error:
            if ran:  # where it was
                with contextlib.suppress(RoostError):
                    await self._wake(machine_id, True, interrupt)
            raise failed(machine_id, "promoted", error) from error
        if machine.memory_image is not None:  # of one that failed or did not wake
            await self._discard(machine_id)
        if climb.brings_tree:
            await self._left(machine_id, self.parts.storage.delete_home)
        if ran and climbed.driver == onto.driver:
            return await self._wake(machine_id, True, interrupt)
        return climbed

    async def _left(self, machine_id: str, delete: Callable[[str], Awaitable[None]]) -> None:
        """What it had before it was promoted; what fails here is swept at the next start."""
        try:
            await delete(machine_id)
        except (RoostError, OSError) as error:
            log.warning("what %s was before could not be deleted: %s", machine_id, error)

    async def _sleep(self, machine_id: str, asked: Tier | None) -> Machine:
        """Who comes from now on gets in line behind it."""
        runs = self.roster.peek(machine_id) is not None
        self.roster.freeze(machine_id)
        try:
            return await self._slept(machine_id, asked)
        except BaseException:
            if runs:
                await self._runs_on(machine_id)
            raise

    async def _runs_on(self, machine_id: str) -> None:
        now = await self.load(machine_id)
        if now.phase == Phase.RUNNING:
            self.roster.thaw(now)

    async def _slept(self, machine_id: str, asked: Tier | None) -> Machine:
        def fn(connection: sa.Connection) -> tuple[bool, Tier, Change, Operation | None]:
            before = load(connection, machine_id)
            tier = asked or before.deepest
            change = advance(connection, machine_id, SleepAsked(tier), self.clock.now())
            if not change.commands:
                return before.frozen, tier, change, None
            kind = "freeze" if Command.RUN_FREEZE in change.commands else "sleep"
            keep = tier is Tier.HIBERNATED
            context = {"keep_memory": keep, "frozen": before.frozen}
            operation = self.journal.open(connection, kind, machine_id, context, step=1)
            return before.frozen, tier, change, operation

        frozen, tier, change, operation = await self.store.write(fn)
        if operation is None:
            return change.machine
        try:
            if operation.kind == "freeze":
                machine = await self._freeze(change.machine, operation)
            else:
                self.roster.remove(machine_id)
                keep = tier is Tier.HIBERNATED
                end = flows.End(self.parts, change.machine, keep_memory=keep, frozen=frozen)
                machine = await self._run(operation, flows.sleep(end))
        except RoostError as error:
            raise failed(machine_id, "put to sleep", error) from error
        self.meter.soon()
        if machine.phase != Phase.SLEEPING:  # a destroy came meanwhile
            raise illegal(machine.state, SleepAsked(tier))
        return machine

    async def _freeze(self, machine: Machine, operation: Operation) -> Machine:
        frozen = await self._run(operation, flows.freeze(flows.Still(self.parts, machine)))
        self.roster.update(frozen)
        return frozen

    async def _crashed(self, machine: Machine, how: Exit, interrupt: asyncio.Event) -> Machine:
        """A machine whose end nobody asked for here. One that rebooted itself starts again from its disk."""

        def fn(connection: sa.Connection) -> tuple[Machine, Operation | None]:
            now = load(connection, machine.id)
            lived = now.phase == Phase.RUNNING or now.frozen
            if not lived or now.generation != machine.generation:
                return now, None
            event, message = ending.told(how, now.capabilities)
            if now.frozen:
                event = WentDown("its memory was lost")
            change = advance(connection, machine.id, event, self.clock.now(), None, message)
            return change.machine, self.journal.open(connection, "reap", machine.id, step=1)

        now, operation = await self.store.write(fn)
        if operation is not None:
            end = flows.End(self.parts, now, hush=False)
            await self._run(operation, flows.reap(end))
            if (
                how.reason == "rebooted"
            ):  # it did not go to sleep: ``autowake`` says nothing of this
                return await self._wake(machine.id, True, interrupt)
        return now

    async def _run(self, operation: Operation, plan: Plan) -> Machine:
        context = await self.journal.run(operation, plan)
        if context.change is not None:
            return context.change.machine
        return await self.load(operation.machine_id)

    # --- what happens by itself -----------------------------------------------------------------

    def enlist(self, machine: Machine, config: Mapping[str, Any]) -> None:
        """Lists a running or frozen machine as live and watches its process."""
        handle = machine.handle
        assert handle is not None
        token = self.identity.agent_token(machine.id, machine.generation)
        agent = self.parts.agents.get(machine.id, handle.agent_target, token)
        driver = self.rungs.driver(machine.driver)
        with contextlib.suppress(RoostError):  # it has ended already: whoever watches it is told
            driver.use_token(handle, token)
        config = {**config, "env": {**driver.environment(), **(config.get("env") or {})}}
        frozen_for = None
        if machine.frozen:
            asleep = self.clock.now() - machine.last_transition_at
            frozen_for = max(0.0, asleep.total_seconds())
        self.roster.add(Running(machine, agent, config, handle), driver, frozen_for)

    def _ended(self, machine: Machine, how: Exit) -> None:
        self.parts.agents.drop(machine.id)
        with contextlib.suppress(UnavailableError):  # stopping: the next start finds it dead
            self.desk.submit(
                machine.id,
                "crashed",
                lambda interrupt: self._crashed(machine, how, interrupt),
                join=False,
            )

    def _expired(self, machine_id: str) -> None:
        self.background(self._expire(machine_id))

    async def _expire(self, machine_id: str) -> None:
        try:
            machine = await self.load(machine_id)
            if machine.expires_at is None:
                return
            if machine.expires_at > self.clock.now():
                self.timers.set(machine_id, machine.expires_at)
                return
            if machine.expiry == "sleep":
                await asyncio.shield(
                    self.desk.submit(
                        machine_id, "expire", lambda _: self._doze_off(machine_id), join=False
                    )
                )
                return
            self.desk.check()
            ended = await self.store.write(lambda c: self._overdue(c, machine_id))
            if ended is None:  # it was given more time, or another end, just now
                self.amended(await self.load(machine_id))
                return
            await self.condemned(*ended, wait=True)
        except RoostError as error:
            log.warning("machine %s expired and could not be ended: %s", machine_id, error)
            again = ("DATABASE_UNAVAILABLE", "STORAGE_FULL", "TIMEOUT", "MACHINE_FAILED")
            if error.code in again:
                self.timers.set(machine_id, self.clock.now() + timedelta(seconds=30))

    def _overdue(
        self, connection: sa.Connection, machine_id: str
    ) -> tuple[Change, Operation | None] | None:
        """Condemned because its time is over, unless it no longer is: seen and done in one transaction."""
        machine, now = load(connection, machine_id), self.clock.now()
        gone = machine.phase in (Phase.DESTROYING, Phase.DESTROYED)
        over = machine.expires_at is not None and machine.expires_at <= now
        if gone or not over or machine.expiry != "destroy":
            return None
        machines.record(connection, machine_id, now, "expired", "its ttl has passed")
        return self.condemn(connection, machine_id)

    async def _doze_off(self, machine_id: str) -> Machine:
        """Its time is over, and it goes to sleep rather than away: asleep it has no end any more."""
        machine = await self.load(machine_id)
        expires = machine.expires_at
        if expires is None or expires > self.clock.now() or machine.expiry != "sleep":
            self.timers.set(machine_id, expires)
            return machine
        if machine.phase == Phase.RUNNING or machine.frozen:
            await self._sleep(machine_id, None)

        def fn(connection: sa.Connection) -> Machine:
            now = load(connection, machine_id)
            if now.expires_at != expires or now.phase in (Phase.DESTROYING, Phase.DESTROYED):
                return now
            at = self.clock.now()
            machines.record(connection, machine_id, at, "expired", "its ttl has passed: it sleeps")
            return amend(connection, machine_id, {"expires_at": None, "ttl_seconds": None}, at)

        machine = await self.store.write(fn)
        self.amended(machine)
        return machine

    async def _housekeeping(self) -> None:
        while True:
            await self.clock.sleep(HOUSEKEEPING_S)
            try:
                await self.flush_activity()
                await self.forget()
                await self.collect()
                await self.settle_left_overs()
                await self.reconciler.look()
                await self.rungs.look_again()
            except RoostError as error:
                log.warning("housekeeping: %s", error)
            except Exception:
                log.exception("housekeeping")

    async def settle_left_overs(self) -> None:
        """Operations whose last row could not be written (the database was away) and nobody is at."""
        before = self.clock.now() - timedelta(seconds=HOUSEKEEPING_S)
        for machine_id in await self.store.read(lambda c: operations.idle_since(c, before)):
            if self.desk.last(machine_id) is None:
                self.line_up(machine_id, functools.partial(recovery.settle, self, machine_id))

    async def forget(self) -> None:
        """Rows of what is long destroyed or done."""
        now = self.clock.now()

        def fn(connection: sa.Connection) -> None:
            machines.forget_destroyed(connection, now - REMEMBER_DESTROYED)
            operations.forget_ended(connection, now - REMEMBER_OPERATIONS)

        await self.store.write(fn)

    async def collect(self) -> None:
        """Snapshots of forks that no machine needs any more. Whoever made the last of them has his machine, whatever
        comes of this: what fails, or takes longer than a step may, is swept at the next start."""
        for snapshot_id in await self.store.read(snapshots.of_forks):
            try:
                async with asyncio.timeout(self.parts.agent_timeout_s):
                    await self.delete_snapshot(snapshot_id)
            except (RoostError, OSError, TimeoutError) as error:
                log.warning("the snapshot %s could not be deleted: %r", snapshot_id, error)

    async def flush_activity(self) -> None:
        active = self.roster.active()
        if not active:
            return
        now = self.clock.now()

        def fn(connection: sa.Connection) -> None:
            for machine_id, ago in active:
                at = now - timedelta(seconds=ago)
                machines.update(connection, machine_id, {"last_activity_at": at})

        await self.store.write(fn)

    def background(self, work: Coroutine[Any, Any, object]) -> None:
        """Ends with the engine."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stop_tasks(self) -> None:
        tasks: Sequence[asyncio.Task[Any]] = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def check_revision(machine: Machine, revision: int | None) -> None:
    if revision is not None and revision != machine.revision:
        raise ConflictError(
            f"The machine is at revision {machine.revision}, not {revision}: read it again.",
            code="REVISION_MISMATCH",
            details={"revision": machine.revision},
        )


def failed(machine_id: str, what: str, error: RoostError) -> RoostError:
    """What the caller of an operation hears: errors of capacity and state as they are, others as the machine's."""
    error.details.setdefault("machine_id", machine_id)
    if error.status in (409, 412, 422, 429, 503, 507, 504):
        return error
    return MachineError(
        f"The machine could not be {what}: {error.message}",
        code="MACHINE_FAILED",
        retryable=error.retryable,
        details={**error.details, "cause": error.code},
    )


def sleeping(machine: Machine) -> ConflictError:
    return ConflictError(
        "The machine sleeps and is not woken by what needs it (autowake is off): wake it first.",
        code="MACHINE_SLEEPING",
        details={"phase": machine.phase, "tier": machine.tier},
    )


def changed(context: Context) -> Machine:
    assert context.change is not None
    return context.change.machine
