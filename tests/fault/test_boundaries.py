"""Every step boundary of every operation, failed or killed: accepted are before, after, failed with a reason,
and nothing of it is left on the host."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from roost.drivers.interface import Exit
from roost.engine.journal import TRIES, Journal
from roost.errors import MachineError, RoostError
from roost.services.models import Attach, CreateMachine, ForkMachine
from roost.store import snapshots
from tests.attack.record import case
from tests.unit.engine.kit import TENANT, Daemon, Host, small, until

pytestmark = case("F1")


class Killed(BaseException):
    """The process is gone."""


class Points:
    """A hook: notes every boundary of one kind of operation, and acts at the chosen one."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.at: tuple[str, str] | None = None
        self.error: type[BaseException] = MachineError
        self.times = 0
        self.dead = False

    def arm(self, at: tuple[str, str], error: type[BaseException], times: int = 1) -> None:
        self.at, self.error, self.times = at, error, times

    def __call__(self, kind: str, point: str) -> None:
        if self.dead:
            raise Killed
        self.seen.append((kind, point))
        if self.at == (kind, point) and self.times > 0:
            self.times -= 1
            if self.error is Killed:
                self.dead = True
                raise Killed
            raise self.error("injected")


async def _nothing(d: Daemon) -> str:
    return ""


async def _running(d: Daemon) -> str:
    return (await d.machines.create(TENANT, small(key="k"))).id


async def _sleeping(d: Daemon) -> str:
    machine_id = await _running(d)
    await d.machines.sleep(TENANT, machine_id)
    return machine_id


async def _frozen(d: Daemon) -> str:
    machine_id = await _running(d)
    await d.machines.sleep(TENANT, machine_id, "frozen")
    return machine_id


async def _freeze(d: Daemon, machine_id: str) -> None:
    await d.machines.sleep(TENANT, machine_id, "frozen")


async def _failed_without_disk(d: Daemon) -> str:
    d.host.driver.fail("start", MachineError("x"))
    with pytest.raises(MachineError):
        await _running(d)
    return (await d.all())[0].id


async def _crash(d: Daemon, machine_id: str) -> None:
    d.host.driver.die(machine_id, Exit("exited", 1))
    future = None
    for _ in range(1000):
        await asyncio.sleep(0)
        future = future or d.engine.desk.last(machine_id)
    assert future is not None
    await future


async def _failing_create(d: Daemon, machine_id: str) -> None:
    d.agents.fail("wait_ready", MachineError("no agent", code="TIMEOUT"))
    await d.machines.create(TENANT, small(key="k"))


async def _failing_wake(d: Daemon, machine_id: str) -> None:
    d.agents.fail("wait_ready", MachineError("no agent", code="TIMEOUT"))
    await d.machines.wake(TENANT, machine_id)


async def _delete_during_create(d: Daemon, machine_id: str) -> None:
    d.host.storage.calls.clear()
    creating = asyncio.ensure_future(d.machines.create(TENANT, small(key="k")))
    await until(lambda: d.host.storage.calls["clone"] or creating.done())
    found = [m for m in await d.all() if m.phase != "destroyed"]
    if found:
        await d.machines.delete(TENANT, found[0].id)
    await asyncio.gather(creating, return_exceptions=True)


async def _with_snapshot(d: Daemon) -> str:
    machine_id = await _running(d)
    await d.snapshots.create(TENANT, machine_id, "s")
    return machine_id


async def _rollback(d: Daemon, machine_id: str) -> None:
    await d.snapshots.rollback(TENANT, machine_id, "s")


async def _fork(d: Daemon, machine_id: str) -> None:
    await d.machines.fork(TENANT, machine_id, ForkMachine(count=2))


async def _a_volume(d: Daemon) -> str:
    if not (await d.volumes.list(TENANT)).items:
        await d.volumes.create(TENANT, "data", 1)
    return ""


def _with_volume(**more: Any) -> CreateMachine:
    return small(key="k", volumes=[Attach("data", "/data", **more)])


