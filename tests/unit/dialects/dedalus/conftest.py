from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from roost.api.v1.services import Services
from roost.dialects.dedalus import targets
from roost.gateway.dispatch import Target
from tests.unit.agent import process
from tests.unit.api.conftest import agent  # noqa: F401  (the fixture)
from tests.unit.api.kit import Served, serving


def dialect(clock: Any = None) -> list[Callable[[Services], Target]]:
    """Both targets of one dialect, as the kit wants them."""
    made: list[Target] = []

    def nth(n: int) -> Callable[[Services], Target]:
        def make(services: Services) -> Target:
            if not made:
                made.extend(targets(services, clock))
            return made[n]

        return make

    return [nth(0), nth(1)]


def open_(
    path: Path, target: str | None, clock: Any = None, **kw: Any
) -> AbstractAsyncContextManager[Served]:
    return serving(path, target, dialects=dialect(clock), **kw)


def key(served: Served) -> str:
    return f"dsk_{served.key.rpartition('_')[2]}"


@pytest.fixture
async def served(tmp_path: Path, agent: process.AgentProcess) -> AsyncIterator[Served]:  # noqa: F811
    async with open_(tmp_path, agent.target) as found:
        yield found


@pytest.fixture
async def bare(tmp_path: Path) -> AsyncIterator[Served]:
    async with open_(tmp_path, None) as found:
        yield found


@pytest.fixture
async def http(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with served.client(key(served)) as client:
        yield client
