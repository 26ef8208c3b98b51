"""A real agent as an ordinary process of this host, on a unix socket."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import roost

BINARY = Path(roost.__file__).parent / "_bin" / "roost-agent"
TOKEN = "test-token"


@dataclass
class AgentProcess:
    directory: Path
    process: subprocess.Popen[bytes]

    @property
    def target(self) -> str:
        return f"unix:{self.directory}/a.sock"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


def start(directory: Path, listen: str | None = None) -> AgentProcess:
    """Skips the test where the agent was not built."""
    if not BINARY.exists():
        pytest.skip("the agent is not built: scripts/up")
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        (directory / "a.sock").unlink()
    process = subprocess.Popen(
        [
            str(BINARY),
            *("--listen", listen or f"unix:{directory}/a.sock"),
            *("--inside", f"{directory}/inside.sock"),
        ],
        env={"ROOST_AGENT_TOKEN": TOKEN, "PATH": os.environ["PATH"]},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(directory / "agent.err").open("ab"),
    )
    return AgentProcess(directory, process)


@contextlib.contextmanager
def running(directory: Path, listen: str | None = None) -> Iterator[AgentProcess]:
    agent = start(directory, listen)
    try:
        yield agent
    finally:
        with contextlib.suppress(ProcessLookupError):
            agent.process.send_signal(signal.SIGKILL)
        agent.process.wait(10)
