from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.agent import process
from tests.unit.api.conftest import agent  # noqa: F401
from tests.unit.api.kit import TENANT, serving
from tests.unit.ssh.kit import Ssh


@pytest.fixture
async def ssh(tmp_path: Path, agent: process.AgentProcess) -> AsyncIterator[Ssh]:  # noqa: F811
    async with serving(tmp_path, agent.target) as served:
        found = Ssh(served, tmp_path)
        await found.open()
        await found.register(TENANT)
        try:
            yield found
        finally:
            await found.close()
