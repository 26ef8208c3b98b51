"""What the end of a machine that nobody asked for means, in words and in what follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from roost.drivers.fake import FakeDriver
from roost.drivers.interface import Exit
from roost.engine.ending import told
from roost.engine.lifecycle import Failed, WentDown
from roost.errors import CapacityError, MachineError
from tests.unit.engine.kit import TENANT, Daemon, daemon, small, until

CONTAINER = FakeDriver().capabilities()
MICROVM = FakeDriver(raw_disk=True).capabilities()


@pytest.mark.parametrize(
    ("how", "capabilities", "event", "words"),
    [
        (Exit("rebooted"), MICROVM, WentDown("rebooted"), "it rebooted itself"),
        (
            Exit("exited", 0),
            MICROVM,
            WentDown("shut down"),
            "it shut itself down; the next call starts it from its disk",
        ),
        (
            Exit("exited", 0),
            CONTAINER,
            Failed("crashed", True),
            "its main process ended by itself (exited, exit code 0)",
        ),
        (Exit("oom", 137), CONTAINER, Failed("oom", True), "out of memory: the machine was ended"),
        (Exit("oom"), MICROVM, Failed("oom", True), "out of memory: the machine was ended"),
        (Exit("panicked"), MICROVM, Failed("panicked", True), "its kernel panicked"),
        (
            Exit("panicked", console="[1.0] a\r\n[2.0] Kernel panic - not syncing\r\n\r\n"),
            MICROVM,
            Failed("panicked", True),
            "its kernel panicked; its console said last: [2.0] Kernel panic - not syncing",
        ),
        (
            Exit("killed"),
            MICROVM,
            Failed("crashed", True),
            "its main process ended by itself (killed)",
        ),
        (
            Exit("unknown", 1, "qemu: no room"),
            MICROVM,
            Failed("crashed", True),
            "its main process ended by itself (unknown, exit code 1); its console said last: qemu: no room",
        ),
    ],
)
def test_what_it_means(how: Exit, capabilities: Any, event: object, words: str) -> None:
    assert told(how, capabilities) == (event, words)


def test_a_console_is_a_hostile_text() -> None:
    _, words = told(Exit("panicked", console="\x1b[2J\x07☃" + "x" * 5000 + "\x00end"), MICROVM)
    assert len(words) < 400
    assert words.isascii() and words.isprintable()
    assert words.endswith("x?end")


def microvm() -> FakeDriver:
    return FakeDriver(memory_snapshot=True, raw_disk=True, own_kernel=True)


async def _events(d: Daemon, machine_id: str) -> list[tuple[str, str]]:
    return [(e.event, e.message) for e in await d.machines.events(TENANT, machine_id)]


async def _phase(d: Daemon, machine_id: str, phase: str, generation: int) -> bool:
    m = await d.machines.get(TENANT, machine_id)
    return (m.phase, m.generation) == (phase, generation)


async def test_one_that_reboots_is_back_by_itself(tmp_path: Path) -> None:
    async with daemon(tmp_path, driver=microvm()) as d:
        m = await d.machines.create(TENANT, small())
        for generation in (2, 3):
            d.host.driver.die(m.id, Exit("rebooted", None, "bye"))
            await until(lambda g=generation: _phase(d, m.id, "running", g))
        assert (await d.machines.awake(TENANT, m.id)).machine.generation == 3
        assert d.host.driver.calls["start"] == 3
        assert d.agents.calls["shutdown"] == 0, "there is nobody to ask"
        events = await _events(d, m.id)
        assert [e for e, _ in events][3:] == ["sleeping", "waking", "running"] * 2
        assert ("sleeping", "it rebooted itself") in events
        assert not d.host.leaks(await d.all())


async def test_a_reboot_that_finds_no_room_sleeps_until_the_next_call(tmp_path: Path) -> None:
    async with daemon(tmp_path, driver=microvm()) as d:
        m = await d.machines.create(TENANT, small())
        d.host.network.fail("take", CapacityError("no slot is left"))
        d.host.driver.die(m.id, Exit("rebooted"))
        await until(lambda: d.host.network.calls["take"] == 2)
        await until(lambda: _phase(d, m.id, "sleeping", 1))
        assert (await d.machines.awake(TENANT, m.id)).machine.generation == 2
        assert not d.host.leaks(await d.all())


async def test_one_that_shuts_down_sleeps_and_the_next_call_starts_it(tmp_path: Path) -> None:
    async with daemon(tmp_path, driver=microvm()) as d:
        m = await d.machines.create(TENANT, small())
        d.host.driver.die(m.id, Exit("exited", 0))
        await until(lambda: _phase(d, m.id, "sleeping", 1))
        down = await d.machines.get(TENANT, m.id)
        assert (down.reason, down.desired_state, down.memory_image) == (
            "shut down",
            "running",
            None,
        )
        await until(lambda: not d.host.leaks([down]))
        assert (await d.machines.awake(TENANT, m.id)).machine.phase == "running"
        assert d.host.driver.machines[m.id].restored_from is None, "its memory is gone"


async def test_one_whose_kernel_panics_fails_with_its_last_words(tmp_path: Path) -> None:
    async with daemon(tmp_path, driver=microvm()) as d:
        m = await d.machines.create(TENANT, small())
        d.host.driver.die(m.id, Exit("panicked", None, "[9.1] Kernel panic: sysrq\n"))
        await until(lambda: _phase(d, m.id, "failed", 1))
        failed = await d.machines.get(TENANT, m.id)
        assert (failed.reason, failed.retryable) == ("panicked", True)
        words = "its kernel panicked; its console said last: [9.1] Kernel panic: sysrq"
        assert (await _events(d, m.id))[-1] == ("failed", words)
        with pytest.raises(MachineError) as caught:
            await d.machines.awake(TENANT, m.id)
        assert caught.value.code == "MACHINE_FAILED"
        assert (await d.machines.wake(TENANT, m.id)).phase == "running"


async def test_a_delete_is_stronger_than_a_reboot(tmp_path: Path) -> None:
    async with daemon(tmp_path, driver=microvm()) as d:
        m = await d.machines.create(TENANT, small())
        gate = d.host.driver.hang("remove")
        d.host.driver.die(m.id, Exit("rebooted"))
        await until(lambda: d.host.driver.calls["remove"])
        deleting = await d.machines.delete(TENANT, m.id, wait=False)
        assert deleting.phase == "destroying"
        gate.set()
        await until(lambda: _phase(d, m.id, "destroyed", 1))
        assert not d.host.leaks(await d.all())
