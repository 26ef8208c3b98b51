"""A machine of one user by systemd: what is asked of it and in which order. No systemd runs here."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from roost.drivers import systemd, user_unit
from roost.drivers.interface import Handle, NetworkSlot, Size
from roost.drivers.systemd import SystemdDriver
from roost.errors import MachineError
from roost.host import advisories, packages
from roost.host.console import Console
from roost.host.packages import Installed
from roost.settings import Settings

from .test_user import START


class Host:
    """What was done on it, in order; ``pid``: what systemctl tells of any unit."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pid: str = "4321\n") -> None:
        self.done: list[Any] = []
        self.pid = pid
        monkeypatch.setattr(systemd.run, "run", self._run)

    def _run(self, argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if "--version" in argv:
            return subprocess.CompletedProcess(argv, 0, "systemd 252 (252)\n", "")
        self.done.append(argv)
        return subprocess.CompletedProcess(argv, 0, self.pid if "show" in argv else "", "")


@pytest.fixture
def driver(tmp_path: Path) -> SystemdDriver:
    return SystemdDriver(Settings(data_dir=tmp_path / "data", run_dir=tmp_path / "run"))


def _launch(driver: SystemdDriver, directory: Path) -> int:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "shown/root/home/user").mkdir(parents=True, exist_ok=True)
    return driver._launch(START, directory, [], Console(directory / "console"))


def test_a_unit_starts_where_its_network_is_ready(
    driver: SystemdDriver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its address may have been another runtime's, and every port is its user's."""
    host = Host(monkeypatch)

    def enter(slot: NetworkSlot) -> None:
        host.done.append(slot)

    monkeypatch.setattr(driver, "_enter_network", enter)
    assert _launch(driver, tmp_path / "m1") == 4321
    first, start, ask = host.done
    assert first is START.slot
    unit = user_unit.name("m1")
    assert start[0] == "systemd-run" and any(unit in word for word in start)
    assert START.agent_token not in " ".join(start)
    assert ask[-1] == unit and "--property=MainPID" in ask


@pytest.mark.parametrize("pid", ["", "no such unit\n"])
def test_what_systemd_refuses_is_told(
    driver: SystemdDriver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pid: str
) -> None:
    Host(monkeypatch, pid)
    monkeypatch.setattr(driver, "_enter_network", lambda _: None)
    with pytest.raises(MachineError) as caught:
        _launch(driver, tmp_path / "m1")
    assert caught.value.code == "MACHINE_FAILED"


async def test_its_size_changes_while_it_runs(
    driver: SystemdDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(monkeypatch)
    handle = Handle(
        driver="systemd", machine_id="m1", pid=1, pid_start_ticks=1, boot_id="b", agent_target="t"
    )
    await driver.resize(handle, Size(1, 1024, 10))
    (said,) = host.done
    assert said[:2] == ["systemctl", "--no-pager"] and "--runtime" in said
    assert f"MemoryMax={1024 << 20}" in said and user_unit.name("m1") in said


def test_a_unit_is_ended_before_its_image_is_taken_away(
    driver: SystemdDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(monkeypatch)
    monkeypatch.setattr(driver.cgroups, "exists", lambda _: True)
    monkeypatch.setattr(systemd, "_in_first", lambda work: host.done.append("unmounted"))
    monkeypatch.setattr(
        systemd.UserDriver, "_remove", lambda self, id, disk: host.done.append("removed")
    )
    driver._remove("m1", None)
    words = [each if isinstance(each, str) else each[2] for each in host.done]
    assert words == ["kill", "stop", "unmounted", "removed"]


async def test_where_systemd_is_not_the_init_it_is_not_offered(driver: SystemdDriver) -> None:
    if Path("/run/systemd/system").is_dir():
        pytest.skip("it is here")
    probe = await driver.probe()
    assert not probe.available and probe.reason is not None and "systemd" in probe.reason


async def test_it_is_judged_by_the_kernel_its_machines_call_and_by_no_runtime(
    driver: SystemdDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    Host(monkeypatch)
    monkeypatch.setattr(systemd.Path, "is_dir", lambda _: True)
    monkeypatch.setattr(systemd.Path, "exists", lambda _: True)
    monkeypatch.setattr(packages, "found", lambda _: Installed("0.1"))
    monkeypatch.setattr(packages, "kernel", lambda: Installed("5.16.10"))
    probe = await driver.probe()
    assert not probe.available and probe.remedy == advisories.REMEDY
    assert probe.reason is not None and "CVE-2022-0847" in probe.reason
    assert {each.advisory.program for each in advisories.look("systemd")} == {"linux"}
    monkeypatch.setattr(packages, "kernel", lambda: Installed("9.0"))
    assert (await driver.probe()).available
