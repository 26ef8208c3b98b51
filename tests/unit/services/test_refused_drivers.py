"""A driver that is refused on this host starts no machine, not even one that exists; what runs runs on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from roost.clock import FakeClock
from roost.drivers.fake import FakeDriver
from roost.drivers.interface import Exit, Probe
from roost.engine.engine import HOUSEKEEPING_S
from roost.engine.machine import Machine
from roost.errors import RoostError, discreet
from roost.services import warm
from roost.services.models import ForkMachine
from tests.unit.engine.kit import TENANT, Daemon, Host, small, until
from tests.unit.services.test_climbing import VM
from tests.unit.services.test_promotions import Kit

WHY = "fake 1.1.11: CVE-2024-21626"
REMEDY = "apt-get upgrade"


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    host = Host(tmp_path, memory=True, others={"vm": FakeDriver(memory_snapshot=True, **VM)})
    yield host
    await host.close()


@pytest.fixture
async def d(host: Host) -> AsyncIterator[Daemon]:
    d = await Daemon.start(host)
    yield d
    await d.stop()


def refuse(d: Daemon) -> None:
    """As probes would find it from now on, and have."""
    d.host.driver.refused = Probe(False, reason=WHY, remedy=REMEDY)
    d.engine.rungs.probes["fake"] = d.host.driver.refused


async def made(d: Daemon, **changes: Any) -> Machine:
    return await d.machines.create(TENANT, small(isolation="container", **changes))


def starts(d: Daemon) -> int:
    return d.host.driver.calls["start"] + d.host.driver.calls["restore"]


def is_refusal(error: RoostError) -> bool:
    return error.code == "RUNG_UNAVAILABLE" and WHY in error.message and REMEDY in error.message


@pytest.mark.parametrize("tier", ["hibernated", "stopped"])
async def test_one_that_sleeps_is_not_started_and_loses_nothing(d: Daemon, tier: str) -> None:
    machine = await made(d)
    before = await d.machines.sleep(TENANT, machine.id, tier)
    begun = starts(d)
    refuse(d)
    for call in (d.machines.wake, d.machines.awake, d.machines.reboot):
        with pytest.raises(RoostError) as caught:
            await call(TENANT, machine.id)
        assert is_refusal(caught.value) and "promote" in caught.value.message
        assert not caught.value.retryable
    now = await d.machines.get(TENANT, machine.id)
    assert now == before
    assert starts(d) == begun and not await d.open_operations()
    d.host.driver.refused = None
    await d.engine.rungs.probe()
    assert (await d.machines.wake(TENANT, machine.id)).phase == "running"
    assert d.host.driver.calls["restore"] == (tier == "hibernated")
    assert not d.host.leaks(await d.all())


async def test_why_is_not_told_to_whoever_comes(d: Daemon) -> None:
    """Visitors of its previews hear it, and its programs."""
    machine = await made(d)
    await d.machines.sleep(TENANT, machine.id)
    refuse(d)
    with pytest.raises(RoostError) as caught:
        await d.machines.awake(TENANT, machine.id)
    told = discreet(caught.value)
    assert told.code == "RUNG_UNAVAILABLE" and "promote" in told.message
    assert WHY not in str(told.to_wire()) and REMEDY not in str(told.to_wire())


async def test_one_that_runs_runs_on_and_is_not_ended_for_a_start_that_is_refused(
    d: Daemon,
) -> None:
    machine = await made(d)
    snapshot = await d.snapshots.create(TENANT, machine.id)
    refuse(d)
    for call in (
        d.machines.reboot(TENANT, machine.id),
        d.snapshots.rollback(TENANT, machine.id, snapshot.id),
        d.machines.fork(TENANT, machine.id, ForkMachine()),
        d.machines.create(TENANT, small(snapshot=snapshot.id)),
        d.machines.fork(TENANT, machine.id, ForkMachine(snapshot=snapshot.id)),
    ):
        with pytest.raises(RoostError) as caught:
            await call
        assert caught.value.code == "RUNG_UNAVAILABLE" and WHY in caught.value.message
    live = await d.machines.awake(TENANT, machine.id)
    assert live.machine.generation == machine.generation
    assert d.host.driver.calls["capture"] == 1
    asleep = await d.machines.sleep(TENANT, machine.id)
    rolled = await d.snapshots.rollback(TENANT, machine.id, snapshot.id)
    assert (asleep.phase, rolled.phase) == ("sleeping", "sleeping")  # nothing was started for it


async def test_one_that_is_frozen_goes_on(d: Daemon) -> None:
    """It is the process that it was: nothing is started."""
    machine = await made(d)
    await d.machines.sleep(TENANT, machine.id, "frozen")
    begun = starts(d)
    refuse(d)
    assert (await d.machines.wake(TENANT, machine.id)).phase == "running"
    assert starts(d) == begun


async def test_one_that_reboots_itself_stays_down(d: Daemon) -> None:
    machine = await made(d)
    refuse(d)
    d.host.driver.die(machine.id, Exit("rebooted"))
    await until(lambda: machine.id not in d.engine.desk.busy() and not d.host.driver.machines)
    now = await d.machines.get(TENANT, machine.id)
    assert (now.phase, now.tier, now.reason) == ("sleeping", "stopped", "rebooted")
    assert not d.host.leaks(await d.all())


async def test_the_next_daemon_adopts_what_runs_and_starts_nothing(host: Host) -> None:
    d = await Daemon.start(host)
    runs, sleeps = await made(d), await made(d)
    await d.machines.sleep(TENANT, sleeps.id)
    await d.kill()
    host.driver.refused = Probe(False, reason=WHY, remedy=REMEDY)
    d = await Daemon.start(host, build=False)
    assert (await d.machines.awake(TENANT, runs.id)).machine.phase == "running"
    with pytest.raises(RoostError) as caught:
        await d.machines.wake(TENANT, sleeps.id)
    assert is_refusal(caught.value)
    await d.stop()


async def test_one_begun_before_it_was_refused_is_asleep_again(d: Daemon) -> None:
    machine = await made(d)
    before = await d.machines.sleep(TENANT, machine.id)
    begun, take = starts(d), d.host.network.take

    async def taken(*args: Any) -> Any:
        refuse(d)
        return await take(*args)

    d.host.network.take = taken  # type: ignore[method-assign]
    with pytest.raises(RoostError) as caught:
        await d.machines.wake(TENANT, machine.id)
    assert is_refusal(caught.value)
    now = await d.machines.get(TENANT, machine.id)
    assert (now.phase, now.tier, starts(d)) == ("sleeping", "hibernated", begun)
    assert now.memory_image == before.memory_image
    assert WHY not in str(now.last_error)  # its tenant reads that
    assert not d.host.leaks(await d.all())


async def test_one_chosen_before_it_was_refused_is_not_made(d: Daemon) -> None:
    driver = d.host.driver
    prepare = driver.prepare

    async def prepared() -> None:
        await prepare()
        refuse(d)

    driver.prepare = prepared  # type: ignore[method-assign]
    with pytest.raises(RoostError) as caught:
        await made(d)
    assert is_refusal(caught.value)
    assert not await d.all()


async def test_none_is_kept_warm_and_others_are(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pause in ("REFILL_AFTER_S", "RETRY_S"):
        monkeypatch.setattr(warm, pause, 0.0)
    d = await Daemon.start(host, warm_machines=1)
    await d.machines.create(TENANT, small(isolation="microvm"))
    await made(d)
    await until(lambda: d.warm.count == 2)
    refuse(d)
    await d.warm.make_room()
    begun = starts(d)
    d.warm._wanted.set()
    await until(lambda: d.warm.count == 1)
    assert starts(d) == begun
    await d.stop()


@pytest.mark.parametrize("tier", [None, "frozen", "hibernated", "stopped"])
async def test_it_can_be_promoted(d: Daemon, tier: str | None) -> None:
    machine = await made(d)
    if tier is not None:
        await d.machines.sleep(TENANT, machine.id, tier)
    begun = starts(d)
    refuse(d)
    kit = await Kit.start(d)
    climbed = await kit.promotions.climb(TENANT, machine.id, "microvm", None)
    expected = ("running", None) if tier is None else ("sleeping", "stopped")
    assert (climbed.phase, climbed.tier, climbed.driver) == (*expected, "vm")
    assert climbed.memory_image is None and starts(d) == begun
    lost = [each.event for each in await d.machines.events(TENANT, machine.id)]
    assert ("memory_lost" in lost) == (tier == "hibernated")
    assert (await d.machines.wake(TENANT, machine.id)).phase == "running"
    assert not d.host.leaks(await d.all())


async def test_a_driver_that_was_away_is_looked_at_again(tmp_path: Path) -> None:
    """One that can be used is left alone: a moment's failure does not take it away."""
    clock, other = FakeClock(), FakeDriver(**VM)
    host = Host(tmp_path, clock, others={"vm": other})
    d = await Daemon.start(host)
    machine = await made(d)
    await d.machines.sleep(TENANT, machine.id)
    probes, looked = d.engine.rungs.probes, (host.driver.calls["probe"], other.calls["probe"])
    probes["fake"] = replace(probes["fake"], available=False)
    with pytest.raises(RoostError):
        await d.machines.wake(TENANT, machine.id)
    assert looked == (host.driver.calls["probe"], other.calls["probe"])  # not by who asks
    await clock.advance(HOUSEKEEPING_S + 1)
    await until(lambda: d.engine.rungs.available("fake"))
    assert (await d.machines.wake(TENANT, machine.id)).phase == "running"
    assert (looked[0] + 1, looked[1]) == (host.driver.calls["probe"], other.calls["probe"])
    await d.stop()
    await host.close()


