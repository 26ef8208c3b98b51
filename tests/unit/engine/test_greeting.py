"""What an agent is told before anybody's first command: by which token it knows the daemon, and who it is now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from roost.drivers.fake import FakeDriver
from roost.errors import ConflictError
from roost.services.models import CreateMachine, ForkMachine
from tests.unit.engine.kit import TENANT, Daemon, daemon, small


def microvm(**changes: Any) -> FakeDriver:
    return FakeDriver(memory_snapshot=True, raw_disk=True, first_token="known to all", **changes)


def told(d: Daemon, machine_id: str) -> list[Any]:
    """Its renewals since this was last asked."""
    found = [request for to, request in d.agents.renewals if to == machine_id]
    d.agents.renewals = [each for each in d.agents.renewals if each[0] != machine_id]
    return found


def has_its_own_token(d: Daemon, machine: Any) -> bool:
    running = d.host.driver.machines[machine.id]
    token = d.engine.identity.agent_token(machine.id, machine.generation)
    return running.token == running.used_token == d.agents.kept[machine.id].token == token


async def test_a_cold_boot_is_renewed_from_the_token_that_all_know(tmp_path: Path) -> None:
    async with daemon(tmp_path, driver=microvm()) as d:
        m = await d.machines.create(TENANT, small())
        (first,) = told(d, m.id)
        assert first.new_token == d.engine.identity.agent_token(m.id, 1)
        assert (first.hostname, first.renew_ssh_host_keys) == (m.hostname, True)
        assert len(first.machine_id) == 32
        assert has_its_own_token(d, m)
        assert (d.agents.calls["reseed"], d.agents.calls["set_clock"]) == (1, 1)
        assert d.agents.dialled == 1, "its connection outlives the renewal"

        await d.machines.sleep(TENANT, m.id, "stopped")
        woken = await d.machines.wake(TENANT, m.id)
        assert d.host.driver.machines[m.id].restored_from is None
        (again,) = told(d, m.id)
        # The kernel is a new one and knows no name; the disk has its identity, unless its last end came too early.
        assert (again.hostname, again.machine_id, again.renew_ssh_host_keys) == (
            m.hostname,
            first.machine_id,
            False,
        )
        assert again.new_token == d.engine.identity.agent_token(m.id, 2) != first.new_token
        assert has_its_own_token(d, woken)


async def test_one_that_was_told_by_its_disk_is_told_nothing(tmp_path: Path) -> None:
    async with daemon(tmp_path, driver=FakeDriver()) as d:
        m = await d.machines.create(TENANT, small())
        (first,) = told(d, m.id)
        assert (first.hostname, first.new_token) == (m.hostname, "")
        await d.machines.sleep(TENANT, m.id)
        woken = await d.machines.wake(TENANT, m.id)
        assert told(d, m.id) == []
        assert has_its_own_token(d, woken)


async def test_memory_that_goes_on_keeps_its_name_or_gets_another(tmp_path: Path) -> None:
    async with daemon(tmp_path, driver=microvm()) as d:
        m = await d.machines.create(TENANT, small())
        told(d, m.id)
        await d.machines.sleep(TENANT, m.id)
        woken = await d.machines.wake(TENANT, m.id)
        assert d.host.driver.machines[m.id].restored_from is not None
        (same,) = told(d, m.id)
        assert (same.hostname, same.machine_id, same.renew_ssh_host_keys) == ("", "", False)
        assert same.new_token and has_its_own_token(d, woken)

        (child,) = await d.machines.fork(TENANT, m.id, ForkMachine())
        (other,) = told(d, child.id)
        assert (other.hostname, other.renew_ssh_host_keys) == (child.hostname, True)
        assert len(other.machine_id) == 32 and has_its_own_token(d, child)
        assert d.agents.calls["reseed"] == 3


async def test_one_whose_memory_is_lost_is_a_cold_boot_again(tmp_path: Path) -> None:
    """It is greeted by the token that all know, not by that of the capture it did not go on from."""
    async with daemon(tmp_path, driver=microvm()) as d:
        m = await d.machines.create(TENANT, small())
        made = await d.snapshots.create(TENANT, m.id)
        d.host.driver.fail("restore", ConflictError("flipped", code="SNAPSHOT_INVALID"))
        other = await d.machines.create(TENANT, CreateMachine(snapshot=made.id))
        (first,) = told(d, other.id)
        assert (first.hostname, first.renew_ssh_host_keys) == (other.hostname, True)
        assert len(first.machine_id) == 32 and has_its_own_token(d, other)
        (kept,) = (await d.snapshots.list(TENANT)).items
        assert kept.memory, "what keeps a snapshot from being loaded may pass"
        told(d, m.id)
        await d.machines.sleep(TENANT, m.id)
        d.host.driver.fail("restore", ConflictError("flipped", code="SNAPSHOT_INVALID"))
        woken = await d.machines.wake(TENANT, m.id)
        (again,) = told(d, m.id)
        assert again.hostname == m.hostname
        assert again.machine_id not in ("", first.machine_id)
        assert has_its_own_token(d, woken)