async def _writer(d: Daemon) -> str:
    await _a_volume(d)
    return (await d.machines.create(TENANT, _with_volume())).id


async def _reader(d: Daemon) -> str:
    await _a_volume(d)
    return (await d.machines.create(TENANT, _with_volume(read_only=True))).id


@pytest.fixture(params=[False, True], ids=["disk", "memory"])
async def host(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Host]:
    made = Host(tmp_path, memory=request.param)
    yield made
    await made.close()


Scenario = tuple[
    Callable[[Daemon], Awaitable[str]], Callable[[Daemon, str], Awaitable[Any]], set[str]
]
# set-up, what is done, the phases it may end in besides failed
SCENARIOS: dict[str, Scenario] = {
    "create": (_nothing, lambda d, _: d.machines.create(TENANT, small(key="k")), {"running"}),
    "create fails": (_nothing, _failing_create, set()),
    "sleep": (_running, lambda d, m: d.machines.sleep(TENANT, m), {"running", "sleeping"}),
    "freeze": (_running, _freeze, {"running", "sleeping"}),
    "thaw": (_frozen, lambda d, m: d.machines.wake(TENANT, m), {"running", "sleeping"}),
    "sleep deeper": (_frozen, lambda d, m: d.machines.sleep(TENANT, m), {"sleeping"}),
    "destroy frozen": (
        _frozen,
        lambda d, m: d.machines.delete(TENANT, m),
        {"sleeping", "destroyed"},
    ),
    "snapshot frozen": (
        _frozen,
        lambda d, m: d.snapshots.create(TENANT, m, "s"),
        {"sleeping", "running"},
    ),
    "wake": (_sleeping, lambda d, m: d.machines.wake(TENANT, m), {"sleeping", "running"}),
    "wake fails": (_sleeping, _failing_wake, {"sleeping"}),
    "retry": (_failed_without_disk, lambda d, m: d.machines.wake(TENANT, m), {"running"}),
    "destroy": (_running, lambda d, m: d.machines.delete(TENANT, m), {"running", "destroyed"}),
    "destroy asleep": (_sleeping, lambda d, m: d.machines.delete(TENANT, m), {"destroyed"}),
    "crash": (_running, _crash, set()),
    "snapshot": (_running, lambda d, m: d.snapshots.create(TENANT, m, "s"), {"running"}),
    "rollback": (_with_snapshot, _rollback, {"running", "sleeping"}),
    "fork": (_running, _fork, {"running", "destroyed"}),
    "create with a volume": (
        _a_volume,
        lambda d, _: d.machines.create(TENANT, _with_volume()),
        {"running"},
    ),
    "destroy with a volume": (
        _writer,
        lambda d, m: d.machines.delete(TENANT, m),
        {"running", "destroyed"},
    ),
    "fork with a volume": (_reader, _fork, {"running", "destroyed"}),
    "delete in create": (_nothing, _delete_during_create, {"destroyed"}),
}


async def _act(
    d: Daemon, act: Callable[[Daemon, str], Awaitable[Any]], machine_id: str, limit_s: float = 10
) -> None:
    try:
        async with asyncio.timeout(limit_s):
            await act(d, machine_id)
    except (RoostError, Killed, asyncio.CancelledError):
        pass


async def _points(host: Host, scenario: Scenario) -> list[tuple[str, str]]:
    """The boundaries of a run that nothing disturbs."""
    prepare, act, allowed = scenario
    points = Points()
    d = await Daemon.start(host, hook=points)
    machine_id = await prepare(d)
    points.seen.clear()
    await _act(d, act, machine_id)
    found = list(dict.fromkeys(points.seen))
    assert len(found) >= 3
    await _accept(d, allowed)
    await d.stop()
    return found


