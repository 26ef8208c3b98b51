"""What a machine's ttl ends in, whether what needs it wakes it, what it used, and finding it among others."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from roost.clock import FakeClock
from roost.drivers.fake import FakeDriver
from roost.drivers.interface import Exit, Isolation
from roost.engine import samples
from roost.engine.machine import Machine
from roost.errors import ConflictError, InvalidRequestError, MachineError, UnsupportedError
from roost.services import launching
from roost.services.machines import _check_run_as
from roost.services.models import ForkMachine, PatchMachine
from tests.unit.engine.kit import TENANT, Daemon, Host, daemon, small, until


async def phase(d: Daemon, machine_id: str) -> str:
    return (await d.machines.get(TENANT, machine_id)).phase


async def _is(d: Daemon, machine_id: str, wanted: str) -> bool:
    return await phase(d, machine_id) == wanted


@pytest.mark.parametrize("memory", [False, True])
async def test_a_ttl_may_end_in_sleep(tmp_path: Path, memory: bool) -> None:
    clock = FakeClock()
    async with daemon(tmp_path, clock=clock, memory=memory) as d:
        m = await d.machines.create(TENANT, small(ttl_seconds=60, expiry="sleep"))
        other = await d.machines.create(TENANT, small(ttl_seconds=60))
        assert (m.expiry, other.expiry) == ("sleep", "destroy")
        await clock.advance(61)

        async def slept() -> bool:
            now = await d.machines.get(TENANT, m.id)
            return now.phase == "sleeping" and now.expires_at is None

        await until(slept)
        now = await d.machines.get(TENANT, m.id)
        assert (now.tier, now.ttl_seconds) == ("hibernated" if memory else "stopped", None)
        assert "expired" in [each.event for each in await d.machines.events(TENANT, m.id)]

        async def gone() -> bool:
            return await phase(d, other.id) == "destroyed"

        await until(gone)
        await d.machines.wake(TENANT, m.id)
        await clock.advance(3600)
        assert await phase(d, m.id) == "running", "it has no end any more"


async def test_a_ttl_that_ends_in_sleep_leaves_one_asleep_as_it_is(tmp_path: Path) -> None:
    clock = FakeClock()
    async with daemon(tmp_path, clock=clock) as d:
        m = await d.machines.create(TENANT, small(ttl_seconds=60, expiry="sleep"))
        await d.machines.sleep(TENANT, m.id)
        await clock.advance(61)

        async def told() -> bool:
            return (await d.machines.get(TENANT, m.id)).expires_at is None

        await until(told)
        assert await phase(d, m.id) == "sleeping"


async def test_a_daemon_that_was_away_puts_to_sleep_what_is_overdue(tmp_path: Path) -> None:
    clock = FakeClock()
    host = Host(tmp_path, clock)
    d = await Daemon.start(host)
    m = await d.machines.create(TENANT, small(ttl_seconds=60, expiry="sleep"))
    await d.kill()
    await clock.advance(120)
    d = await Daemon.start(host)

    async def slept() -> bool:
        return await phase(d, m.id) == "sleeping"

    await until(slept)
    await d.stop()
    await host.close()


async def test_what_could_not_be_put_to_sleep_is_tried_again(tmp_path: Path) -> None:
    clock = FakeClock()
    async with daemon(tmp_path, clock=clock) as d:
        m = await d.machines.create(TENANT, small(ttl_seconds=60, expiry="sleep"))
        d.host.driver.fail("remove", *(MachineError("stuck", code="TIMEOUT") for _ in range(3)))
        await clock.advance(61)

        async def failed() -> bool:
            return await phase(d, m.id) == "failed"

        await until(failed)
        assert (await d.machines.get(TENANT, m.id)).expires_at is not None


async def test_expiry_is_changed_and_inherited(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        m = await d.machines.create(TENANT, small(expiry="sleep", autowake=False))
        (child,) = await d.machines.fork(TENANT, m.id, ForkMachine())
        assert (child.expiry, child.autowake) == ("sleep", False)
        (other,) = await d.machines.fork(TENANT, m.id, ForkMachine(expiry="destroy", autowake=True))
        assert (other.expiry, other.autowake) == ("destroy", True)
        m = await d.machines.patch(TENANT, m.id, PatchMachine(expiry="destroy", autowake=True))
        assert (m.expiry, m.autowake) == ("destroy", True)
        for bad in (PatchMachine(expiry="explode"), PatchMachine(autowake="no")):  # type: ignore[arg-type]
            with pytest.raises(InvalidRequestError):
                await d.machines.patch(TENANT, m.id, bad)


async def test_whom_commands_run_as_is_the_machines_before_it_is_the_templates(
    tmp_path: Path,
) -> None:
    async with daemon(tmp_path) as d:
        m = await d.machines.create(TENANT, small(run_as="user:staff"))
        (child,) = await d.machines.fork(TENANT, m.id, ForkMachine())
        assert (m.run_as, child.run_as) == ("user:staff", "user:staff")
        config = {"user": "app", "workdir": "/srv"}
        live: Any = SimpleNamespace(machine=m, config=config)
        assert launching.user(live, None) == "user:staff"
        assert launching.user(live, "root") == "root"
        assert launching.directory(live, None, None) == ""  # its home
        assert (launching.user_of_start(live), launching.directory_of_start(live)) == (
            "app",
            "/srv",
        )
        m = await d.machines.patch(TENANT, m.id, PatchMachine(run_as=""))
        assert m.run_as is None
        live = SimpleNamespace(machine=m, config=config)
        assert (launching.user(live, None), launching.directory(live, None, None)) == (
            "app",
            "/srv",
        )
        one_user = replace(m.capabilities, isolation=Isolation.USER)
        _check_run_as("", one_user)
        with pytest.raises(UnsupportedError):
            _check_run_as("root", one_user)
        for bad in ("x" * 65, "a\nb", "../x", "-rf", "a:", ";id", 5):
            with pytest.raises(InvalidRequestError, match="run_as"):
                await d.machines.patch(TENANT, m.id, PatchMachine(run_as=bad))  # type: ignore[arg-type]


@pytest.mark.parametrize("tier", ["frozen", "stopped"])
async def test_one_that_nothing_wakes_but_wake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tier: str
) -> None:
    async with daemon(tmp_path) as d:
        m = await d.machines.create(TENANT, small(autowake=False, key="user-1"))
        assert (await d.machines.awake(TENANT, m.id)).machine.id == m.id, "it runs"
        await d.machines.sleep(TENANT, m.id, tier)
        with monkeypatch.context() as patched, pytest.raises(ConflictError) as failure:
            patched.setattr(d.store, "write", None)  # it costs a look
            await d.machines.awake(TENANT, m.id)
        assert failure.value.code == "MACHINE_SLEEPING"
        assert await phase(d, m.id) == "sleeping"
        await d.machines.wake(TENANT, m.id)
        await d.machines.awake(TENANT, m.id)
        await d.machines.sleep(TENANT, m.id, tier)
        found, made = await d.machines.ensure(TENANT, "user-1", small())
        assert (found.id, found.phase, made) == (m.id, "running", False), "who ensures it asks"


async def test_one_that_nothing_wakes_is_captured_while_it_is_frozen(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        m = await d.machines.create(TENANT, small(autowake=False))
        await d.machines.sleep(TENANT, m.id, "frozen")
        await d.snapshots.create(TENANT, m.id, "then")
        (child,) = await d.machines.fork(TENANT, m.id, ForkMachine())
        assert child.phase == "running"
        now = await d.machines.get(TENANT, m.id)
        assert (now.phase, now.tier) == ("sleeping", "frozen"), "as it was"


async def test_one_that_nothing_wakes_reboots_itself_all_the_same(tmp_path: Path) -> None:
    host = Host(tmp_path, driver=FakeDriver(raw_disk=True))
    d = await Daemon.start(host)
    m = await d.machines.create(TENANT, small(autowake=False))
    host.driver.die(m.id, Exit("rebooted"))

    async def again() -> bool:
        now = await d.machines.get(TENANT, m.id)
        return now.phase == "running" and now.generation > m.generation

    await until(again)
    await d.stop()
    await host.close()


@pytest.mark.parametrize("patch", [PatchMachine(ttl_seconds=60), PatchMachine(expiry="sleep")])
async def test_more_time_at_the_last_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patch: PatchMachine
) -> None:
    """Between the look at the machine and its end."""
    clock = FakeClock()
    async with daemon(tmp_path, clock=clock) as d:
        m = await d.machines.create(TENANT, small(ttl_seconds=60))
        load = d.engine.load

        async def slow(machine_id: str) -> Machine:
            seen = await load(machine_id)
            monkeypatch.setattr(d.engine, "load", load)
            await d.machines.patch(TENANT, m.id, patch)
            return seen

        monkeypatch.setattr(d.engine, "load", slow)
        await clock.advance(61)

        async def seen() -> bool:
            return (await d.machines.get(TENANT, m.id)).revision > m.revision

        await until(seen)

        await until(lambda: _is(d, m.id, "sleeping" if patch.expiry == "sleep" else "running"))
        await asyncio.sleep(0.2)
        assert await phase(d, m.id) in ("running", "sleeping"), "it is not destroyed"


# --- metrics --------------------------------------------------------------------------------------


async def test_samples_of_one_that_runs(tmp_path: Path) -> None:
    clock = FakeClock()
    async with daemon(tmp_path, clock=clock, usage_interval_s=60.0) as d:
        m = await d.machines.create(TENANT, small(vcpu=0.1))
        (first,) = await d.machines.metrics(TENANT, m.id)
        assert (first.cpu_count, first.disk_used_bytes, first.memory_used_bytes) == (0.1, 10, 30)
        assert await d.machines.metrics(TENANT, m.id) == [first], "that is this moment"
        await clock.advance(30)
        begun = clock.now()
        assert len(await d.machines.metrics(TENANT, m.id)) == 2
        await d.engine.samples.take()
        found = await d.machines.metrics(TENANT, m.id)
        assert [each.at for each in found] == sorted(each.at for each in found)
        later = await d.machines.metrics(TENANT, m.id, start=begun)
        assert 0 < len(later) < len(found)
        early = await d.machines.metrics(TENANT, m.id, end=begun - timedelta(seconds=1))
        assert early == [first]
        assert all(0 <= each.cpu_used_pct <= 10.0 for each in found)
        d.agents.fail("stats", MachineError("it is silent"))
        await clock.advance(30)
        last = (await d.machines.metrics(TENANT, m.id))[-1]
        assert last.disk_used_bytes is None
        assert last.memory_total_bytes == 64 << 20


async def test_the_clock_that_meters_takes_samples(tmp_path: Path) -> None:
    clock = FakeClock()
    async with daemon(tmp_path, clock=clock, usage_interval_s=60.0) as d:
        m = await d.machines.create(TENANT, small())

        async def sampled() -> bool:
            await clock.advance(20)
            return len(d.engine.samples.of(m.id)) >= 2

        await until(sampled)


async def test_samples_wake_nothing_are_bounded_and_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "KEPT", 3)
    clock = FakeClock()
    async with daemon(tmp_path, clock=clock) as d:
        m = await d.machines.create(TENANT, small())
        for _ in range(5):
            await clock.advance(2)
            await d.machines.metrics(TENANT, m.id)
        assert len(await d.machines.metrics(TENANT, m.id)) == 3
        await d.machines.sleep(TENANT, m.id)
        await clock.advance(60)
        assert len(await d.machines.metrics(TENANT, m.id)) == 3
        assert await phase(d, m.id) == "sleeping"
        await d.machines.delete(TENANT, m.id)
        assert await d.machines.metrics(TENANT, m.id) == []


async def test_one_destroyed_while_it_is_looked_at_leaves_no_samples(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        m = await d.machines.create(TENANT, small())
        answers = d.agents.hang("stats")
        looking = asyncio.ensure_future(d.engine.samples.take())

        async def asked() -> bool:
            return d.agents.calls["stats"] > 0

        await until(asked)
        await d.machines.delete(TENANT, m.id)
        answers.set()
        await looking
        assert d.engine.samples.of(m.id) == []


async def test_samples_are_of_a_day_and_take_little(tmp_path: Path) -> None:
    clock = FakeClock()
    async with daemon(tmp_path, clock=clock, usage_interval_s=1e9) as d:
        m = await d.machines.create(TENANT, small())
        await clock.advance(1.5)
        (first,) = await d.machines.metrics(TENANT, m.id)
        assert first.at == clock.now()
        await d.machines.sleep(TENANT, m.id)
        await clock.advance(86_000)
        await d.engine.samples.take()
        assert d.engine.samples.of(m.id) == [first]
        await clock.advance(1000)
        await d.engine.samples.take()
        assert d.engine.samples.of(m.id) == []
        packed = samples._pack(first)
        assert samples._unpack(packed) == first
        assert sys.getsizeof(packed) <= 128


# --- lists ----------------------------------------------------------------------------------------


async def test_lists_by_phase_labels_time_and_order(tmp_path: Path) -> None:
    clock = FakeClock()
    async with daemon(tmp_path, clock=clock) as d:
        made = []
        for n in range(5):
            odd = {"user name": "Zoë/1", "app": "x"} if n % 2 else {"app": "x"}
            made.append(await d.machines.create(TENANT, small(labels=odd)))
            await clock.advance(10)
        ids = [each.id for each in made]
        await d.machines.sleep(TENANT, ids[0])
        await d.machines.delete(TENANT, ids[4])

        async def listed(**asked: object) -> list[str]:
            found, cursor = [], None
            while True:
                page = await d.machines.list(TENANT, limit=2, cursor=cursor, **asked)  # type: ignore[arg-type]
                found += [each.id for each in page.items]
                cursor = page.next_cursor
                if cursor is None:
                    return found

        assert await listed() == ids[3::-1]
        assert await listed(oldest_first=True) == ids[:4]
        assert await listed(phase=["running", "sleeping"]) == ids[3::-1]
        assert await listed(phase=["sleeping", "destroyed"]) == [ids[4], ids[0]]
        assert await listed(phase="running", oldest_first=True) == ids[1:4]
        assert await listed(labels={"user name": "Zoë/1"}) == [ids[3], ids[1]]
        assert await listed(labels={"user name": "Zoë/1", "app": "y"}) == []
        assert await listed(since=made[2].created_at) == [ids[3], ids[2]]
        page = await d.machines.list(TENANT, limit=1)
        with pytest.raises(InvalidRequestError):
            await d.machines.list(TENANT, limit=1, cursor=page.next_cursor, oldest_first=True)
        with pytest.raises(InvalidRequestError):
            await d.machines.list(TENANT, phase=["running", "dreaming"])
