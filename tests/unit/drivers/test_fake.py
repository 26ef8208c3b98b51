"""The fake keeps the contract its users test against."""

from __future__ import annotations

import asyncio

import pytest

from roost.drivers import create, names
from roost.drivers.fake import FakeDriver
from roost.drivers.interface import Exit, Root, Size, StartSpec
from roost.errors import InvalidRequestError, MachineError, UnsupportedError
from roost.settings import Settings

SPEC = StartSpec("m1", "box", Size(1, 256, 1), Root(), None, "t", "0" * 32)


async def test_a_second_driver_adopts_what_the_first_started() -> None:
    first = FakeDriver()
    handle = await first.start(SPEC)
    second = FakeDriver(machines=first.machines)
    assert await second.adopt(handle)
    second.die("m1", Exit("oom"))
    assert await first.wait(handle) == Exit("oom")
    assert not await second.adopt(handle)


async def test_removal_is_idempotent_and_ends_waiting() -> None:
    driver = FakeDriver()
    handle = await driver.start(SPEC)
    waiting = asyncio.create_task(driver.wait(handle))
    await asyncio.sleep(0)
    await driver.remove("m1")
    await driver.remove("m1")
    assert (await waiting).reason == "killed"
    assert await driver.list_ids() == set()


async def test_failures_are_raised_once_and_debris_is_found() -> None:
    driver = FakeDriver()
    driver.script.leave_debris = True
    driver.fail("start", MachineError("no"))
    with pytest.raises(MachineError):
        await driver.start(SPEC)
    assert await driver.list_ids() == {"m1"}
    await driver.start(SPEC)


async def test_hangs_wait_for_their_event() -> None:
    driver = FakeDriver()
    event = driver.hang("start")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await driver.start(SPEC)
    event.set()
    await driver.start(SPEC)


async def test_memory_only_where_it_says_so() -> None:
    driver = FakeDriver()
    handle = await driver.start(SPEC)
    with pytest.raises(UnsupportedError):
        await driver.hibernate(handle, None)  # type: ignore[arg-type]
    assert FakeDriver(memory_snapshot=True).capabilities().memory_snapshot


def test_the_registry_names_what_an_operator_may_choose() -> None:
    assert names() == ["qemu", "gvisor", "runc", "user", "systemd", "workspace"]
    with pytest.raises(InvalidRequestError) as caught:
        create("docker", Settings())
    assert caught.value.code == "CONFIG_INVALID"
