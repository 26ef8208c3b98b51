from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from roost.dialects.e2b import app
from roost.drivers.fake import FakeDriver
from tests.unit.api.kit import OTHER, Served, serving
from tests.unit.engine.kit import Daemon, daemon


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Daemon]:
    driver = FakeDriver(memory_snapshot=True, egress_enforced=True)
    async with daemon(tmp_path, memory=True, driver=driver) as found:
        yield found


@pytest.fixture
async def served(tmp_path: Path, engine: Daemon) -> AsyncIterator[Served]:
    each = [lambda s, n=n: app.targets(s)[n] for n in range(7)]
    async with serving(tmp_path, None, engine=engine, dialects=each) as found:
        app.previews(found.previews)
        yield found


def as_e2b(served: Served, key: str) -> httpx.AsyncClient:
    """Speaks as E2B's clients do."""
    written = f"e2b_{key.rpartition('_')[2]}"
    headers = {"x-api-key": written}
    return httpx.AsyncClient(base_url=served.url, headers=headers, timeout=30, trust_env=False)


@pytest.fixture
async def e2b(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with as_e2b(served, served.key) as found:
        yield found


@pytest.fixture
async def other(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    """Of another tenant."""
    async with as_e2b(served, served.other_key) as found:
        assert OTHER
        yield found
