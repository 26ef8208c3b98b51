"""The recipes this installation has, and their building: what the services call."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import roost
from roost.drivers.tree import AgentBinary, default_agent
from roost.errors import InvalidRequestError, NotFoundError, UnsupportedError
from roost.storage.interface import Image
from roost.storage.service import PoolStorage
from roost.templates import dockerfile
from roost.templates import recipe as recipes
from roost.templates.build import Builder
from roost.templates.plan import Plan
from roost.templates.progress import Progress

DOCKERFILE = "Dockerfile"
KINDS = ("recipe.toml", DOCKERFILE)


@dataclass(frozen=True, slots=True)
class Shipped:
    name: str
    digest: str  # of what the image is made from, the agent included: another digest, another image
    config: Mapping[str, Any]  # of one with a Dockerfile: known once it is built
    dockerfile: Path | None = None
    parents: tuple[str, ...] = ()  # shipped recipes it begins from


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
        return sorted({p.parent.name for kind in KINDS for p in self._directory.glob(f"*/{kind}")})

    def recipe(self, name: str) -> Shipped:
        """Raises TEMPLATE_NOT_FOUND, CONFIG_INVALID, DOCKERFILE_INVALID."""
        return self._recipe(name, ())

    def _recipe(self, name: str, children: tuple[str, ...]) -> Shipped:
        if name in children:
            raise InvalidRequestError(
                f"The recipes {', '.join(children)} begin from one another.", code="CONFIG_INVALID"
            )
        path = self._path(name)
        digest = recipes.digest(path)
        if (path / "recipe.toml").is_file():
            loaded = recipes.load(path)
            return Shipped(name, self._named(digest, self._agent.digest), dict(loaded.config))
        text = (path / DOCKERFILE).read_text()
        parent = Plan(dockerfile.parse(text), {}).check()
        above = self._recipe(parent, (*children, name))
        # What it begins from and our agent are in its image, too.
        return Shipped(name, self._named(digest, above.digest), {}, path / DOCKERFILE, (parent,))

    @staticmethod
    def _named(*parts: str) -> str:
        both = "".join(f"{part}\n" for part in parts)
        return f"sha256:{hashlib.sha256(both.encode()).hexdigest()}"

    async def build(self, name: str, progress: Progress, *, force: bool = False) -> Image:
        """The image of the recipe and the agent as they are now; what is already there is used unless
        ``force``, which fetches the packages anew. One build of a name at a time. Raises
        TEMPLATE_NOT_FOUND, TEMPLATE_BUILD_FAILED, STORAGE_FULL, UNSUPPORTED (this daemon is not root)."""
        if os.geteuid() != 0:
            raise UnsupportedError(
                "Templates are disks, of rungs that need root, and this daemon has not got it; a workspace needs none."
            )
        path = self._path(name)
        async with self._locks.setdefault(name, asyncio.Lock()):
            loaded = await asyncio.to_thread(recipes.load, path)
            digest = await asyncio.to_thread(recipes.digest, path)
            return await self._builder.build(path, loaded, digest, progress, force=force)

    async def seal(self, layer: Image, content: str, config: Mapping[str, Any]) -> Image:
        """A template's image of a build's last layer: with this agent, named by all that is in it. ``content``: the
        layer's digest. Raises STORAGE_FULL, TEMPLATE_BUILD_FAILED."""
        return await self._builder.seal(layer, content, config)

    def _path(self, name: str) -> Path:
        if name not in self.names():
            raise NotFoundError(
                f"There is no recipe {name[:64]!r}; there are: {', '.join(self.names())}.",
                code="TEMPLATE_NOT_FOUND",
            )
        return self._directory / name
