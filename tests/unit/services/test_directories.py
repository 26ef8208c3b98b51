"""Machines that are directories of the host: what they begin with, go through, and are refused."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from roost.drivers.fake import FakeDriver
from roost.drivers.interface import ForkKind, Isolation
from roost.egress.policy import Policy
from roost.errors import RoostError
from roost.network import HostNetwork
from roost.services.doors import Doors
from roost.services.files import Files, Write
from roost.services.listening import ListeningPorts
from roost.services.models import Attach, CreateMachine, ForkMachine
from tests.unit.engine.kit import OTHER, TENANT, Daemon, daemon, small


def bare() -> FakeDriver:
    return FakeDriver(
        isolation=Isolation.WORKSPACE,
        claim="isolated workspace (fake)",
        own_network=False,
        disk_image=False,
        fork=ForkKind.DISK,
        freeze=False,
        own_clock=False,
    )


@contextlib.asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Daemon]:
    async with daemon(directory, driver=bare(), build=False) as d:
        yield d


async def refused(work: Any) -> RoostError:
    with pytest.raises(RoostError) as found:
        await work
    return found.value


async def test_a_life_without_template_slot_or_image(tmp_path: Path) -> None:
    async with running(tmp_path) as d:
        m = await d.machines.create(TENANT, small(env={"A": "1"}))
        assert (m.template, m.image_digest, m.slot_index) == ("host", "", None)
        assert m.isolation["claim"] == "isolated workspace (fake)"
        spec = d.host.driver.machines[m.id].spec
        assert spec.root.directory == d.host.storage.home(m.id) and spec.root.image is None
        assert spec.slot is None and spec.env == {"A": "1"}
        assert d.host.storage.calls["make_home"] == 1
        (await d.machines.home(TENANT, m.id) or Path()).write_text("work")
        slept = await d.machines.sleep(TENANT, m.id)
        assert (slept.phase, slept.tier) == ("sleeping", "stopped")
        await d.machines.wake(TENANT, m.id)
        assert d.host.storage.home(m.id).read_text() == "work"
        (child,) = await d.machines.fork(TENANT, m.id, ForkMachine())
        assert d.host.storage.home(child.id).read_text() == "work"
        assert not d.host.driver.calls["capture"], "storage copies it"
        assert d.agents.calls["sync"] >= 1
        kept = await d.snapshots.create(TENANT, m.id, "kept")
        d.host.storage.home(m.id).write_text("more work")
        await d.snapshots.rollback(TENANT, m.id, kept.id)
        assert d.host.storage.home(m.id).read_text() == "work"
        again = await d.machines.create(TENANT, small(snapshot="kept"))
        assert (again.template, again.driver) == ("host", "fake")
        for each in (m, child, again):
            await d.machines.delete(TENANT, each.id)
        assert not d.host.leaks(await d.all())


async def test_it_outlives_the_daemon(tmp_path: Path) -> None:
    async with running(tmp_path) as d:
        m = await d.machines.create(TENANT, small(key="mine"))
        await d.kill()
        later = await Daemon.start(d.host, build=False)
        live = await later.machines.awake(TENANT, m.id)
        assert (live.machine.phase, live.machine.generation) == ("running", 1)
        assert not d.host.leaks(await later.all())
        await later.stop()


async def test_what_has_no_meaning_is_refused_and_makes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as d:
        for asked in (
            CreateMachine(template="python"),
            small(egress=Policy.read("off")),
            small(volumes=[Attach("v", "/v")]),
        ):
            failure = await refused(d.machines.create(TENANT, asked))
            assert failure.code == "UNSUPPORTED", failure
        assert not await d.all() and not d.host.storage.disks
        assert (await d.machines.create(TENANT, small(template="host"))).phase == "running"


async def test_ports_are_the_hosts_and_led_to_by_nobody(tmp_path: Path) -> None:
    async with running(tmp_path) as d:
        m = await d.machines.create(TENANT, small())
        doors, files = Doors(d.machines, d.machines.connection), Files(d.machines)
        for work in (
            doors.open(TENANT, m.id, 22),
            doors.loopback(TENANT, m.id, 22, "127.0.0.1"),
            ListeningPorts(files, d.machines).list(TENANT, m.id),
        ):
            failure = await refused(work)
            assert failure.code == "UNSUPPORTED" and "host's network" in failure.message


async def test_paths_are_relative_to_the_directory_for_who_may_see_it(tmp_path: Path) -> None:
    async with running(tmp_path) as d:
        m = await d.machines.create(TENANT, small())
        files, home = Files(d.machines), d.host.storage.home(m.id)

        async def data() -> AsyncIterator[bytes]:
            yield b"x"

        with contextlib.suppress(AttributeError, TypeError):  # the fake agent answers nothing
            await files.write(TENANT, m.id, Write(b"a/b"), data())
        assert d.agents.written == {f"{home}/a/b": b"x"}
        for path in (b"", b"a\0b", b"a" * 5000):
            assert (await refused(files.stat(TENANT, m.id, path))).code == "INVALID_PATH"
        assert (await refused(files.stat(OTHER, m.id, b"a"))).code == "MACHINE_NOT_FOUND"
    other = tmp_path / "other"
    other.mkdir()
    async with daemon(other) as d:
        m = await d.machines.create(TENANT, small())
        assert (await refused(Files(d.machines).stat(TENANT, m.id, b"a"))).code == "INVALID_PATH"


async def test_a_daemon_without_root_has_no_networks_to_give() -> None:
    network = HostNetwork()
    await network.open({})
    assert (await refused(network.take("m", Policy.read("open")))).code == "UNSUPPORTED"
    assert (await refused(network.connection("m"))).code == "NOT_FOUND"
    assert network.counts().used == 0 and not await network.egress(["m"])