async def test_one_of_a_driver_that_this_daemon_has_not_sleeps_on(host: Host) -> None:
    d = await Daemon.start(host)
    machine = await d.machines.create(TENANT, small(isolation="microvm"))
    await d.machines.sleep(TENANT, machine.id)
    await d.stop()
    gone = host.others.pop("vm")
    d = await Daemon.start(host, build=False)
    with pytest.raises(RoostError) as caught:
        await d.machines.wake(TENANT, machine.id)
    assert caught.value.code == "DEPENDENCY_UNAVAILABLE"
    assert (await d.machines.get(TENANT, machine.id)).phase == "sleeping"
    host.others["vm"] = gone
    await d.stop()


async def test_a_moments_failure_takes_no_driver_away(
    d: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [Probe(False, reason="no room for a process"), Probe(True)]

    async def probe() -> Probe:
        return answers.pop(0)

    monkeypatch.setattr(d.host.driver, "probe", probe)
    await d.engine.rungs.probe()
    assert d.engine.rungs.available("fake")
    answers += [Probe(False, reason=WHY), Probe(False, reason=WHY)]
    await d.engine.rungs.probe()
    assert not d.engine.rungs.available("fake")


async def test_what_is_no_more_is_said_before_what_cannot_be(d: Daemon) -> None:
    machine = await made(d)
    gate = d.host.driver.hang("remove")
    going = asyncio.ensure_future(d.machines.delete(TENANT, machine.id))
    await until(lambda: d.host.driver.calls["remove"])
    refuse(d)
    waking = asyncio.ensure_future(d.machines.wake(TENANT, machine.id))
    await asyncio.sleep(0.01)
    gate.set()
    await going
    with pytest.raises(RoostError) as caught:
        await waking
    assert caught.value.code != "RUNG_UNAVAILABLE"
