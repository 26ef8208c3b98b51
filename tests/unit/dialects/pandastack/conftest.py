from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from roost.dialects import pandastack
from tests.unit.agent import process
from tests.unit.api.conftest import agent
from tests.unit.api.kit import Served, serving
from tests.unit.engine.kit import daemon

__all__ = ["agent"]
BOTH: Any = (lambda s: pandastack.targets(s)[0], lambda s: pandastack.targets(s)[1])


def client(served: Served, key: str | None = None) -> httpx.AsyncClient:
    """As a user of PandaStack writes the same key."""
    return served.client(f"pds_{(key or served.key).rpartition('_')[2]}")


@pytest.fixture
async def served(tmp_path: Path, agent: process.AgentProcess) -> AsyncIterator[Served]:
    """All machines are made up and share one agent."""
    async with serving(tmp_path, agent.target, dialects=BOTH) as found:
        yield found


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Served]:
    """A real engine with machines of the fake driver, which run nothing."""
    async with daemon(tmp_path) as d, serving(tmp_path, None, engine=d, dialects=BOTH) as found:
        yield found


@pytest.fixture
async def http(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with client(served) as found:
        yield found


@pytest.fixture
async def life(engine: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with client(engine) as found:
        yield found
