"""What the oracle of faults and attacks sees of workspaces, which have no group, mount or disk to be counted by."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from roost import ids
from tests.system.faults import state


@pytest.fixture
def homes(tmp_path: Path) -> Path:
    (tmp_path / "homes").mkdir()
    return tmp_path / "homes"


def row(phase: str = "running", **more: Any) -> dict[str, Any]:
    said = {"id": ids.new(), "driver": "workspace", "phase": phase, "tier": None}
    return {**said, "disk_ready": phase != "destroyed", **more}


@contextmanager
def process(*command: str, **env: str) -> Iterator[int]:
    """One that runs by the time it is looked at: it has said so."""
    said = ["sh", "-c", "echo on; read line", *command]
    pipe = subprocess.PIPE
    with subprocess.Popen(said, env={**os.environ, **env}, stdin=pipe, stdout=pipe) as running:
        assert running.stdout is not None and running.stdout.readline() == b"on\n"
        try:
            yield running.pid
        finally:
            running.kill()


def test_what_the_rows_say_is_whole(homes: Path) -> None:
    up, asleep, ended = row(), row("sleeping"), row("destroyed")
    container = row(driver="runc")
    for each in (up, asleep):
        (homes / each["id"]).mkdir()
    with process(ROOST_WORKSPACE=str(homes / up["id"])):
        assert list(state._workspaces(homes, [up, asleep, ended, container])) == []


def test_directories(homes: Path) -> None:
    asleep, ended = row("sleeping"), row("destroyed")
    (homes / ended["id"]).mkdir()
    assert list(state._workspaces(homes, [asleep, ended])) == [
        f"leaked directory of the workspace {ended['id']}",
        f"missing directory of the workspace {asleep['id']}",
    ]
    climbed = row(driver="runc")
    (homes / ended["id"]).rename(homes / climbed["id"])
    assert list(state._workspaces(homes, [climbed])) == [
        f"leaked directory of the workspace {climbed['id']}"
    ]


@pytest.mark.parametrize("phase", ["destroyed", "sleeping", "failed"])
@pytest.mark.parametrize("by", ["environment", "command line"])
def test_a_process_of_one_that_does_not_run(homes: Path, phase: str, by: str) -> None:
    of = row(phase, disk_ready=False)
    home = str(homes / of["id"])
    told = process(ROOST_WORKSPACE=home)
    if by == "command line":
        told = process("--workspace", home)
    with told as pid:
        assert list(state._workspaces(homes, [of])) == [f"leaked process {pid} of {of['id']}"]


def test_one_that_runs_without_a_process(homes: Path) -> None:
    up = row()
    (homes / up["id"]).mkdir()
    assert list(state._workspaces(homes, [up])) == [f"missing process of {up['id']}"]
