"""Best of N, both halves, over machines made up in memory: who is kept, who goes, whatever happens."""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from roost import CapacityError, Diff, ExecResult, MachineError, RoostError
from roost.client._async._explore import explore as async_explore
from roost.client._explored import Attempt
from roost.client._sync._explore import explore


def ended(code: int = 0) -> ExecResult:
    return ExecResult("e" * 26, "succeeded", code, None, None, 1, False, b"out", b"")


class Host:
    """What there is of machines, and the most there were at once."""

    def __init__(self, room: int = 1000) -> None:
        self.machines: dict[str, World] = {}
        self.snapshots: set[str] = set()
        self.most = 0
        self.room = room
        self.captures = 0
        self.key = "m0"  # who has it
        self.fails: dict[str, RoostError] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def add(self, kind: type[World]) -> Any:
        with self._lock:
            if len(self.machines) >= self.room:
                raise CapacityError("full")
            made = kind(self, f"m{next(self._numbers)}")
            self.machines[made.id] = made
            self.most = max(self.most, len(self.machines))
            return made

    def enter(self, what: str) -> None:
        if what in self.fails:
            raise self.fails[what]


class World:
    """A machine; its calls as both halves have them."""

    def __init__(self, host: Host, id: str) -> None:
        self.host, self.id = host, id
        self.client = self
        self.ttl: Any = "given"
        self.tier: str | None = None

    def do_fork(self, count: int | None, snapshot: Any) -> Any:
        self.host.enter("fork")
        if snapshot is None:
            self.host.captures += 1
        made = [self.host.add(type(self)) for _ in range(count or 1)]
        return made if count is not None else made[0]

    def do_snapshot(self) -> Any:
        self.host.captures += 1
        self.host.snapshots.add("s")
        return self

    def do_usage(self, group_by: str | None) -> Any:
        if group_by is not None:
            return {"items": [{"machine_id": m, "cost": "0.01"} for m in ["m1", "m2"]]}
        self.alive()
        return {"cpu_usage_us": 1_500_000}

    def do_diff(self, other: World) -> Diff:
        other.alive()
        return Diff(self.id, other.id, (), {"added": 1}, None)

    def do_promote(self, onto: World, previous: str) -> None:
        self.host.enter("promote")
        self.alive()
        self.host.key = self.id
        if previous == "destroy":
            del self.host.machines[onto.id]

    def do_destroy(self) -> None:
        self.host.machines.pop(self.id, None)

    def alive(self) -> None:
        if self.id not in self.host.machines:
            raise MachineError("it is gone")


class Sync(World):
    def fork(self, count: int | None = None, snapshot: Any = None, **_: Any) -> Any:
        return self.do_fork(count, snapshot)

    def snapshot(self) -> Any:
        return self.do_snapshot()

    def delete(self) -> None:
        self.host.snapshots.clear()

    def usage(self, group_by: str | None = None) -> Any:
        return self.do_usage(group_by)

    def diff(self, other: World) -> Diff:
        return self.do_diff(other)

    def promote(self, onto: World, previous: str) -> None:
        self.do_promote(onto, previous)

    def destroy(self) -> None:
        self.do_destroy()

    def update(self, ttl: Any) -> None:
        self.ttl = ttl

    def sleep(self, tier: str) -> None:
        self.tier = tier

    def wake(self) -> None:
        self.tier = None


class Async(World):
    async def fork(self, count: int | None = None, snapshot: Any = None, **_: Any) -> Any:
        await asyncio.sleep(0.01)
        return self.do_fork(count, snapshot)

    async def snapshot(self) -> Any:
        return self.do_snapshot()

    async def delete(self) -> None:
        self.host.snapshots.clear()

    async def usage(self, group_by: str | None = None) -> Any:
        return self.do_usage(group_by)

    async def diff(self, other: World) -> Diff:
        return self.do_diff(other)

    async def promote(self, onto: World, previous: str) -> None:
        self.do_promote(onto, previous)

    async def destroy(self) -> None:
        await asyncio.sleep(0)
        self.do_destroy()

    async def update(self, ttl: Any) -> None:
        self.ttl = ttl

    async def sleep(self, tier: str) -> None:
        self.tier = tier

    async def wake(self) -> None:
        self.tier = None


Explore = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def half(request: pytest.FixtureRequest) -> tuple[type[World], Explore]:
    if request.param == "sync":
        return Sync, explore

    def run(base: Any, strategies: Any, run: Any, *args: Any, **options: Any) -> Any:
        async def awaited(child: Any, strategy: Any) -> Any:
            return await asyncio.to_thread(run, child, strategy)

        return asyncio.run(async_explore(base, strategies, awaited, *args, **options))

    return Async, run


Half = tuple[type[World], Explore]


