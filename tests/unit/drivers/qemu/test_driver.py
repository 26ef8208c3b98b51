"""What two callers may ask of the driver at once."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from roost.drivers.interface import Handle
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


async def test_who_cancels_waits_until_it_runs_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine whose memory could not be kept goes on, whoever does not want to wait for that."""
    qemu = driver.QemuDriver(Settings(data_dir=tmp_path / "data", run_dir=tmp_path / "run"))
    handle = Handle("qemu", "m", 1, 1, "boot", "unix:/x")
    machine = SimpleNamespace(handle=handle, busy=asyncio.Lock(), qmp=None)
    qemu._live["m"] = cast(Machine, machine)
    begun, go = asyncio.Event(), asyncio.Event()

    async def whole(*_: object) -> object:
        return object()

    async def resume(_: object) -> None:
        begun.set()
        await go.wait()

    def disk(_: Handle) -> Path:
        raise OSError("the disk is gone")

    monkeypatch.setattr(driver.captures, "whole", whole)
    monkeypatch.setattr(driver.captures, "resume", resume)
    monkeypatch.setattr(qemu, "_source", lambda _: SimpleNamespace(snapshot=None))
    monkeypatch.setattr(qemu, "_disk", disk)
    task = asyncio.create_task(qemu.hibernate(handle, tmp_path))
    await begun.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.01)
    assert not task.done()
    assert machine.busy.locked()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not machine.busy.locked()