async def _accept(d: Daemon, allowed: set[str]) -> None:
    """One of the legal ends, nothing leaked, nothing open, and the machine can still be used and deleted."""
    for part in (d.agents, d.host.driver.script):
        part.errors.clear()
    machines = await d.all()
    for m in machines:
        if m.id not in _seen:
            assert m.phase in allowed | {"failed"}, (m.phase, m.reason)
        if m.phase == "failed":
            assert m.reason
            assert m.retryable
    assert not d.host.leaks(machines)
    await _hold(d, machines)
    assert await d.open_operations() == []
    m, _ = await d.machines.ensure(TENANT, "k", small())
    assert m.phase == "running"
    assert not d.host.leaks(await d.all())
    for m in (await d.machines.list(TENANT)).items:
        await d.machines.delete(TENANT, m.id)
    for s in (await d.snapshots.list(TENANT)).items:
        await d.snapshots.delete(TENANT, s.id)
    await d.engine.collect()
    assert not d.host.storage.kept
    machines = await d.all()
    await _hold(d, machines)
    assert {m.phase for m in machines} == {"destroyed"}
    assert not d.host.leaks(machines)
    assert not d.host.driver.machines
    _seen.update(m.id for m in machines)


async def _hold(d: Daemon, machines: list[Any]) -> None:
    """Volumes are those machines' that live and say so, and nobody else's."""
    found = (await d.volumes.list(TENANT)).items
    held = {(v.id, a.machine_id) for v in found for a in v.attachments}
    said = {(v.volume_id, m.id) for m in machines if m.phase != "destroyed" for v in m.volumes}
    assert held == said
    assert d.host.storage.volumes == {v.id for v in found}


_seen: set[str] = set()  # destroyed in rounds before


@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_step_fails_once(host: Host, name: str) -> None:
    scenario = SCENARIOS[name]
    prepare, act, allowed = scenario
    points = await _points(host, scenario)
    hook = Points()
    d = await Daemon.start(host, hook=hook)
    for point in points:
        machine_id = await prepare(d)
        hook.arm(point, MachineError)
        await _act(d, act, machine_id)
        assert hook.times == 0 or name == "delete in create", point
        hook.times = 0
        await _quiet(d)
        await _accept(d, allowed)
    await d.stop()


@pytest.mark.parametrize("name", SCENARIOS)
async def test_the_daemon_is_killed(host: Host, name: str) -> None:
    """At each boundary; and the next daemon at one of the first boundaries of its recovery."""
    scenario = SCENARIOS[name]
    prepare, act, allowed = scenario
    points = await _points(host, scenario)
    hook = Points()
    d = await Daemon.start(host, hook=hook)
    for n, point in enumerate(points):
        machine_id = await prepare(d)
        hook.arm(point, Killed)
        await _act(d, act, machine_id)
        assert hook.dead or name == "delete in create", point
        await d.kill()
        await _die_in_recovery(host, n % 5)
        hook = Points()
        d = await Daemon.start(host, hook=hook)
        assert not await d.store.read(lambda c: snapshots.of_forks(c, whole=False))
        if name.startswith("fork"):  # all or none
            made = [m for m in await d.all() if m.phase != "destroyed" and m.key is None]
            assert len(made) in (0, 2), (point, made)
        await _accept(d, allowed)
    await d.stop()


async def _die_in_recovery(host: Host, at: int) -> None:
    """Starts a daemon that is killed at its ``at``-th boundary, if it gets there."""
    if at == 0:
        return
    seen = 0

    def hook(kind: str, point: str) -> None:
        nonlocal seen
        seen += 1
        if seen >= at:
            raise Killed

    before = asyncio.all_tasks()
    try:
        d = await Daemon.start(host, hook=hook)
    except Killed:
        # What it had begun beside the one that died: a killed daemon does nothing any more, however slow the host.
        left = asyncio.all_tasks() - before
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
    else:
        await d.kill()


