"""Reaping takes nobody else's status."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from roost.host import account, processes, reaper
from roost.host.account import Account
from roost.host.reaper import Reaper


def _zombie(program: str | Path) -> subprocess.Popen[bytes]:
    child = subprocess.Popen([str(program), "0"])
    for _ in range(200):
        if processes.start_ticks(child.pid) is None:
            return child
        time.sleep(0.01)
    raise AssertionError("it does not end")


def test_only_runtimes_zombies_past_the_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = shutil.which("sleep")
    assert sleep is not None
    ours = tmp_path / "runsc-helper"
    shutil.copy(sleep, ours)
    runtimes, someones = _zombie(ours), _zombie(sleep)
    sweeper = Reaper()
    assert sweeper.sweep() == 1, "it waits for whoever may still want the status"
    monkeypatch.setattr(reaper, "_GRACE_S", 0.0)
    assert sweeper.sweep() == 0
    with pytest.raises(ChildProcessError):
        os.waitpid(runtimes.pid, os.WNOHANG)
    assert someones.wait(5) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_what_programs_of_workspaces_leave_to_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once they ended whoever would have waited for it; while their machines run on."""
    theirs = account.start(Account("nobody", 65534, 65534), ["sleep", "0"])
    ours = _zombie("sleep")
    while processes.start_ticks(theirs.pid) is not None:
        time.sleep(0.01)
    monkeypatch.setattr(reaper, "_GRACE_S", 0.0)
    assert Reaper(65534).sweep() == 0
    with pytest.raises(ChildProcessError):
        os.waitpid(theirs.pid, os.WNOHANG)
    theirs.returncode = 0
    assert ours.wait(5) == 0


def test_a_pid_counts_only_with_its_start_time() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        ticks = processes.start_ticks(child.pid)
        assert ticks is not None
        assert processes.is_same(child.pid, ticks, processes.boot_id())
        assert not processes.is_same(child.pid, ticks + 1, processes.boot_id())
        assert not processes.is_same(child.pid, ticks, "another boot")
        assert processes.open_pidfd(child.pid, ticks + 1) is None
        fd = processes.open_pidfd(child.pid, ticks)
        assert fd is not None
        assert not processes.wait_pidfds([fd], 0.01)
        processes.kill(child.pid, ticks)
        assert processes.wait_pidfds([fd], 5)
        os.close(fd)
    finally:
        child.kill()
        child.wait()
    assert processes.start_ticks(child.pid) is None


def test_a_programs_name_can_hold_anything(tmp_path: Path) -> None:
    sleep = shutil.which("sleep")
    assert sleep is not None
    odd = tmp_path / "a) Z 1 ("
    shutil.copy(sleep, odd)
    child = subprocess.Popen([str(odd), "60"])
    try:
        time.sleep(0.05)
        assert processes.start_ticks(child.pid) is not None
        assert processes.parent(child.pid) == os.getpid()
    finally:
        child.kill()
        child.wait()
