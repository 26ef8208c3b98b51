"""The examples, run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Daemon

pytestmark = pytest.mark.system
EXAMPLES = Path(__file__).parents[2] / "examples"


def test_a_machine_for_each_chat_user(daemon: Daemon) -> None:
    """State is kept between turns, over sleep and over a restart of the daemon, which the test does at its word."""
    ask, answer = os.pipe(), os.pipe()
    restart = f"echo >&{ask[1]}; read line <&{answer[0]}"
    env = {**daemon.env, "ROOST_API_KEY": daemon.key}
    process = subprocess.Popen(
        [sys.executable, EXAMPLES / "chat_users.py", "--restart", f"exec bash -c '{restart}'"],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=(ask[1], answer[0]),
    )
    try:
        assert os.read(ask[0], 1)
        daemon.restart()
        os.write(answer[1], b"\n")
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        for each in (*ask, *answer):
            os.close(each)
    assert process.returncode == 0, said
    assert said.count("the process of turn one still runs") == 3
    assert "was hibernated" in said
    assert "vCPU-seconds" in said
