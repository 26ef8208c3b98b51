"""From nothing to a machine, a daemon's restart, its sudden death, and back to nothing: all by ``roost``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.long]

DATA, RUN = Path("/var/lib/roost-updown"), Path("/run/roost-updown")
SETTINGS = {
    "ROOST_DATA_DIR": str(DATA),
    "ROOST_RUN_DIR": str(RUN),
    "ROOST_PORT": "17690",
    "ROOST_NETWORK_CIDR": "10.206.0.0/16",
    "ROOST_POOL_GIB": "20",
}


def roost(*argv: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    hidden = ("ROOST_URL", "ROOST_API_KEY")
    env = {k: v for k, v in os.environ.items() if k not in hidden} | SETTINGS
    return subprocess.run(
        [sys.executable, "-m", "roost.cli", *argv],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def left_on_the_host() -> list[str]:
    mounts = [m for m in Path("/proc/mounts").read_text().splitlines() if "roost-updown" in m]
    loops = subprocess.run(["losetup", "-l"], capture_output=True, text=True, check=True).stdout
    processes = [
        entry.name
        for entry in Path("/proc").glob("[0-9]*")
        if b"roost-updown" in _read(entry / "cmdline")
    ]
    return [*mounts, *(x for x in loops.splitlines() if "roost-updown" in x), *processes]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.timeout(900)
def test_a_hosts_whole_life() -> None:
    try:
        first = roost("up", timeout=600)
        assert first.returncode == 0, first.stderr
        assert "Debian" in first.stdout
        assert "roost shell first" in first.stdout
        pid = json.loads(roost("doctor", "--json").stdout)["daemon"]["pid"]
        roost("exec", "first", "-c", "echo kept > /root/note; nohup sleep 4000 >/dev/null 2>&1 &")

        down = roost("down")
        assert down.returncode == 0, down.stderr
        assert "machines go on" in down.stdout
        assert not _read(Path(f"/proc/{pid}/cmdline")), "at most a zombie that init has yet to reap"
        assert roost("ls").returncode == 1
        assert "No daemon runs" in roost("down").stdout

        assert roost("up", "--no-machine").returncode == 0
        again = roost("exec", "first", "-c", "cat /root/note; pgrep -cx sleep")
        assert again.stdout == "kept\n1\n", "its processes went on without the daemon"

        pid = json.loads(roost("doctor", "--json").stdout)["daemon"]["pid"]
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while _read(Path(f"/proc/{pid}/cmdline")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        refused = roost("down", "--purge")
        assert refused.returncode == 2, "without a terminal it wants --yes"
    finally:
        purged = roost("down", "--purge", "--yes")
    assert purged.returncode == 0, purged.stderr
    assert not DATA.exists()
    assert not RUN.exists()
    assert left_on_the_host() == []
    assert roost("down", "--purge", "--yes").returncode == 0, "once more is no error"
