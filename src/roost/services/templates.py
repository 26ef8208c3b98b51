"""Templates: what machines start from, what they are called, and the building of those that are shipped.

A tenant's template is immutable: a build makes a new one, and names (tags) move to it. Machines keep the one they
were made from, which stays as long as they do. A shipped one is its recipe's name, whatever is built of it last.
"""

from __future__ import annotations

import asyncio
import builtins
import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa

from roost import ids
from roost.clock import Clock
from roost.errors import ConflictError, ForbiddenError, MachineError, NotFoundError, RoostError
from roost.services.images import Images
from roost.services.models import Progress, Template
from roost.storage.interface import Image, Storage
from roost.store import Store
from roost.store import templates as rows
from roost.templates import reference
from roost.templates.reference import LATEST, Reference

# What machines that are directories of the host are made from: nothing but what the host has.
HOST = Template(
    id="host",
    tenant_id=None,
    name="host",
    status="ready",
    digest="",
    recipe_digest=None,
    size_bytes=None,
    config={},
    error=None,
    created_at=datetime.fromtimestamp(0, UTC),
    updated_at=datetime.fromtimestamp(0, UTC),
)


class Recipe(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str:
        """Of what the image is made from: another digest, another image."""

    @property
    def config(self) -> Mapping[str, Any]:
        """env, user, workdir, no_new_privs, ..."""

    @property
    def dockerfile(self) -> Path | None:
        """Of one that is built in a machine."""

    @property
    def parents(self) -> tuple[str, ...]:
        """Shipped recipes that must be built before it."""


class ShippedRecipe(Protocol):
    """One that is built in a machine."""

    @property
    def name(self) -> str: ...

    @property
    def dockerfile(self) -> Path: ...


@dataclass(frozen=True, slots=True)
class Made:
    """What building a recipe in a machine gave."""

    image: Image
    config: Mapping[str, Any]
    parent_id: str | None


# (recipe, id of its row, progress, force, driver)
Maker = Callable[[Any, str, Progress, bool, str | None], Awaitable[Made]]


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
        self.images = Images(store, storage)
        self._images: dict[str, Image] = {}
        self._builds: dict[str, asyncio.Task[Template]] = {}
        self._listeners: dict[str, list[Progress]] = {}
        self.maker: Maker | None = None  # builds recipes in machines

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

    async def list(self, tenant: str, unnamed: bool = False) -> builtins.list[Template]:
        """By name: the tenant's that have one (``unnamed``: all of it), and the shipped; recipes that nobody built yet
        have status ``unbuilt``."""

        def fn(connection: sa.Connection) -> builtins.list[Template]:
            tags = rows.tags_of(connection, tenant)
            return [_template(row, tags) for row in rows.visible(connection, tenant)]

        found = [t for t in await self._store.read(fn) if t.tags or t.tenant_id is None or unnamed]
        shipped = {t.name for t in found if t.tenant_id is None}
        found += [self._unbuilt(name) for name in self._recipes.names() if name not in shipped]
        return sorted(found, key=lambda t: (t.tags[0] if t.tags else t.name, t.created_at))

    async def get(self, tenant: str, name: str) -> Template:
        """By id, name, name:tag or name@digest; the tenant's own first. Raises TEMPLATE_NOT_FOUND,
        VALIDATION_FAILED."""
        asked = reference.parse(name)

        def fn(connection: sa.Connection) -> Template | None:
            row = self._row(connection, tenant, asked)
            return None if row is None else _template(row, rows.tags_of(connection, tenant))

        found = await self._store.read(fn)
        if found is None and asked.tag == LATEST and asked.name in self._recipes.names():
            found = self._unbuilt(asked.name)
        if found is not None:
            return found
        names = ", ".join(t.tags[0] for t in await self.list(tenant)) or "none"
        raise NotFoundError(
            f"There is no template {name[:64]!r}; there are: {names[:1000]}.",
            code="TEMPLATE_NOT_FOUND",
        )

    @staticmethod
    def _row(connection: sa.Connection, tenant: str, asked: Reference) -> rows.Row | None:
        if asked.name is None:
            return rows.find(connection, tenant, str(asked.id))
        if asked.digest is not None:
            return rows.by_digest(connection, tenant, asked.digest, asked.name)
        assert asked.tag is not None
        row = rows.tagged(connection, tenant, asked.name, asked.tag)
        if row is None and asked.tag == LATEST:
            row = rows.shipped(connection, asked.name)
        return row

    async def tag(self, tenant: str, name: str, other: str) -> Template:
        """Another name of the same template; one that was another's moves. Raises TEMPLATE_NOT_FOUND, INVALID_STATE
        (not built), FORBIDDEN (the name of a shipped recipe)."""
        template = await self.resolve(tenant, name)
        to, tag = reference.tagged(other)
        now = self._clock.now()
        if template.tenant_id is None:
            template = await self._own(tenant, template, to)
        await self._store.write(lambda c: rows.put_tag(c, tenant, to, tag, template.id, now))
        return await self.get(tenant, template.id)

    async def _own(self, tenant: str, shipped: Template, name: str) -> Template:
        """A row of the tenant's for what a shipped one is now: it stays that when the recipe is built anew."""
        now = self._clock.now()
        values = {
            "id": ids.new(),
            "tenant_id": tenant,
            "name": name,
            "status": "ready",
            "digest": shipped.digest,
            "config": dict(shipped.config),
            "size_bytes": shipped.size_bytes,
            "parent_id": None,
            "created_at": now,
            "updated_at": now,
        }

        def fn(connection: sa.Connection) -> str:
            same = rows.by_digest(connection, tenant, str(shipped.digest))
            if same is not None and same["tenant_id"] == tenant:
                return str(same["id"])
            rows.insert(connection, values)
            return str(values["id"])

        found = await self._store.write(fn)
        return await self.get(tenant, found)

    async def delete(self, tenant: str, name: str) -> tuple[builtins.list[str], bool]:
        """A name, and with its last name the template; by id or digest the template with all its names. The names
        that went, and whether the template did. Raises IN_USE (details.used_by: what still needs it), FORBIDDEN
        (shipped)."""
        asked = reference.parse(name)
        template = await self.get(tenant, name)
        if template.tenant_id is None:
            raise ForbiddenError(
                f"The template {template.name} is shipped with Roost: it cannot be deleted."
            )

        def fn(connection: sa.Connection) -> tuple[builtins.list[str], bool]:
            tags = rows.tags_of(connection, tenant).get(template.id, [])
            if asked.tag is not None:
                mine = (str(asked.name), asked.tag)
                if len(tags) > 1:
                    rows.drop_tag(connection, tenant, *mine)
                    return [":".join(mine)], False
            used = rows.dependents(connection, template.id)
            if used:
                said = ", ".join(f"{kind} {each}" for kind, each in used[:5])
                raise ConflictError(
                    f"The template {name[:100]} is still used by {said}"
                    f"{' and others' if len(used) > 5 else ''}: delete those first.",
                    code="IN_USE",
                    details={"used_by": [{"kind": kind, "id": each} for kind, each in used]},
                )
            rows.delete(connection, template.id)
            return [":".join(each) for each in tags], True

        gone, whole = await self._store.write(fn)
        if whole and template.digest is not None:
            await self._forget(template.digest)
        return gone, whole

    async def unused(self, tenant: str | None, before: datetime) -> builtins.list[Template]:
        """Templates of a tenant (None: of all) that have no name, that nothing needs and that were not touched since."""

        def fn(connection: sa.Connection) -> builtins.list[Template]:
            found = []
            for row in rows.nameless(connection, tenant, before):
                if rows.nobody_uses(connection, row["id"]):
                    found.append(_template(row, {}))
            return found

        return await self._store.read(fn)

    async def drop(self, template: Template) -> bool:
        """One of ``unused``, unless something needs it by now."""

        def fn(connection: sa.Connection) -> bool:
            if not rows.nobody_uses(connection, template.id):
                return False
            rows.delete(connection, template.id)
            return True

        dropped = await self._store.write(fn)
        if dropped and template.digest is not None:
            await self._forget(template.digest)
        return dropped

    async def collect(self, before: datetime) -> None:
        for template in await self.unused(None, before):
            await self.drop(template)

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
        self,
        name: str,
        force: bool = False,
        progress: Progress | None = None,
        driver: str | None = None,
    ) -> Template:
        """Builds a shipped recipe; single flight: callers during a build wait for that one and hear its
        progress. A ready template of the same recipe is returned as it is unless ``force``; while one is built
        anew, machines still start from the one before. The build goes on when its callers go away. ``driver``: of the
        machine that one with a Dockerfile is built in.
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
            task = asyncio.ensure_future(self._build(name, force, driver))
            self._builds[name] = task
            task.add_done_callback(lambda done: self._built(name, done))
        try:
            return await asyncio.shield(task)
        finally:
            if progress is not None and progress in listeners:
                listeners.remove(progress)

    async def _build(self, name: str, force: bool, driver: str | None = None) -> Template:
        recipe = self._recipes.recipe(name)
        before = await self._store.read(lambda c: rows.shipped(c, name))
        fresh = before is not None and before["recipe_digest"] == recipe.digest
        if before is not None and before["digest"] is not None and fresh and not force:
            image = await self._image(before["digest"])
            if image is not None and before["status"] == "ready":
                return replace(_template(before, {}), image=image)
        building: dict[str, Any] = {"status": "building", "error": None}
        if recipe.dockerfile is None:
            building["config"] = dict(recipe.config)
        row_id = (await self._put(name, building))["id"]
        try:
            made = await self._made(recipe, row_id, force, driver)
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
        image = made.image
        self._images[image.digest] = image
        row = await self._put(
            name,
            {
                "status": "ready",
                "digest": image.digest,
                "recipe_digest": recipe.digest,
                "size_bytes": image.allocated_bytes,
                "config": dict(made.config),
                "parent_id": made.parent_id,
                "error": None,
            },
        )
        if before is not None and before["digest"] not in (None, image.digest):
            await self._forget(before["digest"])
        return replace(_template(row, {}), image=image)

    async def _made(self, recipe: Recipe, row_id: str, force: bool, driver: str | None) -> Made:
        name = recipe.name

        def tell(stage: str, percent: int | None, message: str) -> None:
            self._tell(name, stage, percent, message)

        if recipe.dockerfile is None:
            image = await self._recipes.build(name, tell, force=force)
            return Made(image, dict(recipe.config), None)
        if self.maker is None:
            raise MachineError("Recipes cannot be built here.", code="TEMPLATE_BUILD_FAILED")
        for parent in recipe.parents:
            await self.build(parent, progress=functools.partial(_above, tell, parent))
        return await self.maker(recipe, row_id, tell, force, driver)

    async def _put(self, name: str, values: Mapping[str, Any]) -> sa.RowMapping:
        now = self._clock.now()
        return await self._store.write(lambda c: rows.put_shipped(c, name, now, values))

    async def _forget(self, digest: str) -> None:
        self._images.pop(digest, None)
        await self.images.drop(digest)

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
            tags=(f"{name}:{LATEST}",),
        )


def _above(tell: Progress, parent: str, stage: str, percent: int | None, message: str) -> None:
    tell(f"{parent}: {stage}", None, message)


def _template(row: rows.Row, tags: Mapping[str, builtins.list[tuple[str, str]]]) -> Template:
    named = tuple(":".join(each) for each in tags.get(row["id"], ()))
    if row["tenant_id"] is None:
        named = (f"{row['name']}:{LATEST}", *named)
    return Template(**row, tags=named)
