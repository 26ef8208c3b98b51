"""Egress policies in the life of machines: at create, live, asleep, forked, handed out, and where it goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from roost.drivers.fake import FakeDriver
from roost.egress.interface import Decision
from roost.egress.policy import Mode, Policy
from roost.engine import egress
from roost.engine.machine import Machine
from roost.errors import (
    ConflictError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    RoostError,
    UnavailableError,
    UnsupportedError,
)
from roost.services import warm
from roost.services.models import ForkMachine
from roost.services.policies import PatchPolicy
from roost.settings import read_egress
from roost.store import machines as rows
from roost.store.schema import machine_events
from tests.unit.engine.kit import OTHER, TENANT, Daemon, Host, daemon, small, until

OFF = Policy.read("off")
LIST = Policy.read({"allow": ["python.example"]})
OPEN = Policy()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "REFILL_AFTER_S", 0.0)
    monkeypatch.setattr(egress, "PAUSE_S", 0.0)


def held(**is_: Any) -> FakeDriver:
    return FakeDriver(egress_enforced=True, **is_)


@pytest.fixture
async def d(tmp_path: Path) -> AsyncIterator[Daemon]:
    async with daemon(tmp_path, driver=held()) as running:
        yield running


def holds(d: Daemon, machine: Machine) -> Policy | None:
    """What the network was told."""
    return d.host.network.policies.get(machine.id)


async def row(d: Daemon, machine: Machine) -> Policy:
    return (await d.machines.get(TENANT, machine.id)).egress


async def test_a_machine_has_it_before_it_runs(d: Daemon) -> None:
    started = d.host.driver.hang("start")
    making = asyncio.ensure_future(d.machines.create(TENANT, small(egress=LIST)))
    await until(lambda: d.host.driver.calls["start"])
    assert list(d.host.network.policies.values()) == [LIST]
    started.set()
    made = await making
    assert (made.egress, holds(d, made)) == (LIST, LIST)
    assert d.host.network.calls["apply"] == 0
    other = await d.machines.create(TENANT, small())
    assert (other.egress, holds(d, other)) == (OPEN, OPEN)


async def test_the_hosts_default_is_what_was_not_said(tmp_path: Path) -> None:
    async with daemon(tmp_path, driver=held(), egress="python.example node.example") as d:
        made = await d.machines.create(TENANT, small())
        assert [str(each) for each in made.egress.allow] == ["python.example", "node.example"]
        assert holds(d, made) == made.egress
        assert holds(d, await d.machines.create(TENANT, small(egress=OPEN))) == OPEN
        kept = await d.snapshots.create(TENANT, made.id, "s")
        again = await d.machines.create(TENANT, small(snapshot=kept.id))
        assert again.egress == made.egress
    assert read_egress("allowlist") == Policy(Mode.ALLOWLIST)
    assert read_egress(" off ") == OFF
    with pytest.raises(InvalidRequestError):
        read_egress("open python.example:x")


async def test_a_driver_that_cannot_hold_it_refuses(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        for policy in (OFF, LIST, Policy(observe=True)):
            with pytest.raises(UnsupportedError, match="fake driver have the host's network"):
                await d.machines.create(TENANT, small(egress=policy))
        made = await d.machines.create(TENANT, small())
        with pytest.raises(UnsupportedError):
            await d.policies.replace(TENANT, made.id, OFF)
        with pytest.raises(UnsupportedError):
            await d.machines.fork(TENANT, made.id, ForkMachine(egress=OFF))
        assert await row(d, made) == OPEN
        await d.policies.replace(TENANT, made.id, OPEN)
    async with daemon(tmp_path, egress="off") as d:
        with pytest.raises(UnsupportedError):
            await d.machines.create(TENANT, small())


async def test_changed_live(d: Daemon) -> None:
    m = await d.machines.create(TENANT, small())
    changed = await d.policies.replace(TENANT, m.id, LIST)
    assert (changed.egress, holds(d, m), await row(d, m)) == (LIST, LIST, LIST)
    assert changed.revision > m.revision
    live = await d.machines.awake(TENANT, m.id)
    assert live.machine.egress == LIST
    patched = await d.policies.patch(TENANT, m.id, PatchPolicy(add=["node.example"], observe=True))
    assert [str(each) for each in patched.egress.allow] == ["python.example", "node.example"]
    assert holds(d, m) == patched.egress and patched.egress.observe
    # The same again is told to the network again, and is no new revision.
    again = await d.policies.replace(TENANT, m.id, patched.egress)
    assert again.revision == patched.revision
    assert d.host.network.calls["apply"] == 3
    events = [e.message for e in await d.machines.events(TENANT, m.id) if e.event == "egress"]
    assert events == [
        "allowlist of 1: python.example",
        "allowlist of 2: python.example, node.example; observed",
    ]


async def test_whose_it_is_and_what_it_was(d: Daemon) -> None:
    m = await d.machines.create(TENANT, small())
    with pytest.raises(NotFoundError):
        await d.policies.replace(OTHER, m.id, OFF)
    with pytest.raises(NotFoundError):
        await d.policies.report(OTHER, m.id)
    with pytest.raises(ConflictError) as caught:
        await d.policies.replace(TENANT, m.id, OFF, if_match=m.revision + 1)
    assert caught.value.code == "REVISION_MISMATCH"
    with pytest.raises(InvalidRequestError):
        await d.policies.patch(TENANT, m.id, PatchPolicy(add=["python.example"]))
    assert await row(d, m) == OPEN and d.host.network.calls["apply"] == 0
    await d.machines.delete(TENANT, m.id)
    with pytest.raises(ConflictError, match="cannot be changed any more"):
        await d.policies.replace(TENANT, m.id, OFF)


@pytest.mark.parametrize("tier", ["frozen", "stopped"])
async def test_one_that_sleeps_has_it_from_its_next_start(d: Daemon, tier: str) -> None:
    m = await d.machines.create(TENANT, small(egress=LIST))
    await d.machines.sleep(TENANT, m.id, tier)
    await d.policies.replace(TENANT, m.id, OFF)
    assert (await d.machines.get(TENANT, m.id)).phase == "sleeping"
    assert holds(d, m) == (OFF if tier == "frozen" else None)
    await d.machines.wake(TENANT, m.id)
    assert holds(d, m) == OFF


async def test_it_waits_for_its_turn(d: Daemon) -> None:
    """A wake under way began with the policy of before: what is acknowledged after it holds."""
    m = await d.machines.create(TENANT, small())
    await d.machines.sleep(TENANT, m.id)
    started = d.host.driver.hang("start")
    waking = asyncio.ensure_future(d.machines.wake(TENANT, m.id))
    await until(lambda: d.host.driver.calls["start"] == 2)
    changing = asyncio.ensure_future(d.policies.replace(TENANT, m.id, OFF))
    await asyncio.sleep(0.05)
    assert not changing.done() and holds(d, m) == OPEN
    started.set()
    await waking
    await changing
    assert holds(d, m) == OFF


async def test_a_fork_has_its_parents_unless_told(d: Daemon) -> None:
    m = await d.machines.create(TENANT, small(egress=LIST))
    (child,) = await d.machines.fork(TENANT, m.id, ForkMachine())
    assert (child.egress, holds(d, child)) == (LIST, LIST)
    (other,) = await d.machines.fork(TENANT, m.id, ForkMachine(egress=OFF))
    assert holds(d, other) == OFF and holds(d, m) == LIST
    # Changed before the instant that the child goes on from: it is the later that counts.
    captured = d.host.driver.hang("capture")
    forking = asyncio.ensure_future(d.machines.fork(TENANT, m.id, ForkMachine()))
    await until(lambda: d.host.driver.calls["capture"] == 3)
    changing = asyncio.ensure_future(d.policies.replace(TENANT, m.id, OFF))
    captured.set()
    (late,) = await forking
    await changing
    assert holds(d, late) in (LIST, OFF) and holds(d, m) == OFF
    applied = d.host.network.hang("apply")
    tightening = asyncio.ensure_future(d.policies.replace(TENANT, m.id, LIST))
    await until(lambda: d.host.network.calls["apply"] == 2)
    forking = asyncio.ensure_future(d.machines.fork(TENANT, m.id, ForkMachine()))
    await asyncio.sleep(0.05)
    applied.set()
    await tightening
    (last,) = await forking
    assert holds(d, last) == LIST


async def test_a_warm_machine_has_it_before_it_is_anybodys(tmp_path: Path) -> None:
    async with daemon(tmp_path, driver=held(), warm_machines=1) as d:
        await d.machines.create(TENANT, small())
        await until(lambda: d.warm.count == 1)
        ((ready,),) = [shelf.ready for shelf in d.warm._shelves.values()]
        applied = d.host.network.hang("apply")
        making = asyncio.ensure_future(d.machines.create(TENANT, small(egress=LIST)))
        await until(lambda: d.host.network.calls["apply"])
        assert len((await d.machines.list(TENANT)).items) == 1
        applied.set()
        made = await making
        assert (made.id, made.egress, holds(d, made)) == (ready, LIST, LIST)
        # One whose network refuses is nobody's, and goes.
        d.host.network.hangs.clear()
        await until(lambda: d.warm.count == 1)
        d.host.network.fail("apply", InternalError("no"))
        other = await d.machines.create(TENANT, small(egress=OFF))
        assert other.egress == OFF and holds(d, other) == OFF


@pytest.mark.parametrize("failure", [InternalError("no"), OSError(5, "nft"), TimeoutError()])
async def test_what_the_network_refuses_is_put_back(d: Daemon, failure: BaseException) -> None:
    m = await d.machines.create(TENANT, small(egress=LIST))
    d.host.network.fail("apply", failure)
    with pytest.raises(UnavailableError, match="the one before holds"):
        await d.policies.replace(TENANT, m.id, OPEN)
    assert (await row(d, m), holds(d, m)) == (LIST, LIST)
    live = await d.machines.awake(TENANT, m.id)
    assert (live.machine.egress, live.machine.phase) == (LIST, "running")
    assert (await d.policies.replace(TENANT, m.id, OPEN)).egress == OPEN


async def test_where_nobody_proves_names_the_rules_hold_all_the_same(d: Daemon) -> None:
    m = await d.machines.create(TENANT, small(egress=LIST))
    d.host.network.fail("apply", *[UnavailableError("no process of names")] * 2)
    with pytest.raises(UnavailableError, match="the one before holds"):
        await d.policies.replace(TENANT, m.id, OPEN)
    assert (await row(d, m), m.id in d.host.driver.machines) == (LIST, True)
    assert d.host.network.calls["apply"] == 2


async def test_one_that_goes_meanwhile_is_told_so(d: Daemon) -> None:
    m = await d.machines.create(TENANT, small(egress=LIST))
    applied = d.host.network.hang("apply")
    d.host.network.fail("apply", InternalError("no"))
    changing = asyncio.ensure_future(d.policies.replace(TENANT, m.id, OPEN))
    await until(lambda: d.host.network.calls["apply"])
    going = asyncio.ensure_future(d.machines.delete(TENANT, m.id))
    await asyncio.sleep(0.05)
    applied.set()
    with pytest.raises(ConflictError):
        await changing
    assert (await going).phase == "destroyed"
    assert not d.host.leaks(await d.all())


async def test_a_machines_life_stays_bounded(d: Daemon) -> None:
    m = await d.machines.create(TENANT, small())
    for turn in range(rows.EVENTS_PER_MACHINE + 20):
        await d.policies.replace(TENANT, m.id, OPEN if turn % 2 else OFF)
    count = sa.select(sa.func.count()).select_from(machine_events)
    assert await d.store.read(lambda c: c.execute(count).scalar()) <= rows.EVENTS_PER_MACHINE + 2


async def test_where_it_cannot_be_put_back_the_machine_is_ended(d: Daemon) -> None:
    m = await d.machines.create(TENANT, small(egress=LIST))
    d.host.network.fail("apply", *[InternalError("no")] * (1 + egress.TRIES))
    with pytest.raises(UnavailableError, match="was ended"):
        await d.policies.replace(TENANT, m.id, OPEN)
    assert m.id not in d.host.driver.machines

    async def failed() -> bool:
        return (await d.machines.get(TENANT, m.id)).phase == "failed"

    await until(failed)
    await d.engine.settled(m.id)  # and what is left of it is taken away
    assert not d.host.leaks(await d.all())
    await d.machines.wake(TENANT, m.id)
    assert holds(d, m) == await row(d, m)


@pytest.mark.parametrize("after", ["row", "network"])
async def test_a_daemon_that_dies_in_between_leaves_what_the_row_says(
    tmp_path: Path, after: str
) -> None:
    host = Host(tmp_path, driver=held())
    d = await Daemon.start(host)
    m = await d.machines.create(TENANT, small(egress=OPEN))
    asleep = await d.machines.create(TENANT, small(egress=OPEN))
    await d.machines.sleep(TENANT, asleep.id)
    if after == "row":
        host.network.hang("apply")
    changing = [
        asyncio.ensure_future(d.policies.replace(TENANT, each.id, LIST)) for each in (m, asleep)
    ]
    await until(lambda: host.network.calls["apply"] == 2)
    if after == "network":
        await asyncio.gather(*changing)
    await d.kill()
    await asyncio.gather(*changing, return_exceptions=True)
    host.network.hangs.clear()
    assert (host.network.policies[m.id] == OPEN) == (after == "row")
    d = await Daemon.start(host)
    assert (await row(d, m), holds(d, m)) == (LIST, LIST)
    await d.machines.wake(TENANT, asleep.id)
    assert holds(d, asleep) == LIST
    assert not host.leaks(await d.all())
    await d.stop()
    await host.close()


@pytest.mark.parametrize("policy", [OPEN, LIST])
async def test_one_that_it_cannot_be_put_upon_does_not_run_on(
    tmp_path: Path, policy: Policy
) -> None:
    host = Host(tmp_path, driver=held())
    d = await Daemon.start(host)
    m = await d.machines.create(TENANT, small(egress=policy))
    await d.kill()
    host.network.fail("reattach", InternalError("no"))
    d = await Daemon.start(host)
    now = await d.machines.get(TENANT, m.id)
    assert now.phase == ("running" if policy == OPEN else "failed")
    assert (m.id in host.driver.machines) == (policy == OPEN)
    await d.stop()
    await host.close()


async def test_where_only_the_process_of_names_is_away_it_is_adopted(tmp_path: Path) -> None:
    host = Host(tmp_path, driver=held())
    d = await Daemon.start(host)
    m = await d.machines.create(TENANT, small(egress=LIST))
    await d.kill()
    host.network.fail("reattach", UnavailableError("no process of names"))
    d = await Daemon.start(host)
    assert (await d.machines.get(TENANT, m.id)).phase == "running"
    assert m.id in host.driver.machines
    await d.stop()
    await host.close()


async def test_what_was_tried_newest_first_and_what_would_have_done(d: Daemon) -> None:
    m = await d.machines.create(TENANT, small(egress=LIST))
    d.host.network.tried[m.id] = [
        Decision("python.example", 443, "tcp", "tls", True, "", 5, 1.0, 2.0),
        Decision("example.org", 53, "udp", "dns", False, "not_allowed", 2, 1.0, 9.0),
        Decision("169.254.169.254", 80, "tcp", "packet", False, "refused", 1, 1.0, 3.0),
    ]
    report = await d.policies.report(TENANT, m.id)
    assert report.policy == LIST
    assert [each.host for each in report.decisions] == [
        "example.org", "169.254.169.254", "python.example",
    ]  # fmt: skip
    assert report.suggested.allow == ("example.org",)
    await d.policies.patch(TENANT, m.id, PatchPolicy(add=report.suggested.allow))
    assert (await d.policies.report(TENANT, m.id)).suggested.allow == ()
    await d.machines.sleep(TENANT, m.id)
    assert (await d.policies.report(TENANT, m.id)).decisions == []


async def test_what_the_operator_opened_is_suggested(tmp_path: Path) -> None:
    async with daemon(tmp_path, driver=held(), egress_private="10.9.0.0/16") as d:
        m = await d.machines.create(TENANT, small(egress=LIST))
        d.host.network.tried[m.id] = [
            Decision(host, 5432, "tcp", "packet", False, "address", 1, 1.0, 2.0)
            for host in ("10.9.1.1", "10.8.1.1")
        ]
        assert (await d.policies.report(TENANT, m.id)).suggested.allow == ("10.9.1.1:5432/tcp",)


async def test_a_policy_survives_a_rollback_and_a_sweep(d: Daemon) -> None:
    m = await d.machines.create(TENANT, small())
    kept = await d.snapshots.create(TENANT, m.id, "s")
    await d.policies.replace(TENANT, m.id, LIST)
    await d.snapshots.rollback(TENANT, m.id, kept.id)
    assert (await row(d, m), holds(d, m)) == (LIST, LIST)
    made = await d.machines.create(TENANT, small(snapshot=kept.id))
    assert made.egress == OPEN  # a snapshot keeps nothing of it
    with pytest.raises(RoostError):
        await d.machines.create(TENANT, small(egress=LIST, template="none"))


async def test_what_it_was_is_what_the_host_says(tmp_path: Path) -> None:
    async with daemon(tmp_path, driver=held(), egress="off") as d:
        m = await d.machines.create(TENANT, small(egress=LIST))
        assert (await d.policies.restore(TENANT, m.id)).egress == OFF
        assert holds(d, m) == OFF
