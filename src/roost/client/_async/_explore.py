"""Best of N as one call.

    base --one capture--> a child for each strategy --> run --> score --> the best takes base's place, the rest go

All children at once from one fork; or (``parallel`` below their number) from one snapshot, as places become free, and
of those that are done only the best so far is kept. Whatever ends it early, no child stays that was not to be kept.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar, cast

from roost.client import _explored
from roost.client._async._io import sleep
from roost.client._async._machine import AsyncMachine
from roost.client._async._parallel import side_by_side, whole, within
from roost.client._async._snapshot import AsyncSnapshot
from roost.client._explored import Attempt, Explored
from roost.client._wire import Duration
from roost.errors import CapacityError, ConflictError, LimitError, RoostError

S = TypeVar("S")
AT_ONCE = 100  # of one fork
LIFE_S = 86_400  # of a child whose program was killed
PATIENCE_S = 120.0  # for room that others of ours hold
_AGAIN_S = 0.5
_SOON_S = 0.02

Run = Callable[[AsyncMachine, S], Any]  # in the async half what it gives is awaited where it can be
Score = Callable[[AsyncMachine, Any], Any]


async def explore(
    base: AsyncMachine,
    strategies: Sequence[S],
    run: Run[S],
    score: Score | None = None,
    *,
    parallel: int | None = None,
    timeout: float | None = None,
    keep: str = "winner",
    promote: bool | None = None,
    previous: str = "destroy",
    diff: bool = True,
    inherit_secrets: bool = False,
    ttl: Duration = LIFE_S,
    on_change: Callable[[Attempt], object] | None = None,
) -> Explored[AsyncMachine]:
    """Forks ``base`` once for each strategy, runs ``run(child, strategy)`` in each, and puts the best in its place.

    ``score(child, result)``: a number, higher is better, or None for one that cannot win. Without it: what ended with
    exit code 0 (of an ExecResult, or an int), or has none, the shortest first. A child that fails in any way is one
    that cannot win; where none can, ``base`` stays as it was.

    ``parallel``: children alive at once, but for the best so far; all by default. ``timeout``: seconds each ``run``
    and ``score`` may take. ``keep``: "winner", "all" or "none" of the children. ``promote``: whether the winner takes
    base's key, name, end, ports, links and preview tokens (unless ``keep="none"``); ``previous``: what becomes of base
    then, "destroy" or "keep" (without those). Nothing happens to base before that is done. ``diff``: compare files
    with base's. ``ttl``: when children go by themselves if this program is killed. ``on_change`` is told of each
    attempt whenever it is another: not for long, and from several threads in the sync half.

    Raises ValueError for what cannot be; what the fork raises (nothing was made); what the promotion raises (base
    and the winner both live: ``details["winner"]``).
    """
    exploration = _Exploration(
        base, strategies, run, score, timeout, inherit_secrets, diff, ttl, on_change
    )
    exploration.arrange(parallel, keep, promote, previous)
    return await exploration.explore()


class _Exploration:
    def __init__(
        self,
        base: AsyncMachine,
        strategies: Sequence[Any],
        run: Callable[..., Any],
        score: Callable[..., Any] | None,
        timeout: float | None,
        inherit_secrets: bool,
        diff: bool,
        ttl: Duration,
        on_change: Callable[[Attempt], object] | None,
    ) -> None:
        self._base = base
        self._run = run
        self._score = score
        self._timeout = timeout
        self._fork_options: dict[str, Any] = {"inherit_secrets": inherit_secrets, "ttl": ttl}
        self._diff = diff
        self._on_change = on_change
        self._attempts = [Attempt(n, each) for n, each in enumerate(strategies)]
        self._ready: list[AsyncMachine] = []  # of the one fork, not begun yet
        self._alive: dict[str, AsyncMachine] = {}  # all that were made and not destroyed
        self._forking = 0  # asked for one by one, and not there yet
        self._ended = 0  # of those that were alive
        self._best: Attempt | None = None
        self._snapshot: AsyncSnapshot | None = None
        self._over = False
        self._lock = threading.Lock()  # threads in the sync half; nothing is awaited under it

    def arrange(self, parallel: int | None, keep: str, promote: bool | None, previous: str) -> None:
        """Raises ValueError."""
        count = len(self._attempts)
        if not count:
            raise ValueError("explore() needs a strategy at least")
        if parallel is not None and parallel < 1:
            raise ValueError("parallel is 1 at least")
        if keep not in ("winner", "all", "none"):
            raise ValueError('keep is "winner", "all" or "none"')
        if previous not in ("destroy", "keep"):
            raise ValueError('previous is "destroy" or "keep"')
        if promote and keep == "none":
            raise ValueError('promote=True keeps the winner: keep="none" does not')
        self._parallel = min(parallel or count, count, AT_ONCE)
        self._bounded = self._parallel < count
        self._keep = keep
        self._promote = keep != "none" if promote is None else promote
        self._previous = previous

    # --- from the beginning to the end ------------------------------------------------------------

    async def explore(self) -> Explored[AsyncMachine]:
        began = time.monotonic()
        winner: AsyncMachine | None = None
        promoted = False
        kept: set[str] = set()
        try:
            await whole(self._prepare)
            jobs = [self._job(each) for each in self._attempts]
            await side_by_side(jobs, self._parallel)
            await self._count()
            best = self._best
            if best is not None and self._keep != "none":
                winner = self._alive[str(best.machine_id)]
                kept = {winner.id}
            if self._keep == "all":
                kept = set(self._alive)
            if winner is not None and (self._bounded or self._promote):
                await self._settle(winner)
                promoted = self._promote
            for each in kept:
                if not (promoted and winner is not None and each == winner.id):
                    await self._alive[each].update(ttl=None)
        except BaseException as failure:
            # What a failed promotion leaves is the caller's to decide on.
            if isinstance(failure, RoostError) and winner is not None:
                failure.details["winner"] = winner.id
            else:
                kept = set()
            raise
        finally:
            with self._lock:
                self._over = True
                self._alive = {k: v for k, v in self._alive.items() if k not in kept}
            await whole(self._clean)
        ended = time.monotonic() - began
        return Explored(tuple(self._attempts), self._best, winner, promoted, ended)

    async def _prepare(self) -> None:
        """The one capture."""
        if self._bounded:
            self._snapshot = await self._base.snapshot()
            return
        for attempt in self._attempts:
            self._tell(attempt, "forking")
        made = await self._base.fork(len(self._attempts), **self._fork_options)
        self._ready = list(cast("list[AsyncMachine]", made))
        self._alive = {each.id: each for each in self._ready}

    async def _settle(self, winner: AsyncMachine) -> None:
        if self._bounded:
            await winner.wake()
        if self._promote:
            await winner.promote(self._base, previous=self._previous)

    async def _clean(self) -> None:
        """Takes away what is not to be kept."""
        for attempt in self._attempts:
            if attempt.status not in ("done", "failed"):
                self._tell(attempt, "stopped")
        while self._forking:  # in threads, which nothing ends: what they get goes too
            await sleep(_SOON_S)
        going = [self._job_of_ending(each) for each in list(self._alive.values())]
        await side_by_side(going, AT_ONCE)
        if self._snapshot is not None:
            with contextlib.suppress(RoostError):
                await self._snapshot.delete()

    def _job_of_ending(self, child: AsyncMachine) -> Callable[[], Any]:
        async def end() -> None:
            await self._end(child)

        return end

    async def _end(self, child: AsyncMachine) -> None:
        with contextlib.suppress(RoostError):  # its ttl takes it
            await child.destroy()
        with self._lock:
            if self._alive.pop(child.id, None) is not None:
                self._ended += 1

    # --- one strategy -----------------------------------------------------------------------------

    def _job(self, attempt: Attempt) -> Callable[[], Any]:
        async def job() -> None:
            if not self._over:
                await self._attempt(attempt)

        return job

    async def _attempt(self, attempt: Attempt) -> None:
        try:
            child = await self._child(attempt)
        except Exception as failure:
            self._fail(attempt, failure)
            return
        try:
            await self._try(attempt, child)
        except Exception as failure:
            self._fail(attempt, failure)
        await self._weigh(attempt, child)

    async def _child(self, attempt: Attempt) -> AsyncMachine:
        if not self._bounded:
            with self._lock:
                child = self._ready.pop(0)
        else:
            self._tell(attempt, "forking")
            made: list[AsyncMachine] = []

            async def fork() -> None:
                made.append(await self._forked())

            await whole(fork)
            child = made[0]
        attempt.machine_id = child.id
        return child

    async def _forked(self) -> AsyncMachine:
        """One more, once there is room for it: what holds it may be others of ours."""
        until = time.monotonic() + PATIENCE_S
        while True:
            with self._lock:
                if self._over:
                    raise ConflictError("The exploration is over: no more children are made.")
                self._forking += 1
                ended = self._ended
            try:
                made = await self._base.fork(snapshot=self._snapshot, **self._fork_options)
                child = cast(AsyncMachine, made)
                with self._lock:
                    self._alive[child.id] = child
                return child
            except (CapacityError, LimitError):
                others = self._ended > ended or len(self._alive) > (self._best is not None)
                if self._over or not others or time.monotonic() > until:
                    raise
            finally:
                with self._lock:
                    self._forking -= 1
            await sleep(_AGAIN_S)

    async def _try(self, attempt: Attempt, child: AsyncMachine) -> None:
        self._tell(attempt, "running")
        began = time.monotonic()
        try:
            attempt.result = await within(self._timeout, lambda: self._run(child, attempt.strategy))
        finally:
            attempt.duration_s = time.monotonic() - began
        attempt.exit_code = _explored.exit_code(attempt.result)
        self._tell(attempt, "scoring")
        if self._score is None:
            score = _explored.default_score(attempt)
        else:
            judge = self._score
            said = await within(self._timeout, lambda: judge(child, attempt.result))
            score = _explored.checked_score(said)
        await self._look(attempt, child)
        attempt.score = score
        self._tell(attempt, "done")

    async def _look(self, attempt: Attempt, child: AsyncMachine) -> None:
        """What it used and changed; a machine that cannot tell any more has done its work all the same."""
        with contextlib.suppress(RoostError):
            attempt.cpu_s = int((await child.usage())["cpu_usage_us"]) / 1e6
        if self._diff:
            with contextlib.suppress(RoostError):
                attempt.diff = await self._base.diff(child)

    async def _weigh(self, attempt: Attempt, child: AsyncMachine) -> None:
        """Ends what cannot win any more."""
        beaten: str | None = child.id
        with self._lock:
            if _explored.beats(attempt, self._best):
                beaten = None if self._best is None else self._best.machine_id
                self._best = attempt
            loser = None if beaten is None else self._alive.get(beaten)
        if self._keep == "all":
            return
        if loser is not None:
            await self._end(loser)
        if self._bounded and beaten != child.id:  # it waits for the others to be done
            with contextlib.suppress(RoostError):
                await child.sleep("frozen")

    def _fail(self, attempt: Attempt, failure: Exception) -> None:
        attempt.error = failure
        if attempt.exit_code is None:
            attempt.exit_code = _explored.exit_code(failure)
        self._tell(attempt, "stopped" if self._over else "failed")

    async def _count(self) -> None:
        """What each cost, as far as it is known by now."""
        with contextlib.suppress(RoostError):
            report = await self._base.client.usage(group_by="machine")
            costs = {each["machine_id"]: each["cost"] for each in report["items"]}
            for attempt in self._attempts:
                with contextlib.suppress(InvalidOperation):
                    if (cost := costs.get(attempt.machine_id)) is not None:
                        attempt.cost = Decimal(cost)

    def _tell(self, attempt: Attempt, status: str) -> None:
        attempt.status = status
        if self._on_change is not None:
            self._on_change(attempt)
