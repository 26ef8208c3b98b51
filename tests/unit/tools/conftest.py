from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from roost import AsyncClient, AsyncMachine
from tests.unit.api.conftest import agent, served  # noqa: F401  (fixtures)
from tests.unit.api.kit import Served


@pytest.fixture
async def machine(served: Served) -> AsyncIterator[AsyncMachine]:  # noqa: F811
    """Real gateway, API and agent; the agent is a process of this host."""
    async with AsyncClient(served.url, served.key) as client:
        yield await AsyncMachine.get(served.machine(), client=client)
