from __future__ import annotations

import asyncio
import string
from pathlib import Path

import pytest

from roost import ids
from roost.drivers.interface import Exit
from roost.errors import (
    CapacityError,
    ConflictError,
    InvalidRequestError,
    LimitError,
    MachineError,
    NotFoundError,
    RoostError,
)
from roost.services import limits
from roost.services.models import CreateMachine, PatchMachine
from tests.unit.engine.kit import OTHER, TENANT, daemon, small, until


async def test_create_sleep_wake_destroy(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        m = await d.machines.create(TENANT, CreateMachine(env={"A": "1"}, labels={"x.y": "z"}))
        assert (m.phase, m.desired_state, m.generation) == ("running", "running", 1)
        assert m.isolation["claim"] == "sandboxed by nothing (fake)"
        assert d.host.driver.machines[m.id].spec.env == {"FROM": "base", "A": "1"}
        assert d.agents.calls["renew_identity"] == 1
        slept = await d.machines.sleep(TENANT, m.id)
        assert (slept.phase, slept.desired_state) == ("sleeping", "sleeping")
        assert d.host.storage.disks == {m.id}
        assert not d.host.driver.machines
        assert not d.host.network.slots
        assert d.agents.calls["shutdown"] == 1
        assert (await d.machines.sleep(TENANT, m.id)).revision == slept.revision
        woken = await d.machines.wake(TENANT, m.id)
        assert (woken.phase, woken.generation) == ("running", 2)
        assert woken.revision > slept.revision > m.revision
        assert d.agents.calls["renew_identity"] == 1
        gone = await d.machines.delete(TENANT, m.id)
        assert (gone.phase, gone.desired_state, gone.key) == ("destroyed", "destroyed", None)
        assert (await d.machines.delete(TENANT, m.id)).phase == "destroyed"
        assert not d.host.leaks(await d.all())
        events = [e.event for e in await d.machines.events(TENANT, m.id)]
        assert events == [
            "accepted", "starting", "running", "stopping", "sleeping",
            "waking", "running", "destroying", "destroyed",
        ]  # fmt: skip
        assert not await d.open_operations()


@pytest.mark.parametrize("tier", [None, "frozen", "hibernated", "stopped"])
async def test_reboot(tmp_path: Path, tier: str | None) -> None:
    """Whatever it did or slept with: it runs from its disk, and no memory is gone on with."""
    async with daemon(tmp_path, memory=True) as d:
        m = await d.machines.create(TENANT, CreateMachine())
        if tier is not None:
            await d.machines.sleep(TENANT, m.id, tier)
        rebooted = await d.machines.reboot(TENANT, m.id)
        assert (rebooted.phase, rebooted.desired_state) == ("running", "running")
        assert rebooted.generation > m.generation and rebooted.memory_image is None
        assert d.agents.calls["shutdown"] == 1


async def test_create_without_waiting(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        m = await d.machines.create(TENANT, small(), wait=False)
        assert m.phase in ("accepted", "placement_pending")
        live = await d.machines.awake(TENANT, m.id)
        assert live.machine.phase == "running"
        assert live.config == {"env": {"FROM": "base"}}


async def test_a_foreign_machine_is_a_missing_one(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        m = await d.machines.create(TENANT, small(key="k"))
        calls = [
            lambda i: d.machines.get(OTHER, i),
            lambda i: d.machines.patch(OTHER, i, PatchMachine(name="x")),
            lambda i: d.machines.delete(OTHER, i),
            lambda i: d.machines.sleep(OTHER, i),
            lambda i: d.machines.wake(OTHER, i),
            lambda i: d.machines.usage(OTHER, i),
            lambda i: d.machines.events(OTHER, i),
            lambda i: d.machines.awake(OTHER, i),
        ]
        for call in calls:
            heard = []
            for machine_id in (m.id, "a" * 26):
                with pytest.raises(NotFoundError) as caught:
                    await call(machine_id)
                heard.append(caught.value.to_wire() | {"message": caught.value.message[:20]})
            assert heard[0] == heard[1]
            assert heard[0]["error_code"] == "MACHINE_NOT_FOUND"
        assert (await d.machines.list(OTHER)).items == []
        assert (await d.machines.get(TENANT, m.id)).phase == "running"


async def test_fifty_ensures_make_one_machine(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        answers = await asyncio.gather(
            *(d.machines.ensure(TENANT, "user-1", small()) for _ in range(50))
        )
        assert len({m.id for m, _ in answers}) == 1
        assert [created for _, created in answers].count(True) == 1
        assert all(m.phase == "running" for m, _ in answers)
        assert d.host.driver.calls["start"] == 1
        await d.machines.sleep(TENANT, answers[0][0].id)
        again = await asyncio.gather(
            *(d.machines.ensure(TENANT, "user-1", small()) for _ in range(50))
        )
        assert {(m.id, m.phase, made) for m, made in again} == {
            (answers[0][0].id, "running", False)
        }
        assert d.host.driver.calls["start"] == 2


async def test_ensure_and_create_race_for_a_key(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        results = await asyncio.gather(
            d.machines.create(TENANT, small(key="k")),
            d.machines.ensure(TENANT, "k", small()),
            d.machines.create(TENANT, small(key="k")),
            return_exceptions=True,
        )
        assert len(d.host.driver.machines) == 1
        refused = [r for r in results if isinstance(r, ConflictError)]
        assert refused
        assert all(r.code == "ALREADY_EXISTS" and r.details["machine_id"] for r in refused)


async def test_ensure_after_delete_and_failure(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        d.host.driver.fail("start", MachineError("no", code="MACHINE_FAILED"))
        with pytest.raises(MachineError):
            await d.machines.ensure(TENANT, "k", small())
        (failed,) = (await d.machines.list(TENANT)).items
        assert (failed.phase, failed.retryable, failed.disk_ready) == ("failed", True, False)
        m, made = await d.machines.ensure(TENANT, "k", small())
        assert (m.id, made, m.phase) == (failed.id, False, "running")
        assert d.agents.calls["renew_identity"] == 1
        other, _ = await asyncio.gather(
            d.machines.ensure(TENANT, "k", small()), d.machines.delete(TENANT, m.id, wait=False)
        )
        again, made = await d.machines.ensure(TENANT, "k", small())
        assert again.phase == "running"
        assert again.id != m.id
        assert (made and other[0].id == m.id) or other[0].id == again.id
        assert not d.host.leaks(await d.all())


async def test_fifty_calls_wake_a_machine_once(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        m = await d.machines.create(TENANT, small())
        await d.machines.sleep(TENANT, m.id)
        lives = await asyncio.gather(*(d.machines.awake(TENANT, m.id) for _ in range(50)))
        assert d.host.driver.calls["start"] == 2
        assert {live.machine.generation for live in lives} == {2}


async def test_delete_during_create(tmp_path: Path) -> None:
    for at in ("clone", "take", "start", "wait_ready"):
        directory = tmp_path / at
        directory.mkdir()
        async with daemon(directory) as d:
            part = {
                "clone": d.host.storage,
                "take": d.host.network,
                "start": d.host.driver,
                "wait_ready": d.agents,
            }[at]
            gate = part.hang(at)
            creating = asyncio.ensure_future(d.machines.create(TENANT, small(key="k")))
            await until(lambda p=part, a=at: p.calls[a])
            (m,) = (await d.machines.list(TENANT)).items
            deleting = asyncio.ensure_future(d.machines.delete(TENANT, m.id))
            await until(lambda d=d, m=m: _phase(d, m.id, "destroying"))
            if at != "wait_ready":  # that one is cut short
                gate.set()
            assert (await deleting).phase == "destroyed"
            with pytest.raises(ConflictError):
                await creating
            assert not d.host.leaks(await d.all())
            assert not await d.open_operations()
            if not gate.is_set():
                gate.set()
            assert (await d.machines.ensure(TENANT, "k", small()))[1] is True


async def _phase(d, machine_id: str, phase: str) -> bool:
    return (await d.machines.get(TENANT, machine_id)).phase == phase


async def test_delete_during_sleep_and_wake(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        m = await d.machines.create(TENANT, small())
        results = await asyncio.gather(
            d.machines.sleep(TENANT, m.id),
            d.machines.wake(TENANT, m.id),
            d.machines.delete(TENANT, m.id),
            return_exceptions=True,
        )
        assert results[2].phase == "destroyed"
        assert all(not isinstance(r, Exception) or isinstance(r, RoostError) for r in results)
        assert not d.host.leaks(await d.all())


async def test_a_crash_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        m = await d.machines.create(TENANT, small())
        d.host.driver.die(m.id, Exit("oom", 137))
        await until(lambda: _phase(d, m.id, "failed"))
        m = await d.machines.get(TENANT, m.id)
        assert (m.reason, m.retryable) == ("oom", True)
        with pytest.raises(MachineError) as caught:
            await d.machines.awake(TENANT, m.id)
        assert caught.value.code == "MACHINE_FAILED"
        assert d.host.storage.disks == {m.id}
        assert not d.host.leaks(await d.all())
        with pytest.raises(ConflictError):
            await d.machines.sleep(TENANT, m.id)
        assert (await d.machines.wake(TENANT, m.id)).phase == "running"
        d.host.driver.die(m.id)
        await until(lambda: _phase(d, m.id, "failed"))
        assert (await d.machines.get(TENANT, m.id)).reason == "crashed"


async def test_a_lost_agent_does_not_keep_a_machine_from_sleeping(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        m = await d.machines.create(TENANT, small())
        d.agents.fail("shutdown", MachineError("gone"))
        assert (await d.machines.sleep(TENANT, m.id)).phase == "sleeping"
        assert not d.host.leaks(await d.all())


async def test_failed_starts(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        cases = [
            (d.host.storage, "clone", CapacityError("full", code="STORAGE_FULL"), "STORAGE_FULL"),
            (d.host.network, "take", CapacityError("no slot"), "CAPACITY_EXCEEDED"),
            (d.host.driver, "start", MachineError("x", code="MACHINE_FAILED"), "MACHINE_FAILED"),
            (d.agents, "wait_ready", MachineError("x", code="TIMEOUT"), "TIMEOUT"),
            (d.agents, "reseed", OSError("boom"), "MACHINE_FAILED"),
        ]
        for part, method, error, code in cases:
            part.fail(method, error)
            with pytest.raises(RoostError) as caught:
                await d.machines.create(TENANT, small())
            assert caught.value.code == code
            m = await d.machines.get(TENANT, caught.value.details["machine_id"])
            assert (m.phase, m.retryable) == ("failed", True)
            assert m.last_error["error_code"]
        assert not d.host.leaks(await d.all())
        m = await d.machines.create(TENANT, small())
        await d.machines.sleep(TENANT, m.id)
        for part, method, error, code in cases[1:]:
            part.fail(method, error)
            with pytest.raises(RoostError) as caught:
                await d.machines.wake(TENANT, m.id)
            assert caught.value.code == code
            phase = (await d.machines.get(TENANT, m.id)).phase
            assert phase == ("sleeping" if method == "take" else "failed")
            assert not d.host.leaks(await d.all())
        assert (await d.machines.wake(TENANT, m.id)).phase == "running"


async def test_what_a_machine_keeps_of_a_failure_tells_not_how_full_the_host_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with daemon(tmp_path) as d:

        def full() -> CapacityError:
            return CapacityError(
                "4711 of 4712 MiB", code="STORAGE_FULL", details={"machines": 4713}
            )

        async def read(machine_id: str) -> str:
            m = await d.machines.get(TENANT, machine_id)
            events = await d.machines.events(TENANT, machine_id)
            return f"{m.last_error} {m.reason} {[e.message for e in events]}"

        d.host.storage.fail("clone", full())
        with pytest.raises(CapacityError) as caught:
            await d.machines.create(TENANT, small())
        assert "4711" in caught.value.message  # what leaves the daemon is the gateway's
        kept = await read(caught.value.details["machine_id"])
        assert "STORAGE_FULL" in kept and "471" not in kept
        assert "4711 of 4712" in caplog.text and "4713" in caplog.text
        m = await d.machines.create(TENANT, small())
        await d.machines.sleep(TENANT, m.id)
        d.host.network.fail("take", full())
        with pytest.raises(CapacityError):
            await d.machines.wake(TENANT, m.id)
        kept = await read(m.id)
        assert "STORAGE_FULL" in kept and "471" not in kept
        await d.machines.wake(TENANT, m.id)
        d.host.network.fail("release", *(full() for _ in range(5)))
        with pytest.raises(RoostError):
            await d.machines.sleep(TENANT, m.id)
        now = await d.machines.get(TENANT, m.id)
        assert now.phase == "failed" and str(now.reason).startswith("stuck")
        kept = await read(m.id)
        assert "STORAGE_FULL" in kept and "471" not in kept


async def test_quota_and_capacity(tmp_path: Path) -> None:
    async with daemon(tmp_path, memory_overcommit=1.0) as d:
        await d.quota(TENANT, machines=3)
        first = [await d.machines.create(TENANT, small()) for _ in range(3)]
        with pytest.raises(LimitError) as caught:
            await d.machines.create(TENANT, small())
        assert caught.value.code == "QUOTA_EXCEEDED"
        await d.machines.create(OTHER, small())
        await d.machines.delete(TENANT, first[0].id)
        with pytest.raises(InvalidRequestError):
            await d.machines.create(TENANT, small(memory_mib=1_000_001))
        with pytest.raises(CapacityError) as full:
            await d.machines.create(TENANT, small(memory_mib=999_999))
        assert full.value.retryable
        assert full.value.details["memory_mib"] == {
            "asked": 999_999,
            "held": 192,
            "limit": 1_000_000,
        }
        await d.machines.create(TENANT, small())
        await d.machines.sleep(TENANT, first[1].id)


async def test_capacity_is_not_sold_twice(tmp_path: Path) -> None:
    async with daemon(tmp_path, memory_overcommit=1.0) as d:
        d.host.size = type(d.host.size)(4.0, 640, None)
        results = await asyncio.gather(
            *(d.machines.create(TENANT, small(memory_mib=128)) for _ in range(20)),
            return_exceptions=True,
        )
        made = [r for r in results if not isinstance(r, Exception)]
        assert len(made) == 5
        assert all(r.code == "CAPACITY_EXCEEDED" for r in results if isinstance(r, RoostError))
        await d.machines.sleep(TENANT, made[0].id)
        await d.machines.create(TENANT, small(memory_mib=128))
        with pytest.raises(CapacityError):
            await d.machines.wake(TENANT, made[0].id)
        assert (await d.machines.get(TENANT, made[0].id)).phase == "sleeping"


async def test_if_match(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        m = await d.machines.create(TENANT, small())
        patched = await d.machines.patch(TENANT, m.id, PatchMachine(name="new"), m.revision)
        assert (patched.name, patched.revision) == ("new", m.revision + 1)
        with pytest.raises(ConflictError) as caught:
            await d.machines.patch(TENANT, m.id, PatchMachine(name="old"), m.revision)
        assert caught.value.code == "REVISION_MISMATCH"
        with pytest.raises(ConflictError) as caught:
            await d.machines.delete(TENANT, m.id, if_match=m.revision)
        assert caught.value.code == "REVISION_MISMATCH"
        assert (await d.machines.awake(TENANT, m.id)).machine.name == "new"
        await d.machines.delete(TENANT, m.id, if_match=patched.revision)


async def test_patch(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        m = await d.machines.create(TENANT, small(labels={"a": "1"}, ttl_seconds=60))
        m = await d.machines.patch(
            TENANT,
            m.id,
            PatchMachine(
                labels={"b": "2"}, autosleep_seconds=None, ttl_seconds=None, memory_mib=128
            ),
        )
        assert (m.labels, m.autosleep_seconds, m.expires_at) == ({"b": "2"}, None, None)
        assert d.host.driver.machines[m.id].size.memory_mib == 128
        with pytest.raises(InvalidRequestError):
            await d.machines.patch(TENANT, m.id, PatchMachine(storage_gib=1))
        with pytest.raises(InvalidRequestError):
            await d.machines.patch(TENANT, m.id, PatchMachine(memory_mib=2_000_000))
        d.host.driver.fail("resize", OSError("no"))
        with pytest.raises(OSError):
            await d.machines.patch(TENANT, m.id, PatchMachine(memory_mib=256))
        assert (await d.machines.get(TENANT, m.id)).memory_mib == 128


async def test_list_pages_filters_and_cursors(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        made = [
            await d.machines.create(TENANT, small(key=f"k{n}", labels={"app.io@x": str(n % 2)}))
            for n in range(7)
        ]
        seen: list[str] = []
        cursor = None
        while True:
            page = await d.machines.list(TENANT, limit=3, cursor=cursor)
            seen += [m.id for m in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert seen == [m.id for m in reversed(made)]
        odd = await d.machines.list(TENANT, labels={"app.io@x": "1"})
        assert {m.key for m in odd.items} == {"k1", "k3", "k5"}
        assert [m.id for m in (await d.machines.list(TENANT, key="k4")).items] == [made[4].id]
        await d.machines.delete(TENANT, made[0].id)
        assert len((await d.machines.list(TENANT)).items) == 6
        gone = await d.machines.list(TENANT, phase="destroyed")
        assert [m.id for m in gone.items] == [made[0].id]
        good = (await d.machines.list(TENANT, limit=1)).next_cursor
        assert good is not None
        letters = string.ascii_letters + string.digits + "-_"
        flipped = [good[:-1] + last for last in letters if last != good[-1]]
        for bad in (*flipped, "", "!!", good + "x", "é", "A" * 600, good[:20]):
            with pytest.raises(InvalidRequestError) as caught:
                await d.machines.list(TENANT, limit=1, cursor=bad)
            assert caught.value.code == "INVALID_CURSOR"
        for other in ({"phase": "running"}, {"labels": {"a": "b"}}):
            with pytest.raises(InvalidRequestError):
                await d.machines.list(TENANT, cursor=good, **other)
        with pytest.raises(InvalidRequestError):
            await d.machines.list(OTHER, cursor=good)


async def test_usage(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        m = await d.machines.create(TENANT, small())
        usage = await d.machines.usage(TENANT, m.id)
        assert (usage.memory_limit_bytes, usage.disk_used_bytes) == (64 << 20, 10)
        d.agents.fail("stats", MachineError("silent"))
        assert (await d.machines.usage(TENANT, m.id)).disk_used_bytes is None
        await d.machines.sleep(TENANT, m.id)
        with pytest.raises(ConflictError):
            await d.machines.usage(TENANT, m.id)


async def test_unbuilt_template_says_what_builds_it(tmp_path: Path) -> None:
    async with daemon(tmp_path, build=False) as d:
        with pytest.raises(ConflictError) as caught:
            await d.machines.create(TENANT, small())
        assert "roost template build base" in caught.value.message
        with pytest.raises(NotFoundError) as missing:
            await d.machines.create(TENANT, small(template="nope"))
        assert missing.value.code == "TEMPLATE_NOT_FOUND"
        assert await d.all() == []


BAD = [
    {"vcpu": 0.0}, {"vcpu": float("nan")}, {"vcpu": 65}, {"memory_mib": 63}, {"storage_gib": 0},
    {"key": "../x"}, {"key": "-rf"}, {"key": "a" * 129}, {"key": "a\n"}, {"name": "A"}, {"name": "a-"},
    {"env": {"1A": "x"}}, {"env": {"A": "\0"}}, {"env": {"A": "x" * 131_072}}, {"labels": {"a": "x" * 2049}}, {"labels": {"a=b": "x"}},
    {"env": {"A": "\ud800"}}, {"isolation": "none"}, {"driver": "runc,x"}, {"isolation": "microvm"},
    {"autosleep_seconds": 0}, {"ttl_seconds": -1}, {"template": "../base"}, {"vcpu": True},
]  # fmt: skip


async def test_bad_requests_make_nothing(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        for bad in BAD:
            with pytest.raises(InvalidRequestError):
                await d.machines.create(TENANT, small(**bad))
        assert await d.all() == []


async def test_awake_is_fast(tmp_path: Path) -> None:
    import time

    async with daemon(tmp_path) as d:
        m = await d.machines.create(TENANT, small())
        start = time.process_time()
        for _ in range(1000):
            await d.machines.awake(TENANT, m.id)
        assert (time.process_time() - start) / 1000 < 200e-6


async def test_no_name_or_key_of_an_ids_form_is_given(tmp_path: Path) -> None:
    """It would stand for another tenant's machine wherever either may be said."""
    async with daemon(tmp_path) as d:
        machine = await d.machines.create(TENANT, small(key="k", name="n"))
        form = ids.new()
        for refused in (
            d.machines.create(TENANT, small(key=form)),
            d.machines.create(TENANT, small(name=form)),
            d.machines.ensure(TENANT, form, small()),
            d.machines.patch(TENANT, machine.id, PatchMachine(name=form)),
        ):
            with pytest.raises(InvalidRequestError, match="form of an id"):
                await refused
        for near in (form[:-1], form + "2", form[:-1] + "-x"):
            limits.check_create(small(key=near, name=near))
