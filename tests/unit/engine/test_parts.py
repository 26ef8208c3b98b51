"""Desk, timers, rungs, identity: each alone."""

from __future__ import annotations

import asyncio
import errno
import stat
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from roost.clock import FakeClock
from roost.drivers.fake import FakeDriver
from roost.drivers.interface import Capabilities, Isolation
from roost.engine.desk import Desk
from roost.engine.identity import HostIdentity, linux_machine_id
from roost.engine.journal import as_error
from roost.engine.machine import capabilities_from_json, capabilities_to_json
from roost.engine.rungs import Rungs
from roost.engine.timers import Timers
from roost.engine.turns import Turns
from roost.errors import InvalidRequestError, UnavailableError
from tests.unit.engine.kit import until


def test_a_step_that_finds_no_space_says_so() -> None:
    told = as_error(OSError(errno.ENOSPC, "No space left on device", "/pool/x"))
    assert (told.code, told.status, told.retryable) == ("STORAGE_FULL", 507, True)
    assert as_error(OSError(errno.EIO, "x")).code == "INTERNAL"


async def test_a_desk_works_one_machine_in_order_and_others_at_once() -> None:
    desk = Desk()
    log: list[str] = []

    def job(name: str, wait: asyncio.Event | None = None):
        async def run(_: asyncio.Event):
            log.append(f"{name}+")
            if wait:
                await wait.wait()
            log.append(f"{name}-")
            return SimpleNamespace(name=name)

        return run

    gate = asyncio.Event()
    first = desk.submit("m", "a", job("a", gate))
    second = desk.submit("m", "b", job("b"))
    joined = desk.submit("m", "b", job("never"))
    other = desk.submit("n", "c", job("c"))
    await other
    assert log == ["a+", "c+", "c-"]
    assert joined is second
    gate.set()
    await second
    assert log[3:] == ["a-", "b+", "b-"]
    assert first.done()
    await asyncio.sleep(0)
    assert desk.busy() == []


async def test_a_failed_job_does_not_stop_the_line() -> None:
    desk = Desk()

    async def bad(_: asyncio.Event):
        raise ValueError

    async def good(_: asyncio.Event):
        return SimpleNamespace()

    one, two = desk.submit("m", "a", bad), desk.submit("m", "b", good)
    with pytest.raises(ValueError):
        await one
    assert await two


async def test_an_interrupt_reaches_what_runs_and_what_waits() -> None:
    desk = Desk()
    seen: list[bool] = []

    async def job(interrupt: asyncio.Event):
        await asyncio.sleep(0.01)
        seen.append(interrupt.is_set())
        return SimpleNamespace()

    desk.submit("m", "a", job)
    last = desk.submit("m", "b", job)
    desk.interrupt("m")
    await last
    assert seen == [True, True]


async def test_timers_fire_in_order_move_and_are_taken_away() -> None:
    clock = FakeClock()
    fired: list[str] = []
    timers = Timers(clock, fired.append)
    timers.start()
    start = clock.now()
    timers.set("late", start + timedelta(seconds=500))
    timers.set("early", start + timedelta(seconds=10))
    timers.set("moved", start + timedelta(seconds=20))
    timers.set("gone", start + timedelta(seconds=20))
    await asyncio.sleep(0)
    timers.set("moved", start + timedelta(seconds=300))
    timers.set("gone", None)
    await asyncio.sleep(0.01)
    await clock.advance(11)
    assert fired == ["early"]
    await clock.advance(200)
    assert fired == ["early"]
    await clock.advance(100)
    assert fired == ["early", "moved"]
    timers.set("now", start)
    await until(lambda: fired[-1] == "now")
    await clock.advance(400)
    assert fired[-1] == "late"
    assert len(timers) == 0
    await timers.stop()


async def test_the_best_available_driver_is_chosen() -> None:
    away, here = FakeDriver(available=False), FakeDriver()
    rungs = Rungs({"first": away, "second": here, "hidden": FakeDriver()}, ["first", "second"])
    await rungs.probe()
    assert rungs.default == "second"
    assert rungs.choose("auto", None)[0] == "second"
    assert rungs.choose("container", None)[0] == "second"
    for isolation, driver in (("microvm", None), ("auto", "first"), ("auto", "hidden")):
        with pytest.raises(InvalidRequestError) as caught:
            rungs.choose(isolation, driver)
        assert caught.value.code == "RUNG_UNAVAILABLE"
    with pytest.raises(InvalidRequestError) as caught:
        rungs.choose("auto", "first")
    assert "scripted to be away" in caught.value.message
    with pytest.raises(InvalidRequestError) as caught:
        rungs.choose("user", "second")
    assert caught.value.code == "VALIDATION_FAILED"
    with pytest.raises(UnavailableError):
        rungs.driver("gone")


