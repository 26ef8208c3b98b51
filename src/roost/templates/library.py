"""The recipes this installation has, and their building: what the services call."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import roost
from roost.drivers.tree import AgentBinary, default_agent
from roost.errors import NotFoundError
from roost.storage.interface import Image
from roost.storage.service import PoolStorage
from roost.templates import recipe as recipes
from roost.templates.build import Builder
from roost.templates.progress import Progress


@dataclass(frozen=True, slots=True)
class Shipped:
    name: str
    digest: str  # of what the image is made from, the agent included: another digest, another image
    config: Mapping[str, Any]


def shipped_directory() -> Path:
    """In an installed package beside the code, in a checkout at its top."""
    package = Path(roost.__file__).parent
    installed = package / "_templates"
    return installed if installed.is_dir() else package.parents[1] / "templates"


class Library:
    def __init__(
        self, storage: PoolStorage, directory: Path | None = None, agent: Path | None = None
    ) -> None:
        self._directory = directory or shipped_directory()
        self._agent = AgentBinary(agent or default_agent())
        self._builder = Builder(storage.pool, storage.image_store, self._agent)
        self._locks: dict[str, asyncio.Lock] = {}

    def names(self) -> list[str]:
        return sorted(p.parent.name for p in self._directory.glob("*/recipe.toml"))

    def recipe(self, name: str) -> Shipped:
        """Raises TEMPLATE_NOT_FOUND, CONFIG_INVALID."""
        path = self._path(name)
        loaded = recipes.load(path)
        both = f"{recipes.digest(path)}\n{self._agent.digest}\n"
        digest = f"sha256:{hashlib.sha256(both.encode()).hexdigest()}"
        return Shipped(name, digest, dict(loaded.config))

    async def build(self, name: str, progress: Progress, *, force: bool = False) -> Image:
        """The image of the recipe and the agent as they are now; what is already there is used unless
        ``force``, which fetches the packages anew. One build of a name at a time. Raises
        TEMPLATE_NOT_FOUND, TEMPLATE_BUILD_FAILED, STORAGE_FULL."""
        path = self._path(name)
        async with self._locks.setdefault(name, asyncio.Lock()):
            loaded = await asyncio.to_thread(recipes.load, path)
            digest = await asyncio.to_thread(recipes.digest, path)
            return await self._builder.build(path, loaded, digest, progress, force=force)

    def _path(self, name: str) -> Path:
        if name not in self.names():
            raise NotFoundError(
                f"There is no recipe {name[:64]!r}; there are: {', '.join(self.names())}.",
                code="TEMPLATE_NOT_FOUND",
            )
        return self._directory / name
