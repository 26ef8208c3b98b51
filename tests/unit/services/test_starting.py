"""What a template starts: when its machines boot, and not when they go on; who hears of it, and when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from roost.drivers.fake import FakeDriver
from roost.drivers.interface import Usage
from roost.errors import InvalidRequestError, MachineError, RoostError
from roost.services import bakes, starting, warm
from roost.services.models import CreateMachine, ForkMachine
from roost.services.starting import Ready, Startup
from tests.unit.engine.kit import TENANT, Daemon, daemon, small, until

CONFIG = {"start": "serve", "env": {"FROM": "base"}}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bakes, "SETTLE_LOOK_S", 0.01)


async def template(d: Daemon, **config: Any) -> None:
    d.host.recipes.digest += "+"
    d.host.recipes.recipe = lambda name: SimpleNamespace(  # type: ignore[method-assign]
        name=name, digest=d.host.recipes.digest, config={**CONFIG, **config}, dockerfile=None
    )
    await d.templates.build("base")


@pytest.fixture
async def d(tmp_path: Path) -> AsyncIterator[Daemon]:
    """A rung that boots machines and keeps no memory."""
    async with daemon(tmp_path) as running:
        yield running


@pytest.fixture
async def keeps(tmp_path: Path) -> AsyncIterator[Daemon]:
    """One that boots machines and keeps memory."""
    async with daemon(tmp_path, driver=FakeDriver(memory_snapshot=True)) as running:
        yield running


async def events(d: Daemon, machine_id: str) -> list[str]:
    return [e.event for e in await d.machines.events(TENANT, machine_id)]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, None),
        ({"start": ""}, None),
        ({"start": 3}, None),
        ({"start": ["a", 1]}, None),
        ({"start": "a b"}, Startup("a b")),
        ({"start": ["a", "b"], "ready": {}}, Startup(["a", "b"])),
        ({"start": "a", "ready": {"port": 80}}, Startup("a", Ready(port=80))),
        ({"start": "a", "ready": {"port": True}}, Startup("a")),
        ({"start": "a", "ready": {"port": 70000}}, Startup("a")),
        (
            {"start": "a", "ready": {"command": ["t"], "timeout_s": 5, "interval_s": 0}},
            Startup("a", Ready(command=["t"], timeout_s=5.0, interval_s=0.05)),
        ),
        (
            {"start": "a", "ready": {"url": "http://localhost:1/", "timeout_s": 10**9}},
            Startup("a", Ready(url="http://localhost:1/", timeout_s=starting.LONGEST_S)),
        ),
    ],
)
def test_what_a_template_says(config: dict[str, Any], said: Startup | None) -> None:
    assert starting.of(config) == said


async def test_it_runs_at_each_boot_as_the_template_says(d: Daemon) -> None:
    await template(d, user="user", workdir="/workspace")
    m = await d.machines.create(TENANT, small(env={"A": "1"}))
    (request,) = d.agents.starts[m.id]
    assert (request.shell, request.user, request.cwd) == ("serve", "user", "/workspace")
    assert {e.name: e.value for e in request.env} == {"FROM": "base", "A": "1"}
    assert request.execution_id.startswith("start")
    assert (await events(d, m.id))[-1] == "ready"
    await d.machines.sleep(TENANT, m.id, "stopped")
    await d.machines.wake(TENANT, m.id)
    first, second = d.agents.starts[m.id]
    assert first.execution_id != second.execution_id
    # Not where it goes on with its memory.
    await d.machines.sleep(TENANT, m.id, "frozen")
    await d.machines.wake(TENANT, m.id)
    assert len(d.agents.starts[m.id]) == 2


async def test_nothing_is_started_where_nothing_is_said(d: Daemon) -> None:
    m = await d.machines.create(TENANT, small())
    assert not d.agents.starts and "ready" not in await events(d, m.id)


async def test_it_goes_on_in_children_with_memory(keeps: Daemon) -> None:
    await template(keeps)
    m = await keeps.machines.create(TENANT, small(env={"A": "1"}))
    (child,) = await keeps.machines.fork(TENANT, m.id, ForkMachine())
    await keeps.machines.sleep(TENANT, m.id)
    await keeps.machines.wake(TENANT, m.id)
    assert set(keeps.agents.starts) == {m.id} and child.id not in keeps.agents.starts
    assert len(keeps.agents.starts[m.id]) == 1


async def test_it_runs_in_children_of_a_disk(d: Daemon) -> None:
    await template(d)
    m = await d.machines.create(TENANT, small())
    (child,) = await d.machines.fork(TENANT, m.id, ForkMachine())
    assert set(d.agents.starts) == {m.id, child.id}


@pytest.mark.parametrize("how", ["command", "port", "url"])
async def test_create_answers_once_it_is_ready(d: Daemon, how: str) -> None:
    ready = {
        "command": {"command": "look"},
        "port": {"port": 80},
        "url": {"url": "http://localhost:81/health?a=b"},
    }[how]
    await template(d, ready={**ready, "interval_s": 0.05})
    d.agents.exit_codes = [1] * 10_000
    making = asyncio.ensure_future(d.machines.create(TENANT, small()))
    await until(lambda: d.agents.starts)
    (machine_id,) = d.agents.starts
    await asyncio.sleep(0.15)
    assert not making.done()
    # It runs, and whoever knows it can look into it meanwhile.
    live = await d.machines.awake(TENANT, machine_id)
    assert live.machine.phase == "running"
    d.agents.exit_codes = []
    d.agents.listens = {80: b"", 81: b"HTTP/1.1 204 No Content\r\n\r\n"}
    made = await making
    assert made.id == machine_id
    if how == "command":
        assert d.agents.ran[-1][1] != ["/bin/sh", "-c"], "as a shell's string, which the agent runs"
    if how == "url":
        assert d.agents.asked[-1].startswith(b"GET /health?a=b HTTP/1.1\r\nHost: localhost:81\r\n")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 503 Not yet\r\n", b"", b"SSH-2.0\r\n", b"x" * 9000])
async def test_a_server_that_is_not_well_is_not_ready(d: Daemon, answer: bytes) -> None:
    await template(d, ready={"url": "http://127.0.0.1:81/", "timeout_s": 1})
    d.agents.listens = {81: answer}
    with pytest.raises(MachineError) as caught:
        await d.machines.create(TENANT, small())
    assert caught.value.code == "TEMPLATE_NOT_READY"


@pytest.mark.parametrize(
    "url", ["http://192.0.2.1/", "https://localhost/", "http://localhost/\r\nX:"]
)
async def test_another_hosts_url_is_none(d: Daemon, url: str) -> None:
    await template(d, ready={"url": url, "timeout_s": 30})
    with pytest.raises(MachineError, match=r"ready\.url"):
        await d.machines.create(TENANT, small())
    assert not d.agents.asked


async def test_what_is_not_ready_in_time_is_told_and_runs(d: Daemon) -> None:
    await template(d, ready={"port": 80, "timeout_s": 1})
    with pytest.raises(MachineError) as caught:
        await d.machines.create(TENANT, small(key="k"))
    error = caught.value
    assert (error.code, error.retryable) == ("TEMPLATE_NOT_READY", False)
    assert error.details["output"].splitlines() == ["one", "two", "what it complains of"]
    assert "within 1 s" in error.message and "what it complains of" in error.message
    m = await d.machines.get(TENANT, error.details["machine_id"])
    assert (m.phase, (await events(d, m.id))[-1]) == ("running", "not_ready")
    assert not await d.open_operations()
    # Its owner can mend it; whoever wakes it by a call is not kept from that.
    assert (await d.machines.ensure(TENANT, "k", small()))[0].id == m.id
    await d.machines.sleep(TENANT, m.id, "stopped")
    assert (await d.machines.awake(TENANT, m.id)).machine.phase == "running"
    await d.machines.sleep(TENANT, m.id, "stopped")
    with pytest.raises(MachineError, match="not ready"):
        await d.machines.wake(TENANT, m.id)


async def test_a_start_that_fails_is_told_at_once(d: Daemon) -> None:
    await template(d, ready={"port": 80, "timeout_s": 600})
    making = asyncio.ensure_future(d.machines.create(TENANT, small()))
    await until(lambda: d.agents.ends)
    (future,) = d.agents.ends.values()
    future.set_result(3)
    with pytest.raises(MachineError, match="it ended with 3"):
        await making


async def test_one_that_goes_to_the_background_may_become_ready(d: Daemon) -> None:
    await template(d, ready={"port": 80, "interval_s": 0.05})
    making = asyncio.ensure_future(d.machines.create(TENANT, small()))
    await until(lambda: d.agents.ends)
    (future,) = d.agents.ends.values()
    future.set_result(0)
    await asyncio.sleep(0.1)
    d.agents.listens = {80: b""}
    assert (await making).phase == "running"


async def test_one_that_cannot_be_started_is_told(d: Daemon) -> None:
    await template(d, start=["nosuch"])
    d.agents.fail("start", InvalidRequestError("no nosuch", code="COMMAND_NOT_FOUND"))
    with pytest.raises(MachineError, match="no nosuch"):
        await d.machines.create(TENANT, small())


async def test_a_delete_does_not_wait_for_it(d: Daemon) -> None:
    await template(d, ready={"port": 80, "timeout_s": 600})
    making = asyncio.ensure_future(d.machines.create(TENANT, small()))
    await until(lambda: d.agents.starts)
    (machine_id,) = d.agents.starts
    assert (await d.machines.delete(TENANT, machine_id)).phase == "destroyed"
    await making  # it ran when it was told to go


async def test_the_template_says_how_large_its_machines_are(d: Daemon) -> None:
    await template(d, size={"vcpu": 2, "memory_mib": 2048})
    m = await d.machines.create(TENANT, CreateMachine())
    assert (m.vcpu, m.memory_mib, m.storage_gib) == (2.0, 2048, 10)
    m = await d.machines.create(TENANT, CreateMachine(vcpu=0.5, memory_mib=512, storage_gib=5))
    assert (m.vcpu, m.memory_mib, m.storage_gib) == (0.5, 512, 5)
    await template(d, size={"vcpu": "many"})
    with pytest.raises(InvalidRequestError, match="vcpu"):
        await d.machines.create(TENANT, CreateMachine())


# --- bakes -----------------------------------------------------------------------------------------


async def test_what_is_started_is_baked_where_memory_is_kept(keeps: Daemon) -> None:
    d, driver = keeps, keeps.host.driver
    await template(d, ready={"port": 80}, warmup=["warm"])
    d.agents.listens = {80: b""}
    first = await d.machines.create(TENANT, small())
    second = await d.machines.create(TENANT, small(memory_mib=200, storage_gib=9))
    assert (driver.calls["start"], driver.calls["capture"], driver.calls["restore"]) == (1, 1, 2)
    (baked,) = d.agents.starts
    assert baked not in (first.id, second.id)
    assert [argv[-1] for _, argv in d.agents.ran] == ["warm"], "once it is ready"
    # What is in a bake knows its size.
    assert (second.memory_mib, second.storage_gib) == (256, 10)
    assert (await events(d, first.id))[-1] == "running"


async def test_it_is_captured_once_it_has_nothing_left_to_do(
    keeps: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each machine made from it would go on with that."""
    driver = keeps.host.driver
    used = [0, 10**7, 2 * 10**7, 3 * 10**7, 3 * 10**7]
    monkeypatch.setattr(driver, "usage", lambda handle: usage())

    async def usage() -> Usage:
        return Usage(used.pop(0), 0, None, 1)

    await template(keeps)
    await keeps.machines.create(TENANT, small())
    assert not used and driver.calls["capture"] == 1
    # Not for ever.
    monkeypatch.setattr(bakes, "SETTLE_S", 0.1)
    used.extend(n * 10**7 for n in range(4, 1000))
    await template(keeps, start="another")
    await keeps.machines.create(TENANT, small())
    assert driver.calls["capture"] == 2


