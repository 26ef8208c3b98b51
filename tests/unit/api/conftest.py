from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog

from tests.unit.agent import process
from tests.unit.api.kit import Served, serving

# A traceback drawn for a terminal takes seconds.
structlog.configure(processors=[structlog.processors.KeyValueRenderer()])


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[process.AgentProcess]:
    with process.running(tmp_path_factory.mktemp("agent")) as found:
        yield found


@pytest.fixture
async def served(tmp_path: Path, agent: process.AgentProcess) -> AsyncIterator[Served]:
    async with serving(tmp_path, agent.target) as found:
        yield found


@pytest.fixture
async def bare(tmp_path: Path) -> AsyncIterator[Served]:
    """No agent behind it."""
    async with serving(tmp_path, None) as found:
        yield found
