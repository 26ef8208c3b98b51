"""What two callers may ask of the driver at once."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from roost.drivers.qemu import driver
from roost.drivers.qemu.machine import Machine
from roost.settings import Settings


async def test_removed_by_two_at_once_it_is_closed_once(tmp_path: Path) -> None:
    """The sweep after a start and whoever ends a machine that was found dead both remove it. Closed twice, its
    descriptor's number may be another machine's by then."""
    qemu = driver.QemuDriver(Settings(data_dir=tmp_path / "data", run_dir=tmp_path / "run"))
    closed: list[int] = []
    pidfd = os.open("/dev/null", os.O_RDONLY)

    async def close() -> None:
        await asyncio.sleep(0)
        closed.append(pidfd)
        os.close(pidfd)

    machine = SimpleNamespace(removing=False, close=close)
    qemu._live["m"] = cast(Machine, machine)
    qemu._remove = lambda machine_id: None  # type: ignore[method-assign]
    await asyncio.gather(qemu.remove("m"), qemu.remove("m"))
    assert closed == [pidfd]
    assert machine.removing


def test_monitors_of_different_daemons_are_different_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases = []
    for tag in ("0a00", "0aff", "ffff"):
        monkeypatch.setattr(driver, "instance_tag", lambda _, tag=tag: tag)
        qemu = driver.QemuDriver(Settings(data_dir=tmp_path / "data", run_dir=tmp_path / tag))
        bases.append(qemu._uid_base)
    assert bases[1] - bases[0] >= driver.MAX_SLOTS
    assert bases[2] + driver.MAX_SLOTS <= 1 << 31  # beyond it some programs count below zero