async def test_a_plain_template_boots_there_as_before(keeps: Daemon) -> None:
    m = await keeps.machines.create(TENANT, small(memory_mib=200))
    assert keeps.host.driver.calls["capture"] == 0 and m.memory_mib == 200


async def test_without_memory_it_boots(d: Daemon) -> None:
    await template(d)
    await d.machines.create(TENANT, small())
    assert d.host.driver.calls["capture"] == 0 and len(d.agents.starts) == 1


@pytest.mark.parametrize(
    ("bake", "env", "baked"),
    [
        (None, {}, True),
        (None, {"A": "1"}, False),  # what was started would not know it
        (["fake"], {"A": "1"}, True),  # the template says that it does not matter
        (["container"], {}, True),
        (["qemu"], {}, False),
        ([], {}, False),
    ],
)
async def test_the_template_says_where_it_is_baked(
    keeps: Daemon, bake: list[str] | None, env: dict[str, str], baked: bool
) -> None:
    await template(keeps, **({} if bake is None else {"bake": bake}))
    m = await keeps.machines.create(TENANT, small(env=env))
    assert (keeps.host.driver.calls["capture"] == 1) is baked
    assert (m.id in keeps.agents.starts) is not baked


async def test_where_machines_boot_well_enough_a_bake_that_fails_is_done_without(
    keeps: Daemon,
) -> None:
    d, driver = keeps, keeps.host.driver
    await template(d)
    driver.fail("capture", MachineError("an open file has no name", code="MACHINE_FAILED"))
    m = await d.machines.create(TENANT, small())
    assert driver.machines[m.id].restored_from is None and m.id in d.agents.starts
    await d.machines.create(TENANT, small())
    assert driver.calls["capture"] == 1, "not tried again at once"
    assert not d.host.leaks(await d.all())