async def test_what_is_no_boundary_is_taken_where_there_is_nothing_else() -> None:
    bare = FakeDriver(isolation=Isolation.WORKSPACE)
    slow = FakeDriver(isolation=Isolation.MICROVM, accelerated=False)
    rungs = Rungs({"bare": bare, "slow": slow}, ["bare", "slow"])
    await rungs.probe()
    assert rungs.default == "slow" and rungs.choose("auto", None)[0] == "slow"
    assert rungs.choose("workspace", None)[0] == "bare"
    alone = Rungs({"bare": bare}, ["bare"])
    await alone.probe()
    assert alone.choose("auto", None)[0] == "bare"


async def test_a_driver_that_needs_root_is_not_looked_at_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("roost.engine.rungs.os.geteuid", lambda: 1000)
    privileged, plain = FakeDriver(needs_root=True), FakeDriver()
    rungs = Rungs({"privileged": privileged, "plain": plain}, ["privileged", "plain"])
    await rungs.probe()
    assert rungs.default == "plain" and not privileged.calls["probe"]
    assert "needs root" in (rungs.probes["privileged"].reason or "")
    assert rungs.probes["privileged"].remedy == "sudo roost up"
    with pytest.raises(InvalidRequestError, match="needs root"):
        rungs.choose("auto", "privileged")


async def test_an_emulated_cpu_is_the_last_choice_and_still_one() -> None:
    def rungs(accelerated: bool | None, other: bool = True) -> Rungs:
        microvm = FakeDriver(accelerated=accelerated, isolation=Isolation.MICROVM)
        container = FakeDriver(available=other)
        return Rungs({"microvm": microvm, "container": container}, ["microvm", "container"])

    for accelerated, first in ((True, "microvm"), (False, "container"), (None, "microvm")):
        offered = rungs(accelerated)
        assert offered.default is None, "nobody has looked yet"
        await offered.probe()
        assert offered.default == first
        assert offered.choose("auto", None)[0] == first
        # Who asks for it gets it, and is told what it is.
        for asked in (("auto", "microvm"), ("microvm", None), ("microvm", "microvm")):
            name, capabilities = offered.choose(*asked)
            assert (name, capabilities.accelerated) == ("microvm", accelerated)
        assert offered.choose("container", None)[0] == "container"
    alone = rungs(False, other=False)
    await alone.probe()
    assert alone.default == alone.choose("auto", None)[0] == "microvm"


def test_capabilities_survive_the_database() -> None:
    capabilities = FakeDriver().capabilities()
    data = capabilities_to_json(capabilities)
    assert capabilities_from_json({**data, "of_a_later_version": 1}) == capabilities


def test_the_hosts_secret_is_kept_and_private(tmp_path: Path) -> None:
    one, two = HostIdentity.load(tmp_path), HostIdentity.load(tmp_path)
    assert one == two
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert one.secret.hex() not in repr(one)
    tokens = {one.agent_token("a", 1), one.agent_token("a", 2), one.agent_token("b", 1)}
    assert len(tokens) == 3
    assert all(len(t) == 64 for t in tokens)
    assert len(linux_machine_id("a")) == 32


async def test_a_start_nobody_wants_leaves_the_queue() -> None:
    turns = Turns(1)
    gate, told, done = asyncio.Event(), asyncio.Event(), []

    async def one(name: str, interrupt: asyncio.Event) -> None:
        async with turns.turn(interrupt):
            await gate.wait() if name == "first" else None
            done.append(name)

    tasks = [asyncio.ensure_future(one("first", asyncio.Event()))]
    await asyncio.sleep(0)
    assert not turns.free
    tasks.append(asyncio.ensure_future(one("unwanted", told)))
    tasks.append(asyncio.ensure_future(one("second", asyncio.Event())))
    cancelled = asyncio.ensure_future(one("cancelled", asyncio.Event()))
    await asyncio.sleep(0.01)
    assert done == []
    told.set()
    cancelled.cancel()
    await until(lambda: done == ["unwanted"])
    gate.set()
    await asyncio.gather(*tasks)
    assert done == ["unwanted", "first", "second"]
    assert turns.free


class Undecided(FakeDriver):
    """Says that it is slow until it is prepared, and may then know better."""

    fast = False

    @property
    def undecided(self) -> bool:
        return not self.calls["prepare"]

    def capabilities(self) -> Capabilities:
        fast = self.fast and not self.undecided
        return replace(super().capabilities(), accelerated=fast)


async def test_auto_waits_for_what_may_turn_out_to_be_fast() -> None:
    for fast, first in ((True, "microvm"), (False, "container")):
        microvm = Undecided()
        microvm.fast = fast
        rungs = Rungs({"microvm": microvm, "container": FakeDriver()}, ["microvm", "container"])
        await rungs.probe()
        assert rungs.default == "container"
        for _ in range(2):
            await rungs.decide()
            assert rungs.default == rungs.choose("auto", None)[0] == first
        assert microvm.calls["prepare"] == 1
    # One that cannot be prepared costs one try and stays what it is.
    microvm = Undecided()
    microvm.fail("prepare", UnavailableError("no mirror"))
    rungs = Rungs({"microvm": microvm, "container": FakeDriver()}, ["microvm", "container"])
    await rungs.probe()
    for _ in range(2):
        await rungs.decide()
    assert (rungs.default, microvm.calls["prepare"]) == ("container", 1)
