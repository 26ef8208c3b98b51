"""Templates: what machines start from, and their building."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import sqlalchemy as sa

from roost.clock import Clock
from roost.errors import ConflictError, MachineError, NotFoundError, RoostError
from roost.services.models import Progress, Template
from roost.storage.interface import Image, Storage
from roost.store import Store
from roost.store import templates as rows


class Recipe(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str:
        """Of what the image is made from: another digest, another image."""

    @property
    def config(self) -> Mapping[str, Any]:
        """env, user, workdir, no_new_privs, ..."""


class Recipes(Protocol):
    """The shipped recipes and their builder (``roost.templates.library``)."""

    def names(self) -> list[str]: ...

    def recipe(self, name: str) -> Recipe: ...

    async def build(self, name: str, progress: Progress, *, force: bool = False) -> Image:
        """Raises TEMPLATE_BUILD_FAILED, STORAGE_FULL; leaves nothing behind when it does."""


class Templates:
    def __init__(self, store: Store, storage: Storage, clock: Clock, recipes: Recipes) -> None:
        self._store = store
        self._storage = storage
        self._clock = clock
        self._recipes = recipes
        self._images: dict[str, Image] = {}
        self._builds: dict[str, asyncio.Task[Template]] = {}
        self._listeners: dict[str, list[Progress]] = {}

    async def open(self) -> None:
        """At daemon start: what was being built is not any more."""
        now = self._clock.now()
        error = {"error_code": "TEMPLATE_BUILD_FAILED", "message": "The daemon stopped meanwhile."}
        await self._store.write(lambda c: rows.abandon_builds(c, now, error))

    async def close(self) -> None:
        """Stops the builds under way."""
        tasks = list(self._builds.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def list(self, tenant: str) -> builtins.list[Template]:
        """By name; shipped recipes that nobody built yet have status ``unbuilt``."""
        found: dict[str, Template] = {}
        for row in await self._store.read(lambda c: rows.visible(c, tenant)):
            found.setdefault(row["name"], Template(**row))
        for name in self._recipes.names():
            if name not in found:
                found[name] = self._unbuilt(name)
        return [found[name] for name in sorted(found)]

    async def get(self, tenant: str, name: str) -> Template:
        """Raises TEMPLATE_NOT_FOUND."""
        for template in await self.list(tenant):
            if template.name == name:
                return template
        names = ", ".join(t.name for t in await self.list(tenant)) or "none"
        raise NotFoundError(
            f"There is no template {name[:64]!r}; there are: {names}.", code="TEMPLATE_NOT_FOUND"
        )

    async def resolve(self, tenant: str, name: str) -> Template:
        """The ready template with its ``image``. Raises TEMPLATE_NOT_FOUND, INVALID_STATE (with the command
        that builds it)."""
        template = await self.get(tenant, name)
        if template.digest is not None:
            image = await self._image(template.digest)
            if image is not None:
                return replace(template, image=image)
        build = f"roost template build {name}"
        why = {
            "building": "is being built: wait for it",
            "failed": f"could not be built: run `{build}` to see why",
            "ready": f"has lost its image: run `{build} --force`",
        }.get(template.status, f"is not built yet: run `{build}`")
        raise ConflictError(
            f"The template {name} {why}.",
            details={"template": name, "status": template.status, "remedy": build},
        )

    async def build(
        self, name: str, force: bool = False, progress: Progress | None = None
    ) -> Template:
        """Builds a shipped recipe; single flight: callers during a build wait for that one and hear its
        progress. A ready template of the same recipe is returned as it is unless ``force``; while one is built
        anew, machines still start from the one before. The build goes on when its callers go away.
        Raises TEMPLATE_NOT_FOUND, TEMPLATE_BUILD_FAILED, STORAGE_FULL."""
        if name not in self._recipes.names():
            raise NotFoundError(
                f"There is no shipped recipe {name[:64]!r}; there are: "
                f"{', '.join(self._recipes.names())}.",
                code="TEMPLATE_NOT_FOUND",
            )
        listeners = self._listeners.setdefault(name, [])
        if progress is not None:
            listeners.append(progress)
        task = self._builds.get(name)
        if task is None:
            task = asyncio.ensure_future(self._build(name, force))
            self._builds[name] = task
            task.add_done_callback(lambda done: self._built(name, done))
        try:
            return await asyncio.shield(task)
        finally:
            if progress is not None and progress in listeners:
                listeners.remove(progress)

    async def _build(self, name: str, force: bool) -> Template:
        recipe = self._recipes.recipe(name)
        before = await self._store.read(lambda c: rows.shipped(c, name))
        fresh = before is not None and before["recipe_digest"] == recipe.digest
        if before is not None and before["digest"] is not None and fresh and not force:
            image = await self._image(before["digest"])
            if image is not None and before["status"] == "ready":
                return replace(Template(**before), image=image)
        await self._put(name, {"status": "building", "error": None, "config": dict(recipe.config)})
        try:
            image = await self._recipes.build(name, lambda *p: self._tell(name, *p), force=force)
        except Exception as failure:
            error = (
                failure
                if isinstance(failure, RoostError)
                else MachineError(
                    f"The template {name} could not be built: {failure}"[:500],
                    code="TEMPLATE_BUILD_FAILED",
                )
            )
            await self._put(name, {"status": "failed", "error": error.to_wire()})
            raise error from failure
        self._images[image.digest] = image
        row = await self._put(
            name,
            {
                "status": "ready",
                "digest": image.digest,
                "recipe_digest": recipe.digest,
                "size_bytes": image.allocated_bytes,
                "error": None,
            },
        )
        if before is not None and before["digest"] not in (None, image.digest):
            await self._forget(before["digest"])
        return replace(Template(**row), image=image)

    async def _put(self, name: str, values: Mapping[str, Any]) -> sa.RowMapping:
        now = self._clock.now()
        return await self._store.write(lambda c: rows.put_shipped(c, name, now, values))

    async def _forget(self, digest: str) -> None:
        if not await self._store.read(lambda c: rows.image_needed(c, digest)):
            self._images.pop(digest, None)
            await self._storage.delete_image(digest)

    async def _image(self, digest: str) -> Image | None:
        image = self._images.get(digest)
        if image is None or not image.path.exists():
            self._images = {i.digest: i for i in await self._storage.images()}
            image = self._images.get(digest)
        return image

    def _tell(self, name: str, stage: str, percent: int | None, message: str) -> None:
        for listener in list(self._listeners.get(name, [])):
            listener(stage, percent, message)

    def _built(self, name: str, task: asyncio.Task[Template]) -> None:
        self._builds.pop(name, None)
        self._listeners.pop(name, None)
        if not task.cancelled():
            task.exception()

    def _unbuilt(self, name: str) -> Template:
        recipe = self._recipes.recipe(name)
        now = self._clock.now()
        return Template(
            id="",
            tenant_id=None,
            name=name,
            status="unbuilt",
            digest=None,
            recipe_digest=recipe.digest,
            size_bytes=None,
            config=recipe.config,
            error=None,
            created_at=now,
            updated_at=now,
        )
