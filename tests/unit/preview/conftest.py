from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.api.conftest import agent, bare, served
from tests.unit.api.kit import Served, serving

__all__ = ["agent", "bare", "served"]


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Served]:
    """Its machines' ports are this host's; their agent answers nobody."""
    async with serving(tmp_path, "127.0.0.1:1") as found:
        yield found