def test_the_best_takes_the_place_and_the_rest_go(half: Half) -> None:
    kind, explore = half
    host = Host()
    base = host.add(kind)
    codes = {"a": 1, "b": 0, "c": 0, "d": 1}
    scores = {"a": 9.0, "b": 2.0, "c": 3.0, "d": None}
    seen: list[tuple[str, str]] = []

    def watch(attempt: Attempt) -> None:
        seen.append((attempt.strategy, attempt.status))

    found = explore(
        base,
        list(codes),
        lambda child, s: (ended(codes[s]), s),
        lambda child, result: None if result[0].exit_code else scores[result[1]],
        on_change=watch,
    )
    assert host.captures == 1
    assert found.best.strategy == "c" and found.promoted
    assert list(host.machines) == [found.winner.id] == [host.key]
    assert [a.score for a in found.attempts] == [None, 2.0, 3.0, None]
    assert [a.status for a in found.attempts] == ["done"] * 4
    assert all(a.cpu_s == 1.5 and a.diff.counts == {"added": 1} for a in found.attempts)
    assert str(found.attempts[0].cost) == "0.01"
    assert [each for s, each in seen if s == "b"] == ["forking", "running", "scoring", "done"]
    assert found.ranked()[0] is found.best
    assert found.table().splitlines()[1].startswith("*")
    assert found.to_json()["winner"] == found.winner.id


def test_by_default_what_ended_with_0_wins_and_the_shortest_of_those(half: Half) -> None:
    kind, explore = half
    host = Host()

    def run(child: Any, strategy: tuple[int, float]) -> ExecResult:
        time.sleep(strategy[1])
        return ended(strategy[0])

    strategies = [(1, 0.0), (0, 0.15), (0, 0.01), (0, 0.1)]
    found = explore(host.add(kind), strategies, run)
    assert found.best.index == 2
    assert [a.exit_code for a in found.attempts] == [1, 0, 0, 0]


def test_where_nothing_can_win_the_base_is_as_it_was(half: Half) -> None:
    kind, explore = half
    host = Host()
    base = host.add(kind)

    def run(child: Any, strategy: int) -> Any:
        if strategy == 1:
            raise ZeroDivisionError("mine")
        return ended(strategy)

    found = explore(base, [1, 2], run)
    assert (found.best, found.winner, found.promoted) == (None, None, False)
    assert list(host.machines) == [base.id] == [host.key]
    assert isinstance(found.attempts[0].error, ZeroDivisionError)
    assert [a.status for a in found.attempts] == ["failed", "done"]


def test_one_that_fails_in_any_way_is_survived(half: Half) -> None:
    kind, explore = half
    host = Host()

    def run(child: Any, strategy: str) -> Any:
        if strategy == "dies":
            child.do_destroy()
            child.alive()
        if strategy == "raises":
            raise ValueError("no")
        if strategy == "scored badly":
            return float("nan")
        return 1.0

    strategies = ["dies", "good", "raises", "scored badly"]
    found = explore(host.add(kind), strategies, run, lambda child, result: result)
    assert found.best.strategy == "good"
    assert [a.status for a in found.attempts] == ["failed", "done", "failed", "failed"]
    assert [type(a.error).__name__ for a in found.attempts] == [
        "MachineError",
        "NoneType",
        "ValueError",
        "ValueError",
    ]
    assert list(host.machines) == [host.key]


def test_a_few_at_a_time_from_one_snapshot(half: Half) -> None:
    kind, explore = half
    host = Host()
    base = host.add(kind)
    order = [3, 1, 9, 2, 7, 8, 4, 5, 6, 0]
    found = explore(base, order, lambda child, s: s, lambda child, result: result, parallel=3)
    assert found.best.strategy == 9
    assert host.captures == 1 and not host.snapshots
    assert host.most <= 1 + 3 + 2  # the base, those at work, the best, and one that is being ended
    assert list(host.machines) == [found.winner.id] == [host.key]
    assert found.winner.tier is None


