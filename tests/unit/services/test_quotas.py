"""Quotas hold wherever a machine begins, wakes or grows, however many ask at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from roost.clock import FakeClock
from roost.drivers.fake import FakeDriver
from roost.engine.quotas import admit
from roost.errors import AuthError, LimitError
from roost.services.bakes import NOBODY
from roost.services.models import ForkMachine, PatchMachine
from roost.services.rates import Bucket, Windows
from roost.store import tenants
from tests.unit.engine.kit import OTHER, TENANT, daemon, small, until


def refused(caught: pytest.ExceptionInfo[LimitError], quota: str, **numbers: Any) -> None:
    assert caught.value.code == "QUOTA_EXCEEDED"
    told = caught.value.details
    assert told["quota"] == quota
    assert {name: told[name] for name in numbers} == numbers


def test_what_is_not_asked_for_is_not_looked_at() -> None:
    used = {"machines": 5, "vcpu": 1.9}
    admit({"machines": 3, "vcpu": 2}, used, {"vcpu": 0.1})
    admit({}, used, {"machines": 1000})
    with pytest.raises(LimitError):
        admit({"machines": 3}, used, {"machines": 1})
    with pytest.raises(LimitError):
        admit({"vcpu": 2}, used, {"vcpu": 0.2})
    with pytest.raises(LimitError):
        admit({"machines": 0}, {"machines": 0}, {"machines": 1})


@pytest.mark.parametrize(
    ("quota", "limit", "fits"),
    [
        ("machines", 7, 7),
        ("awake_machines", 5, 5),
        ("vcpu", 0.65, 6),
        ("memory_mib", 64 * 9 + 1, 9),
        ("storage_gib", 10 * 4 + 3, 4),
    ],
)
async def test_many_creates_at_once(tmp_path: Path, quota: str, limit: float, fits: int) -> None:
    async with daemon(tmp_path) as d:
        await d.quota(TENANT, **{quota: limit})
        results = await asyncio.gather(
            *(d.machines.create(TENANT, small()) for _ in range(40)), return_exceptions=True
        )
        made = [r for r in results if not isinstance(r, BaseException)]
        others = [r for r in results if isinstance(r, BaseException)]
        assert len(made) == fits
        assert {r.code for r in others} == {"QUOTA_EXCEEDED"}  # type: ignore[attr-defined]
        assert len(await d.all()) == fits  # and no row is left of the others
        await d.machines.create(OTHER, small())  # nobody else is held back
        await d.machines.delete(TENANT, made[0].id)
        await d.machines.create(TENANT, small())


async def test_a_wake_asks_again(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        first, second = [await d.machines.create(TENANT, small()) for _ in range(2)]
        await d.machines.sleep(TENANT, first.id)
        for quota, limit in (("awake_machines", 1), ("vcpu", 0.1), ("memory_mib", 127)):
            await d.quota(TENANT, **{quota: limit})
            for wake in (d.machines.wake, d.machines.awake):
                with pytest.raises(LimitError) as caught:
                    await wake(TENANT, first.id)
                refused(caught, quota, limit=limit)
            assert (await d.machines.get(TENANT, first.id)).phase == "sleeping"
        await d.machines.sleep(TENANT, second.id)
        woken = await asyncio.gather(
            *(d.machines.wake(TENANT, m.id) for m in (first, second)), return_exceptions=True
        )
        assert sorted(type(w).__name__ for w in woken) == ["LimitError", "Machine"]


async def test_growing_asks_too(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        first, second = [await d.machines.create(TENANT, small()) for _ in range(2)]
        await d.quota(TENANT, vcpu=1.0, memory_mib=200)
        for patch, quota in (
            (PatchMachine(vcpu=1.0), "vcpu"),
            (PatchMachine(memory_mib=150), "memory_mib"),
        ):
            with pytest.raises(LimitError) as caught:
                await d.machines.patch(TENANT, first.id, patch)
            refused(caught, quota)
        assert d.host.driver.calls["resize"] == 0
        now = await d.machines.get(TENANT, first.id)
        assert (now.vcpu, now.memory_mib) == (first.vcpu, first.memory_mib)
        await d.machines.patch(TENANT, first.id, PatchMachine(vcpu=0.9, memory_mib=136))
        assert d.host.driver.calls["resize"] == 1
        # What sleeps is not counted, and may be sized for later.
        await d.machines.sleep(TENANT, second.id)
        await d.machines.patch(TENANT, second.id, PatchMachine(vcpu=2.0))
        with pytest.raises(LimitError):
            await d.machines.wake(TENANT, second.id)


async def test_two_that_grow_at_once_do_not_both(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        both = [await d.machines.create(TENANT, small()) for _ in range(2)]
        await d.quota(TENANT, memory_mib=64 + 512)
        grown = await asyncio.gather(
            *(d.machines.patch(TENANT, m.id, PatchMachine(memory_mib=512)) for m in both),
            return_exceptions=True,
        )
        assert sorted(type(g).__name__ for g in grown) == ["LimitError", "Machine"]
        for machine in both:
            row = await d.machines.get(TENANT, machine.id)
            assert d.host.driver.machines[machine.id].size.memory_mib == row.memory_mib


async def test_a_warm_machine_is_not_spent_on_who_may_not_have_it(tmp_path: Path) -> None:
    async with daemon(tmp_path, warm_machines=1) as d:
        await d.machines.create(TENANT, small())
        await until(lambda: d.warm.count == 1)
        await d.quota(TENANT, machines=1)
        with pytest.raises(LimitError):
            await d.machines.create(TENANT, small())
        assert d.warm.count == 1
        # The same, where only the hand-over itself finds out.
        machine = (await d.machines.list(TENANT)).items[0]
        values = {
            **{n: getattr(machine, n) for n in ("driver", "template_id", "image_digest", "vcpu")},
            **{n: getattr(machine, n) for n in ("memory_mib", "storage_gib", "autosleep_seconds")},
            "tenant_id": TENANT,
            "key": None,
            "name": None,
            "labels": {},
            "env": {},
            "egress": "open",
            "ttl_seconds": None,
            "expires_at": None,
        }
        with pytest.raises(LimitError):
            await d.warm.take(values)
        assert len((await d.machines.list(TENANT)).items) == 1


async def test_nobody_has_no_quota_and_is_not_counted(tmp_path: Path) -> None:
    async with daemon(tmp_path, warm_machines=2) as d:
        await d.quota(TENANT, machines=1)
        await d.machines.create(TENANT, small())
        await until(lambda: d.warm.count == 2)
        assert await d.store.read(lambda c: tenants.quotas(c, NOBODY)) == {}
        used = await d.store.read(lambda c: tenants.used(c, TENANT, {"running"}))
        assert used["machines"] == 1


async def test_forks_are_machines_and_so_many_a_minute(tmp_path: Path) -> None:
    clock = FakeClock()
    driver = FakeDriver(memory_snapshot=False)
    async with daemon(tmp_path, clock=clock, driver=driver) as d:
        parent = await d.machines.create(TENANT, small())
        await d.quota(TENANT, machines=3)
        with pytest.raises(LimitError) as caught:
            await d.machines.fork(TENANT, parent.id, ForkMachine(count=3))
        refused(caught, "machines", limit=3, used=1, asked=3)
        assert driver.calls["capture"] == 0  # it was not stopped for nothing
        await d.quota(TENANT, forks_per_minute=3)
        assert len(await d.machines.fork(TENANT, parent.id, ForkMachine(count=2))) == 2
        with pytest.raises(LimitError) as caught:
            await d.machines.fork(TENANT, parent.id, ForkMachine(count=2))
        refused(caught, "forks_per_minute", limit=3, used=2, asked=2)
        assert caught.value.retryable
        assert 0 < caught.value.details["retry_after_s"] <= 60
        await d.machines.fork(TENANT, parent.id, ForkMachine(count=1))
        with pytest.raises(LimitError) as caught:
            await d.machines.fork(TENANT, parent.id, ForkMachine(count=4))
        assert not caught.value.retryable  # never


async def test_snapshots_are_storage(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        m = await d.machines.create(TENANT, small(storage_gib=10))
        await d.quota(TENANT, storage_gib=25)
        await d.snapshots.create(TENANT, m.id)
        with pytest.raises(LimitError) as caught:
            await d.snapshots.create(TENANT, m.id)
        refused(caught, "storage_gib", limit=25, used=20, asked=10)
        assert len((await d.snapshots.list(TENANT)).items) == 1
        assert (await d.machines.get(TENANT, m.id)).phase == "running"


async def test_a_tenant_that_is_gone_makes_nothing(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        await d.store.write(lambda c: tenants.delete(c, OTHER))
        with pytest.raises(AuthError):
            await d.machines.create(OTHER, small())


def test_a_bucket() -> None:
    bucket = Bucket(10, 3, now=100.0)
    assert [bucket.take(100.0) for _ in range(3)] == [0, 0, 0]
    assert bucket.take(100.0) == pytest.approx(0.1)
    assert bucket.take(100.09) == pytest.approx(0.01)
    assert bucket.take(100.11) == 0
    assert bucket.take(99.0) > 0  # a clock that goes back gives nothing
    assert [bucket.take(1000.0) == 0 for _ in range(5)] == [True, True, True, False, False]


def test_a_window() -> None:
    now = 0.0
    windows = Windows(lambda: now)
    for at in (0.0, 20.0, 40.0):
        now = at
        windows.take("t", "forks_per_minute", 3, 1)
    with pytest.raises(LimitError) as caught:
        windows.take("t", "forks_per_minute", 3, 2)
    assert caught.value.details["retry_after_s"] == pytest.approx(40.0)
    windows.take("other", "forks_per_minute", 3, 3)
    now = 60.0
    windows.take("t", "forks_per_minute", 3, 1)
    with pytest.raises(LimitError):
        windows.take("t", "forks_per_minute", 3, 1)