async def test_who_does_not_wait_gets_one_that_goes_on_from_a_bake(keeps: Daemon) -> None:
    d = keeps
    await template(d)
    m = await d.machines.create(TENANT, small(), wait=False)
    assert (await d.engine.settled(m.id)).phase == "running"
    assert d.host.driver.machines[m.id].restored_from is not None


# --- warm machines ---------------------------------------------------------------------------------


async def test_warm_ones_are_ready_and_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "REFILL_AFTER_S", 0.0)
    async with daemon(tmp_path, warm_machines=1) as d:
        await template(d)
        heard: list[tuple[str, str, str | None]] = []
        d.starting.began.append(
            lambda running, known_as: heard.append(
                (running.machine.id, running.machine.tenant_id, known_as)
            )
        )
        await d.machines.create(TENANT, small())
        await until(lambda: d.warm.count == 1)
        ready = d.warm._shelves.copy().popitem()[1].ready[0]
        assert ready in d.agents.starts
        assert d.host.driver.machines[ready].frozen, "what was started is at work"
        heard.clear()
        # One with variables of its own is not as one that was made ahead.
        other = await d.machines.create(TENANT, small(env={"A": "1"}))
        assert other.id != ready
        made = await d.machines.create(TENANT, small())
        assert made.id == ready and not d.host.driver.machines[ready].frozen
        assert len(d.agents.starts[ready]) == 1
        assert (made.id, TENANT, None) in heard


async def test_an_agent_that_is_lost_meanwhile_is_told(d: Daemon) -> None:
    await template(d, ready={"command": "look"})
    d.agents.fail("run", MachineError("gone", code="AGENT_LOST"))
    with pytest.raises(RoostError, match="gone"):
        await d.machines.create(TENANT, small())