def test_room_that_others_hold_is_waited_for(half: Half, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, explore = half
    for module in ("_async", "_sync"):
        monkeypatch.setattr(f"roost.client.{module}._explore._AGAIN_S", 0.01)
    host = Host(room=3)  # the base and two children

    def run(child: Any, strategy: int) -> int:
        time.sleep(0.02)
        return strategy

    base = host.add(kind)
    found = explore(base, range(6), run, lambda *_: 1, parallel=4, keep="none", promote=False)
    assert [a.error for a in found.attempts] == [None] * 6
    assert list(host.machines) == [base.id]


def test_what_is_kept(half: Half) -> None:
    kind, explore = half
    for options, kept, promoted in (
        ({"keep": "all", "previous": "keep"}, {"m0", "m1", "m2"}, True),
        ({"keep": "all"}, {"m1", "m2"}, True),
        ({"keep": "all", "promote": False}, {"m0", "m1", "m2"}, False),
        ({"keep": "winner", "promote": False}, {"m0", "m2"}, False),
        ({"keep": "none"}, {"m0"}, False),
    ):
        host = Host()
        base = host.add(kind)
        found = explore(base, [1, 2], lambda _, s: s, lambda _, result: result, **options)
        assert set(host.machines) == kept, options
        assert found.promoted == promoted and found.best.strategy == 2
        for machine in host.machines.values():
            if machine.id not in ("m0", host.key):
                assert machine.ttl is None, "what stays does not go by itself"
    for wrong in ({"parallel": 0}, {"keep": "some"}, {"promote": True, "keep": "none"}):
        with pytest.raises(ValueError):
            explore(base, [1], lambda _, s: s, **wrong)
    with pytest.raises(ValueError):
        explore(base, [], lambda _, s: s)


def test_a_promotion_that_fails_loses_nothing(half: Half) -> None:
    kind, explore = half
    host = Host()
    base = host.add(kind)
    host.fails["promote"] = RoostError("no", code="INVALID_STATE")
    with pytest.raises(RoostError) as failed:
        explore(base, [1, 2], lambda _, s: s, lambda _, result: result)
    assert failed.value.details["winner"] == "m2"
    assert set(host.machines) == {"m0", "m2"} and host.key == "m0"


def test_a_fork_that_fails_makes_nothing(half: Half) -> None:
    kind, explore = half
    host = Host()
    base = host.add(kind)
    host.fails["fork"] = CapacityError("full")
    with pytest.raises(CapacityError):
        explore(base, [1, 2], lambda _, s: s)
    found = explore(base, [1, 2, 3], lambda _, s: s, parallel=1)
    assert [type(a.error) for a in found.attempts] == [CapacityError] * 3
    assert list(host.machines) == [base.id] and not host.snapshots


def test_the_time_of_one_runs_out_and_the_others_go_on() -> None:
    host = Host()
    held = threading.Event()

    def run(child: Any, strategy: str) -> ExecResult:
        if strategy == "slow":
            held.wait(60)
        return ended()

    found = explore(host.add(Sync), ["slow", "quick"], run, timeout=2)
    held.set()
    assert found.best is not None and found.best.strategy == "quick"
    late = found.attempts[0].error
    assert isinstance(late, RoostError) and late.code == "TIMEOUT"
    assert list(host.machines) == [host.key]


async def test_the_time_of_one_runs_out_in_tasks() -> None:
    host = Host()

    async def run(child: Any, strategy: str) -> ExecResult:
        await asyncio.sleep(60 if strategy == "slow" else 0)
        return ended()

    found = await async_explore(host.add(Async), ["slow", "quick"], run, timeout=2)
    assert found.best is not None and found.best.strategy == "quick"
    assert isinstance(found.attempts[0].error, RoostError)
    assert list(host.machines) == [host.key]


@pytest.mark.parametrize("parallel", [None, 2])
async def test_cancelled_it_leaves_the_base_and_nothing_else(parallel: int | None) -> None:
    for after in (0.0, 0.005, 0.015, 0.05):
        host = Host()
        base = host.add(Async)

        async def run(child: Any, strategy: int) -> None:
            await asyncio.sleep(5)

        task = asyncio.ensure_future(async_explore(base, [1, 2, 3, 4], run, parallel=parallel))
        await asyncio.sleep(after)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert list(host.machines) == [base.id] == [host.key], after
        assert not host.snapshots


@pytest.mark.parametrize("parallel", [None, 2])
def test_interrupted_it_leaves_the_base_and_nothing_else(parallel: int | None) -> None:
    """Ctrl-C, as the main thread of the sync half has it."""
    host = Host()
    base = host.add(Sync)
    began = threading.Event()

    def run(child: Any, strategy: int) -> None:
        began.set()
        while True:
            time.sleep(0.01)
            child.alive()

    def interrupt() -> None:
        began.wait(5)
        ident = threading.main_thread().ident
        assert ident is not None
        signal.pthread_kill(ident, signal.SIGINT)  # a real one: it wakes a thread that waits

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        explore(base, [1, 2, 3, 4], run, parallel=parallel)
    time.sleep(0.1)
    assert list(host.machines) == [base.id] == [host.key]
    assert not host.snapshots
    assert not [t for t in threading.enumerate() if t.name.startswith("roost-explore")]


def test_interrupted_while_one_more_is_being_made_that_one_goes_too() -> None:
    """The program ends when explore() has: what a thread of it is still given would stay."""
    host = Host()
    asked, given = threading.Event(), threading.Event()
    numbers = itertools.count()

    class Slow(Sync):
        def fork(self, count: int | None = None, snapshot: Any = None, **_: Any) -> Any:
            if next(numbers):
                asked.set()
                time.sleep(0.3)
                given.set()
            return self.do_fork(count, snapshot)

    base = host.add(Slow)

    def interrupt() -> None:
        asked.wait(5)
        ident = threading.main_thread().ident
        assert ident is not None
        signal.pthread_kill(ident, signal.SIGINT)

    def run(child: Any, strategy: int) -> None:
        asked.wait(5)
        while True:
            time.sleep(0.01)
            child.alive()

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        explore(base, [1, 2, 3], run, parallel=2)
    assert given.is_set() and list(host.machines) == [base.id]
    assert not host.snapshots


def test_children_of_the_sync_half_run_side_by_side() -> None:
    host = Host()
    all_there = threading.Barrier(8, timeout=5)
    explore(host.add(Sync), range(8), lambda *_: all_there.wait() and None)
    assert not all_there.broken
