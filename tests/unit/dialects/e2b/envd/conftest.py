from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.unit.agent import process
from tests.unit.api.kit import Served, serving
from tests.unit.dialects.e2b.envd.kit import Sandbox, dialect

PROCESS = "/process.Process/"


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[process.AgentProcess]:
    with process.running(tmp_path_factory.mktemp("agent")) as found:
        yield found


@pytest.fixture
async def served(tmp_path: Path, agent: process.AgentProcess) -> AsyncIterator[Served]:
    async with serving(tmp_path, agent.target, dialects=[dialect]) as found:
        yield found


@pytest.fixture
async def box(served: Served) -> AsyncIterator[Sandbox]:
    made = Sandbox(served.url, served.machine())
    async with made.http:
        yield made
        # The agent is everybody's here: what one test leaves running, the next would list.
        listed = await made.call(f"{PROCESS}List", {})
        for left in listed.json().get("processes", ()):
            by_pid = {"process": {"pid": left["pid"]}, "signal": "SIGNAL_SIGKILL"}
            await made.call(f"{PROCESS}SendSignal", by_pid)
