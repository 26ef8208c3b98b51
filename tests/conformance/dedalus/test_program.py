"""The whole program, as its users have it: a machine a user, today and tomorrow."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.conformance.foreign import environment
from tests.conformance.record import record
from tests.conformance.turned import turned
from tests.system.conftest import Daemon

from .conftest import CLIENT

PROGRAM = Path(__file__).with_name("program_per_user_machine.py")


def run(at: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [environment("dedalus-0.4.0"), PROGRAM, *arguments],
        env={"PATH": os.environ["PATH"], **at},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


@pytest.mark.timeout(600)
def test_per_user_machine(daemon: Daemon, at: dict[str, str], tmp_path: Path) -> None:
    with turned(daemon, tmp_path / "ahead") as ahead, daemon.http() as http:
        machine = run(at, "first")
        try:
            url = f"/v1/machines/{machine}"
            assert http.get(url).json()["status"]["phase"] == "running"
            ahead(86_400)
            until = time.monotonic() + 60
            while (now := http.get(url).json()["status"]["phase"]) != "sleeping":
                assert time.monotonic() < until, now
                time.sleep(0.2)
            assert run(at, "next", machine) == "ok"
        finally:
            http.delete(f"/v1/machines/{machine}")
    record(CLIENT, "0.4.0", "program: per-user machine", "works")
