"""The database locked, full and damaged under a real daemon: typed, nothing acknowledged that is not kept."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost import Machine, RoostError
from tests.attack.record import case
from tests.system.conftest import Daemon
from tests.system.faults import state

pytestmark = [pytest.mark.system, case("F7")]


@pytest.fixture
def machine(daemon: Daemon) -> Iterator[Machine]:
    with Machine.create(driver="runc", memory_mib=256, storage_gib=1) as m:
        yield m


def refused(daemon: Daemon) -> tuple[int, str, bool]:
    with daemon.http() as http:
        answer = http.post("/v1/machines", json={"driver": "runc", "key": "refused"})
        body = answer.json()
    return answer.status_code, body["error_code"], body["retryable"]


def test_locked_by_another_process(daemon: Daemon, machine: Machine) -> None:
    """Reads go on, writes wait and then say so, and all is well once the lock is gone."""
    other = sqlite3.connect(daemon.data_dir / "roost.db", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        assert refused(daemon) == (503, "DATABASE_UNAVAILABLE", True)
        assert machine.refresh().phase == "running"
        other.execute("ROLLBACK")
    finally:
        other.close()
    assert machine.exec("echo on").stdout == "on\n"
    Machine.ensure("refused", driver="runc", memory_mib=256).destroy()
    state.whole(daemon)


def test_a_lock_that_is_short_is_waited_for(daemon: Daemon, machine: Machine) -> None:
    other = sqlite3.connect(daemon.data_dir / "roost.db", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        started = subprocess.Popen(
            [sys.executable, "-c", f"import roost; roost.Machine.get({machine.id!r}).sleep()"],
            env={**daemon.env, "ROOST_API_KEY": daemon.key},
        )
        time.sleep(2)
        assert started.poll() is None
        other.execute("ROLLBACK")
    finally:
        other.close()
    assert started.wait(30) == 0
    assert machine.refresh().phase == "sleeping"


def copy(path: Path, to: Path) -> None:
    """With what is in its log; the log is empty and gone afterwards."""
    with contextlib.closing(sqlite3.connect(path)) as source:
        with contextlib.closing(sqlite3.connect(to)) as target:
            source.backup(target)
    to.chmod(0o600)


@pytest.fixture
def small(daemon: Daemon, machine: Machine, tmp_path: Path) -> Iterator[Path]:
    """The database, and it alone, on a file system that is nearly as small as it is."""
    place = tmp_path / "small"
    place.mkdir()
    path = daemon.data_dir / "roost.db"
    daemon.stop()
    size = path.stat().st_size + (8 << 20)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
    try:
        copy(path, place / "roost.db")
        path.unlink()
        path.symlink_to(place / "roost.db")
        try:
            daemon.start()
            yield place
        finally:
            (place / "filler").unlink(missing_ok=True)
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.stop()
            path.unlink()
            copy(place / "roost.db", path)
    finally:
        subprocess.run(["umount", place], check=True)
        daemon.start()


def fill(place: Path) -> None:
    with (place / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)) == 4096:
                pass
        except OSError:
            pass


def test_full(daemon: Daemon, machine: Machine, small: Path) -> None:
    """Refused in words; what was acknowledged is there afterwards, over a kill -9 as well."""
    before = machine.start("sleep 3; echo ended")
    fill(small)
    assert refused(daemon) == (507, "STORAGE_FULL", True)
    with pytest.raises(RoostError) as caught:
        machine.sleep()
    assert caught.value.code == "STORAGE_FULL"
    assert machine.refresh().phase == "running", "what was refused did not happen"
    daemon.restart(
        signal.SIGKILL
    )  # it starts all the same, adopts, and refuses what it cannot keep
    assert machine.refresh().phase == "running"
    assert refused(daemon) == (507, "STORAGE_FULL", True)
    (small / "filler").unlink()
    assert before.wait().stdout == "ended\n"
    with daemon.http() as http:
        assert not http.get("/v1/machines", params={"key": "refused"}).json()["items"]
    Machine.ensure("refused", driver="runc", memory_mib=256).destroy()
    state.whole(daemon)


@pytest.mark.parametrize("how", ["no database", "a page of it", "cut"])
def test_damaged(daemon: Daemon, tmp_path: Path, how: str) -> None:
    """The daemon does not start on it, says what to do, and leaves it as it is."""
    path = tmp_path / "data" / "roost.db"
    path.parent.mkdir()
    copy(daemon.data_dir / "roost.db", path)
    size = path.stat().st_size
    with path.open("r+b") as file:
        if how == "no database":
            file.write(os.urandom(4096))
        elif how == "cut":
            file.truncate(size // 2 // 4096 * 4096)
        else:
            for page in range(1, size // 4096):
                file.seek(page * 4096)
                file.write(b"\xa5" * 64)
    damaged = path.read_bytes()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = subprocess.run(
        [sys.executable, "-m", "roost.daemon"],
        env={
            **daemon.env,
            "ROOST_DATA_DIR": str(path.parent),
            "ROOST_RUN_DIR": str(tmp_path / "run"),
            "ROOST_PORT": str(port),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.returncode == 1
    assert "[DATABASE_CORRUPT]" in told.stderr and "backup" in told.stderr, told.stderr
    assert path.read_bytes() == damaged