@pytest.mark.parametrize("name", ["create fails", "sleep", "wake fails", "destroy", "crash"])
async def test_a_step_never_works(host: Host, name: str) -> None:
    """What can neither be done nor undone: failed with the reason, told by host(), mended at the next start."""
    scenario = SCENARIOS[name]
    prepare, act, allowed = scenario
    points = await _points(host, scenario)
    hook = Points()
    d = await Daemon.start(host, hook=hook)
    stuck_somewhere = False
    for point in points:
        machine_id = await prepare(d)
        hook.arm(point, MachineError, times=TRIES * 2)
        await _act(d, act, machine_id)
        await _quiet(d)
        if stuck := await d.engine.stuck():
            stuck_somewhere = True
            (m,) = [m for m in await d.all() if m.phase != "destroyed"]
            assert m.phase == "failed"
            assert m.reason
            assert stuck[0]["error"]["message"]
            await d.stop()
            hook = Points()
            d = await Daemon.start(host, hook=hook)
        hook.times = 0
        if await d.open_operations():  # its last row could not be written
            assert point[1] == "end"
            await d.stop()
            hook = Points()
            d = await Daemon.start(host, hook=hook)
        await _accept(d, allowed | {"destroyed", "sleeping"})
    await d.stop()
    assert stuck_somewhere


# Waited for as long as they take: nothing is written down yet, or what comes next would write to the same place.
WAITED_FOR = {"prepare", "require", "delete_memory"}


class Never(asyncio.Event):
    """What the next call of a method waits for, and no later one; ``now``: while it does."""

    def __init__(self, hangs: dict[str, asyncio.Event], method: str, now: asyncio.Event) -> None:
        super().__init__()
        self._forget = functools.partial(hangs.pop, method, None)
        self._now = now

    async def wait(self) -> Literal[True]:
        self._forget()
        self._now.set()
        try:
            return await super().wait()
        finally:
            self._now.clear()


def _calls(d: Daemon) -> Counter[tuple[str, str]]:
    return Counter({(p, m): n for p, at in _parts(d).items() for m, n in at.calls.items()})


def _parts(d: Daemon) -> dict[str, Any]:
    """What a daemon calls on its host and in its machines."""
    host = d.host
    return {
        "driver": host.driver, "storage": host.storage, "network": host.network, "agents": d.agents
    }  # fmt: skip


@pytest.mark.parametrize("name", [each for each in SCENARIOS if each != "delete in create"])
async def test_a_call_never_answers(host: Host, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that the operation makes of driver, storage, network and agent: it is given up in the step's time."""
    prepare, act, allowed = SCENARIOS[name]
    d = await Daemon.start(host, operation_timeout_s=1.0)
    timed, now = Journal._timed, asyncio.Event()

    async def soon(
        self: Journal, step: str, work: Awaitable[None], timeout_s: float | None = None
    ) -> None:
        """Little time for a step from when its call does not answer."""
        doing, hung = asyncio.ensure_future(work), asyncio.ensure_future(now.wait())
        try:
            await asyncio.wait({doing, hung}, return_when=asyncio.FIRST_COMPLETED)
            await timed(self, step, doing, timeout_s if doing.done() else 0.05)
        finally:
            hung.cancel()
            if not doing.done():
                doing.cancel()
                await asyncio.wait([doing])

    monkeypatch.setattr(Journal, "_timed", soon)
    machine_id = await prepare(d)
    before = _calls(d)
    await _act(d, act, machine_id)
    made = _calls(d) - before
    await _accept(d, allowed)
    for part, method in made:
        machine_id = await prepare(d)
        at = _parts(d)[part]
        hangs = getattr(at, "script", at).hangs
        never = hangs[method] = Never(hangs, method, now)
        try:
            await _act(d, act, machine_id, 2 if method in WAITED_FOR else 10)
        except TimeoutError:
            assert method in WAITED_FOR, (part, method)
            never.set()
        await _quiet(d)
        assert method not in hangs, (part, method)
        if method == "delete_snapshot":  # swept at the next start
            await d.stop()
            d = await Daemon.start(host, operation_timeout_s=1.0)
        await _accept(d, allowed)
    await d.stop()


async def _quiet(d: Daemon) -> None:
    while (busy := d.engine.desk.busy()) and (future := d.engine.desk.last(busy[0])):
        await asyncio.gather(future, return_exceptions=True)
        await asyncio.sleep(0)
