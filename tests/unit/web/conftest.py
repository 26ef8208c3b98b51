from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.unit.api.conftest import agent, bare, served
from tests.unit.api.kit import Served
from tests.unit.web.chromium import Chromium, Tab

__all__ = ["agent", "bare", "served"]


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium.running(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture
async def tab(chromium: Chromium, served: Served) -> AsyncIterator[Tab]:
    """The page of approvals, before it has a key. Nothing is wrong with it when the test ends."""
    async with chromium.tab(f"{served.url}/approvals") as found:
        yield found
        assert found.wrong == []
