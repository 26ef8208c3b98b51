"""Operations as lists of do/undo steps, written down before they are taken.

    begin stage 1 (row) -> do its steps -> begin stage 2 (row) -> ... -> done (row)
                              | a step fails
                              v
                          undoing (row) -> undo steps of the stages begun, last first -> undone (row)
                                             | an undo fails ``TRIES`` times
                                             v
                                          stuck (row): the machine is failed with the reason, host() tells,
                                          the next start tries again

Steps of one stage run at the same time. Every do and undo is idempotent: a crash may leave the last stage half
done, so recovery repeats it (plans that finish) or undoes it (plans that undo). A plan that finishes has no undos:
its failing step is tried again, then the operation is stuck. ``Exception`` counts as a step's failure;
``BaseException`` (cancellation: the daemon ends) leaves the row as it is, for recovery.

The rows' changes and the machine's own (``begin``, ``done``, ``undone``, ``stuck`` of a plan) are one transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from roost import ids
from roost.engine.transitions import Change
from roost.errors import CapacityError, ConflictError, InternalError, RoostError, TimeoutExpired
from roost.store import Store, operations

log = logging.getLogger(__name__)
TRIES = 3

# Called as hook(kind, point) at every boundary: "do:x", "did:x", "undo:x", "undid:x", "begin:s", "end", "ended".
Hook = Callable[[str, str], None]


@dataclass(slots=True)
class Context:
    """What the steps of one operation share. ``data`` is durable from the next row on: JSON, no secrets."""

    machine_id: str
    data: dict[str, Any] = field(default_factory=dict)
    now: datetime | None = None  # of the transaction under way
    change: Change | None = None  # of the last transition: what the engine acts on at the end


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    do: Callable[[Context], Awaitable[None]]
    undo: Callable[[Context], Awaitable[None]] | None = None
    timeout_s: float | None = None  # of ``do``, where the journal's own does not do


@dataclass(frozen=True, slots=True)
class Stage:
    """``begin`` runs in the transaction that says so. ``interruptible``: may be cancelled in the middle (its
    steps leave no thread or process behind when they are). ``eager``: its steps make nothing that an undo would
    have to find, so they run while the row is being written."""

    name: str
    steps: tuple[Step, ...]
    begin: Callable[[sa.Connection, Context], None] | None = None
    interruptible: bool = False
    eager: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    kind: str
    stages: tuple[Stage, ...]
    finishes: bool  # after a crash or failure: go on (True) or undo (False)
    done: Callable[[sa.Connection, Context], None]
    stuck: Callable[[sa.Connection, Context, RoostError], None]
    undone: Callable[[sa.Connection, Context, RoostError], None] | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    id: str
    kind: str
    machine_id: str
    state: str = "doing"
    step: int = 0
    context: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None

    @staticmethod
    def from_row(row: Mapping[Any, Any]) -> Operation:
        return Operation(**{n: row[n] for n in Operation.__slots__})


class Interrupted(ConflictError):
    """A destroy came while it ran."""


class Journal:
    def __init__(
        self,
        store: Store,
        *,
        step_timeout_s: float = 60.0,
        retry_delay_s: float = 0.1,
        hook: Hook | None = None,
    ) -> None:
        self._store = store
        self._timeout = step_timeout_s
        self._delay = retry_delay_s
        self._hook = hook
        # Told of each operation: kind, seconds, the code of what it failed with.
        self.observe: Callable[[str, float, str | None], None] = lambda kind, seconds, code: None

    @contextlib.contextmanager
    def observed(self, kind: str) -> Iterator[None]:
        """For what is made of several operations."""
        started = self._store.clock.monotonic()
        code: str | None = "INTERNAL"
        try:
            yield
            code = None
        except RoostError as error:
            code = error.code
            raise
        finally:
            self.observe(kind, self._store.clock.monotonic() - started, code)

    def open(
        self,
        connection: sa.Connection,
        kind: str,
        machine_id: str,
        context: Mapping[str, Any] | None = None,
        step: int = 0,
    ) -> Operation:
        """Writes an operation down, in the transaction of the transition that asks for it; with ``step=1``
        its first stage is begun by that (and that stage's ``begin`` was done by the caller)."""
        operation = Operation(ids.new(), kind, machine_id, step=step, context=dict(context or {}))
        operations.insert(
            connection,
            id=operation.id,
            kind=kind,
            machine_id=machine_id,
            context=operation.context,
            step=step,
            now=self._store.clock.now(),
        )
        return operation

    async def run(
        self, operation: Operation, plan: Plan, interrupt: asyncio.Event | None = None
    ) -> Context:
        """Takes it to its end; returns when it is done. Raises what failed once it is undone or stuck."""
        context = Context(operation.machine_id, dict(operation.context))
        begun = 0
        started = self._store.clock.monotonic()
        try:
            for begun, stage in enumerate(plan.stages, 1):
                if plan.finishes:
                    await self._finish_stage(operation, plan, context, begun, stage)
                else:
                    self._check(interrupt)
                    await self._do_stage(operation, plan, context, begun, stage, interrupt)
            if plan.finishes:
                await self._finish(operation, plan, context)
            else:
                self._check(interrupt)
                await self._end(operation, plan, context, "done", plan.done)
        except Exception as failure:
            error = as_error(failure)
            if plan.finishes:
                await self._stuck(operation, plan, context, error)
            else:
                await self._undo(operation, plan, context, begun, error)
            self.observe(plan.kind, self._store.clock.monotonic() - started, error.code)
            raise error from failure
        self.observe(plan.kind, self._store.clock.monotonic() - started, None)
        self._at(plan.kind, "ended")
        return context

    async def recover(self, operation: Operation, plan: Plan) -> Context:
        """After a crash, or for what is stuck: finishes it or undoes it. Raises what keeps it stuck."""
        context = Context(operation.machine_id, dict(operation.context))
        if plan.finishes:
            again = max(1, operation.step)
            try:
                for number, stage in enumerate(plan.stages[again - 1 :], again):
                    await self._finish_stage(operation, plan, context, number, stage)
                await self._finish(operation, plan, context)
            except Exception as failure:
                error = as_error(failure)
                await self._stuck(operation, plan, context, error)
                raise error from failure
            return context
        known = operation.error
        cause = InternalError(
            "The daemon stopped while this ran; it was undone. Try again.",
            retryable=True,
            details={"cause": dict(known)} if known else None,
        )
        await self._undo(operation, plan, context, operation.step, cause)
        return context

    # --- one stage ------------------------------------------------------------------------------

    async def _begin(
        self, operation: Operation, plan: Plan, context: Context, number: int, stage: Stage
    ) -> None:
        self._at(plan.kind, f"begin:{stage.name}")

        def fn(connection: sa.Connection) -> None:
            context.now = self._store.clock.now()
            if stage.begin is not None:
                stage.begin(connection, context)
            operations.update(
                connection, operation.id, context.now, step=number, context=dict(context.data)
            )

        await self._store.write(fn)

    async def _do_stage(
        self,
        operation: Operation,
        plan: Plan,
        context: Context,
        number: int,
        stage: Stage,
        interrupt: asyncio.Event | None,
    ) -> None:
        if not stage.eager:
            if number > operation.step:
                await self._begin(operation, plan, context, number, stage)
            await self._do(plan, stage, context, interrupt)
            return
        doing = asyncio.ensure_future(self._do(plan, stage, context, interrupt))
        try:
            await self._begin(operation, plan, context, number, stage)
            await doing
        finally:
            if not doing.done():
                doing.cancel()
                await asyncio.wait([doing])

    async def _finish_stage(
        self, operation: Operation, plan: Plan, context: Context, number: int, stage: Stage
    ) -> None:
        if number > operation.step:
            await self._repeat(lambda: self._begin(operation, plan, context, number, stage))
        await self._repeat(lambda: self._do(plan, stage, context, None))

    async def _finish(self, operation: Operation, plan: Plan, context: Context) -> None:
        await self._repeat(lambda: self._end(operation, plan, context, "done", plan.done))

    async def _do(
        self, plan: Plan, stage: Stage, context: Context, interrupt: asyncio.Event | None
    ) -> None:
        async def one(step: Step) -> None:
            self._at(plan.kind, f"do:{step.name}")
            await self._timed(step.name, step.do(context), step.timeout_s)
            self._at(plan.kind, f"did:{step.name}")

        if len(stage.steps) == 1 and not (stage.interruptible and interrupt):
            await one(stage.steps[0])
            return
        tasks = [asyncio.ensure_future(one(step)) for step in stage.steps]
        waits = asyncio.ensure_future(asyncio.wait(tasks))
        watcher = None
        try:
            if stage.interruptible and interrupt is not None:
                watcher = asyncio.ensure_future(interrupt.wait())
                await asyncio.wait({waits, watcher}, return_when=asyncio.FIRST_COMPLETED)
                if not waits.done():
                    for task in tasks:
                        task.cancel()
            await waits
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            raise
        finally:
            if watcher is not None:
                watcher.cancel()
        self._check(interrupt if stage.interruptible else None)
        failures = [e for t in tasks if (e := t.exception()) is not None]
        for failure in failures:
            if not isinstance(failure, Exception):
                raise failure
        if failures:
            raise failures[0]

    async def _undo(
        self, operation: Operation, plan: Plan, context: Context, begun: int, error: RoostError
    ) -> None:
        def mark(connection: sa.Connection) -> None:
            operations.update(
                connection,
                operation.id,
                self._store.clock.now(),
                state="undoing",
                step=begun,
                context=dict(context.data),
                error=error.to_wire(),
            )

        await self._repeat(lambda: self._store.write(mark))
        try:
            for stage in reversed(plan.stages[:begun]):
                for step in reversed(stage.steps):
                    if step.undo is not None:
                        await self._repeat(lambda s=step: self._undo_one(plan, s, context))  # type: ignore[misc]
        except Exception as failure:
            await self._stuck(operation, plan, context, as_error(failure))
            return

        def undone(connection: sa.Connection, context: Context) -> None:
            if plan.undone is not None:
                plan.undone(connection, context, error)

        await self._repeat(lambda: self._end(operation, plan, context, "undone", undone))
        self._at(plan.kind, "ended")

    async def _undo_one(self, plan: Plan, step: Step, context: Context) -> None:
        assert step.undo is not None
        self._at(plan.kind, f"undo:{step.name}")
        await self._timed(step.name, step.undo(context))
        self._at(plan.kind, f"undid:{step.name}")

    # --- ends -----------------------------------------------------------------------------------

    async def _end(
        self,
        operation: Operation,
        plan: Plan,
        context: Context,
        state: str,
        then: Callable[[sa.Connection, Context], None],
    ) -> None:
        self._at(plan.kind, "end")

        def fn(connection: sa.Connection) -> None:
            context.now = self._store.clock.now()
            then(connection, context)
            operations.update(connection, operation.id, context.now, state=state)

        await self._store.write(fn)

    async def _stuck(
        self, operation: Operation, plan: Plan, context: Context, error: RoostError
    ) -> None:
        log.error("operation stuck: %s of %s: %s", plan.kind, operation.machine_id, error)

        def fn(connection: sa.Connection) -> None:
            context.now = self._store.clock.now()
            plan.stuck(connection, context, error)
            operations.update(
                connection,
                operation.id,
                context.now,
                state="stuck",
                context=dict(context.data),
                error=error.to_wire(),
            )

        await self._repeat(lambda: self._store.write(fn))

    # --- helpers --------------------------------------------------------------------------------

    async def _timed(
        self, name: str, work: Awaitable[None], timeout_s: float | None = None
    ) -> None:
        limit = self._timeout if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit):
                await work
        except TimeoutError as error:
            raise TimeoutExpired(
                f"The step {name} took longer than {limit:g} s.", details={"step": name}
            ) from error

    async def _repeat(self, attempt: Callable[[], Awaitable[None]]) -> None:
        for n in range(1, TRIES + 1):
            try:
                await attempt()
            except Exception as error:
                if n == TRIES:
                    raise
                log.warning("retrying after %s: %s", type(error).__name__, error)
                await asyncio.sleep(self._delay * n)
            else:
                return

    def _check(self, interrupt: asyncio.Event | None) -> None:
        if interrupt is not None and interrupt.is_set():
            raise Interrupted("The machine is being destroyed.", details={"phase": "destroying"})

    def _at(self, kind: str, point: str) -> None:
        if self._hook is not None:
            self._hook(kind, point)


def as_error(failure: Exception) -> RoostError:
    """A typed error of whatever a step raised; the cause's text is for the operator, not a traceback."""
    if isinstance(failure, RoostError):
        return failure
    if isinstance(failure, OSError) and failure.errno in (errno.ENOSPC, errno.EDQUOT):
        return CapacityError(
            f"There is no space for it: {failure}. Destroy machines or snapshots, or give the disk pool more.",
            code="STORAGE_FULL",
        )
    log.error("unexpected failure", exc_info=failure)
    return InternalError(f"{type(failure).__name__}: {failure}"[:300], retryable=True)
