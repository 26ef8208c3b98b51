"""Builds: Dockerfiles to templates, in machines of their own, so many at the same time.

    waiting (for its context) -> queued -> running -> succeeded | failed | cancelled

A build is its row, its log and a task. Values of its secrets are in memory alone, so a build does not survive its
daemon: the next one says so in row and log, and what the build had made is nobody's and swept.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import sqlalchemy as sa
import structlog

from roost import ids
from roost.drivers.interface import Size
from roost.engine import quotas
from roost.engine.engine import Engine
from roost.engine.ladder import SANDBOX, Least
from roost.engine.rungs import ANY
from roost.errors import (
    ConflictError,
    InvalidRequestError,
    LimitError,
    MachineError,
    NotFoundError,
    RoostError,
    UnsupportedError,
    discreet,
)
from roost.services import launching, limits
from roost.services.bases import Bases, needs_context
from roost.services.build_log import BuildLog, Event, follow
from roost.services.building import Building, Built, Keeper, Recipe, Seal
from roost.services.images import Use
from roost.services.layers import Layers
from roost.services.models import Build, Page
from roost.services.redaction import Redaction
from roost.services.templates import Made, ShippedRecipe, Templates
from roost.services.workshop import Place
from roost.store import builds as rows
from roost.store import keys
from roost.store import layers as layer_rows
from roost.store import templates as template_rows
from roost.store.cursor import Cursors
from roost.templates import copying, dockerfile, reference, roosttoml
from roost.templates.base import BaseImages
from roost.templates.context import Context
from roost.templates.pack import pack
from roost.templates.plan import SECRET, Plan

log = structlog.get_logger(__name__)

CONTEXT_S = 900.0  # that a build waits for its context
MAX_OPEN = 20  # builds of a tenant that have not ended
MAX_TAGS = 20
MAX_ARGS = 100
MAX_SECRETS = 50
MAX_SECRET_BYTES = (
    64 * 1024
)  # of all, passwords of registries among them: what finds them again is a hundred times that
KEEP = timedelta(days=7)  # of builds that have ended, and of templates nobody can name
SHIPPED_ORDER = (
    "runc",
    "gvisor",
)  # of our own recipes: nothing in them is a stranger's, and runc is faster


@dataclass(frozen=True, slots=True)
class StartBuild:
    """A build as asked for. The service validates it."""

    tags: tuple[str, ...]
    dockerfile: str
    roost_toml: str | None = None
    args: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    credentials: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    driver: str | None = None
    no_cache: bool = False
    keep_failed: bool = False
    created_by: str | None = None


@dataclass(slots=True)
class _Open:
    """A build that has not ended."""

    tenant: str
    request: StartBuild
    recipe: Recipe
    log: BuildLog
    redaction: Redaction
    driver: str
    context: Path | None = None
    receiving: bool = False
    cancelled: bool = False
    ended: bool = False
    made: dict[str, Any] | None = None  # of its end, when it ended well
    # Columns ahead of its row: what went by in a moment is not worth a sync each.
    progress: dict[str, Any] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None


class Builds:
    """Every call takes the caller's tenant first; another tenant's build answers BUILD_NOT_FOUND."""

    def __init__(
        self,
        engine: Engine,
        templates: Templates,
        layers: Layers,
        seal: Seal,
        directory: Path,
        foreign: BaseImages | None = None,
    ) -> None:
        self._engine = engine
        self._store = engine.store
        self._templates = templates
        self._layers = layers
        self._seal = seal
        self._directory = directory
        self._bases = Bases(engine, layers, templates.resolve, foreign)
        self._turns = asyncio.Semaphore(engine.settings.builds_at_once)
        self._hiding = asyncio.Semaphore(2)
        self._whose: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._open: dict[str, _Open] = {}
        self._shipping = 0  # builds of shipped recipes under way
        self._cursors = Cursors(engine.identity.secret)
        templates.maker = self.shipped

    async def open(self) -> None:
        """At daemon start: what was being built is not any more, and what it made is swept."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        now = self._engine.clock.now()
        error = MachineError(
            "The daemon stopped meanwhile: build again; what was cached is there.",
            code="TEMPLATE_BUILD_FAILED",
        ).to_wire()

        def fn(connection: sa.Connection) -> list[rows.Row]:
            found = rows.open_ones(connection)
            for row in found:
                values = {"status": "failed", "error": error, "ended_at": now}
                if (template_id := row["template_id"]) is not None:
                    machine_id = template_rows.abandon(connection, template_id, error, now)
                    values |= {"template_id": None, "machine_id": machine_id}
                rows.update(connection, row["id"], values)
            return found

        for row in await self._store.write(fn):
            if self._path(row["id"]).exists():
                with contextlib.closing(BuildLog(self._path(row["id"]), Redaction(()))) as left:
                    left.add("end", status="failed", error=error)
        await self._layers.sweep()
        kept = await self._store.read(rows.ids)
        for path in self._directory.iterdir():
            if path.stem not in kept:
                path.unlink(missing_ok=True)

    async def close(self) -> None:
        """Stops the builds under way."""
        tasks = [each.task for each in self._open.values() if each.task is not None]
        for build_id, each in list(self._open.items()):
            if each.task is None:
                await self._end(build_id, each, "failed", _stopped())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- what can be asked ----------------------------------------------------------------------

    async def start(self, tenant: str, request: StartBuild) -> tuple[Build, bool]:
        """The build, and whether it waits for a context (``give``). Raises DOCKERFILE_INVALID (with the line),
        VALIDATION_FAILED, RUNG_UNAVAILABLE, RUNG_REFUSED, QUOTA_EXCEEDED, LIMIT_EXCEEDED."""
        tags = _check(request)
        # A text may be a MiB, and words are read one character after another.
        parsed, beside, base = await asyncio.to_thread(_read, request)
        wanted = needs_context(base) or any(
            each.keyword in ("COPY", "ADD")
            and (each.words or len(each.text.split()) > len(each.heredocs) + 1)
            for each in parsed.instructions
        )
        least = await self._store.read(lambda c: self._engine.least(c, tenant))
        driver = self._driver(request.driver, least)
        build_id, now = ids.new(), self._engine.clock.now()
        values = {
            "id": build_id,
            "tenant_id": tenant,
            "created_by": request.created_by,
            "tags": tags,
            "driver": driver,
            "status": "waiting" if wanted else "queued",
            "step": 0,
            "steps": len(parsed.instructions),
            "cached": 0,
            "created_at": now,
        }

        def fn(connection: sa.Connection) -> None:
            quotas.check(connection, tenant, {})
            if len(rows.open_ones(connection, tenant)) >= MAX_OPEN:
                raise LimitError(
                    f"{MAX_OPEN} builds of yours have not ended yet: wait for one, or cancel it.",
                    code="LIMIT_EXCEEDED",
                )
            most = self._engine.settings.tenant_templates
            used = template_rows.count(connection, tenant)
            if used >= most:
                raise quotas.exceeded(
                    "templates",
                    most,
                    used,
                    1,
                    "Delete some (roost template rm), or roost template gc.",
                )
            rows.insert(connection, values)

        redaction = await self._redaction(tenant, request)
        recipe = Recipe(
            parsed, beside, request.args, request.secrets, request.credentials, request.no_cache
        )
        made = BuildLog(self._path(build_id), redaction)
        try:
            await self._store.write(fn)
        except BaseException:
            made.close()
            made.path.unlink(missing_ok=True)
            raise
        each = self._open[build_id] = _Open(tenant, request, recipe, made, redaction, driver)
        if wanted:
            loop = asyncio.get_running_loop()
            each.timer = loop.call_later(CONTEXT_S, self._forsaken, build_id)
        else:
            self._begin(build_id, each)
        return await self.get(tenant, build_id), wanted

    async def _redaction(self, tenant: str, request: StartBuild) -> Redaction:
        """Seconds, of long values: in a thread, and one at a time of a tenant's, for threads are everybody's."""
        hidden = _hidden(request)
        if not hidden:
            return Redaction(())
        async with self._whose.setdefault(tenant, asyncio.Lock()), self._hiding:
            return await asyncio.to_thread(Redaction, hidden)

    async def give(self, tenant: str, build_id: str, pieces: AsyncIterator[bytes]) -> Build:
        """Its context, a tar; the build then begins. Raises INVALID_STATE (it waits for none), INVALID_BODY,
        PAYLOAD_TOO_LARGE, STORAGE_FULL: it waits on."""
        row = await self._row(tenant, build_id)
        each = self._open.get(build_id)
        if each is None or each.receiving or each.context is not None or row["status"] != "waiting":
            raise ConflictError(
                f"The build is {row['status']}: it waits for no context.",
                details={"status": row["status"]},
            )
        each.receiving = True
        path = self._engine.parts.storage.tmp / f"context-{build_id}.tar"
        try:
            await self._receive(path, pieces)
            await asyncio.to_thread(Context.read, path)
            if each.cancelled or each.ended:
                raise ConflictError("The build was cancelled meanwhile.")
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            each.receiving = False
        each.context = path
        if each.timer is not None:
            each.timer.cancel()
        each.progress["status"] = "queued"
        self._begin(build_id, each)
        return await self.get(tenant, build_id)

    async def get(self, tenant: str, build_id: str) -> Build:
        return self._now(await self._row(tenant, build_id))

    def _now(self, row: rows.Row) -> Build:
        each = self._open.get(row["id"])
        return Build.from_row(row if each is None else {**row, **each.progress})

    async def list(
        self,
        tenant: str,
        status: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[Build]:
        """Newest first. Raises INVALID_CURSOR."""
        if not 1 <= limit <= 500:
            raise limits.bad("limit", "is from 1 to 500")
        scope = json.dumps(["builds", tenant, status])
        after = None if cursor is None else self._cursors.decode(scope, cursor)
        found = await self._store.read(
            lambda c: rows.page(c, tenant, status=status, limit=limit + 1, after=after)
        )
        items = [self._now(row) for row in found[:limit]]
        last = items[-1] if len(found) > limit else None
        return Page(items, self._cursors.encode(scope, last.created_at, last.id) if last else None)

    async def cancel(self, tenant: str, build_id: str) -> Build:
        """One that has ended stays as it is."""
        await self._row(tenant, build_id)
        each = self._open.get(build_id)
        if each is not None and not each.cancelled:
            each.cancelled = True
            if each.task is None:
                await self._end(build_id, each, "cancelled", _cancelled())
            else:
                each.task.cancel()
        if each is not None and each.task is not None:
            await asyncio.wait({each.task})
        return await self.get(tenant, build_id)

    async def follow(
        self, tenant: str, build_id: str, after: int = 0
    ) -> AsyncGenerator[tuple[int, Event], None]:
        """Its log from that place on, each event with the place behind it: {event: "step"|"log"|"end", ...}; of a
        build under way until its end."""
        await self._row(tenant, build_id)
        each = self._open.get(build_id)
        return follow(self._path(build_id), None if each is None else each.log, after)

    # --- shipped recipes --------------------------------------------------------------------------

    async def shipped(
        self,
        recipe: ShippedRecipe,
        template_id: str,
        tell: Callable[[str, int | None, str], None],
        force: bool = False,
        driver: str | None = None,
    ) -> Made:
        """A recipe of this installation, whose layers are nobody's. Raises as ``Building.run``."""
        parsed = dockerfile.parse(recipe.dockerfile.read_text())
        path = recipe.dockerfile.with_name(roosttoml.FILE)
        beside = roosttoml.parse(path.read_text(), str(path)) if path.exists() else None
        build_id = ids.new()
        archive = self._engine.parts.storage.tmp / f"context-{build_id}.tar"
        chosen = self._driver(driver or self._of_shipped())
        place = Place(keys.NOBODY, template_id, recipe.name, chosen, self._size(chosen))
        made = BuildLog(self._path(build_id), Redaction(()))
        telling = asyncio.ensure_future(_told(follow(made.path, made), tell))
        self._shipping += 1
        try:
            await asyncio.to_thread(_pack, recipe.dockerfile.parent, archive)
            context = await asyncio.to_thread(Context.read, archive)
            async with self._turns, self._layers.images.using() as use:
                building = Building(
                    self._engine, self._layers, self._bases, self._seal,
                    Recipe(parsed, beside, no_cache=force), place, context, made, _quiet, use,
                )  # fmt: skip
                built = await building.run()
            return Made(built.image, built.config, built.parent_id)
        finally:
            self._shipping -= 1
            await asyncio.to_thread(archive.unlink, missing_ok=True)
            made.add("end")
            made.close()
            await telling
            made.path.unlink(missing_ok=True)

    # --- collecting -------------------------------------------------------------------------------

    async def collect(self) -> None:
        """What nobody will ask for again: logs and rows of builds that ended long ago, templates nobody can name, and
        layers beyond the bound of the cache."""
        before = self._engine.clock.now() - KEEP
        for build_id in await self._store.read(lambda c: rows.ended_before(c, before)):
            await self._forget(build_id)
        await self._templates.collect(before)
        # Also while builds are under way, or there might never be a time for it: what they use stays till their end.
        await self._layers.bound(self._engine.settings.build_cache_gib << 30)

    async def gc(
        self, tenant: str, older_than_s: float, dry_run: bool = False, shipped: bool = False
    ) -> dict[str, Any]:
        """A tenant's templates without a name, layers and ended builds that were not used for so long; ``shipped``: also
        the layers of shipped recipes. {dry_run, templates, layers, builds, bytes}."""
        before = self._engine.clock.now() - timedelta(seconds=older_than_s)
        owners = {tenant, keys.NOBODY} if shipped else {tenant}
        unused = await self._templates.unused(tenant, before)
        found = [
            row
            for row in await self._store.read(layer_rows.every)
            if row["tenant_id"] in owners and row["used_at"] <= before
        ]
        # What is under way may begin from any.
        found = [row for row in found if row["tenant_id"] not in self._busy()]
        sizes = await self._layers.sizes() if found else {}
        ended = await self._store.read(lambda c: rows.ended_before(c, before, tenant))
        if not dry_run:
            unused = [each for each in unused if await self._templates.drop(each)]
            for row in found:
                await self._layers.forget(row)
            for build_id in ended:
                await self._forget(build_id)
        return {
            "dry_run": dry_run,
            "templates": [each.id for each in unused],
            "layers": len(found),
            "builds": len(ended),
            "bytes": sum(sizes.get(row["digest"], 0) for row in found),
        }

    def _busy(self) -> set[str]:
        """Whose builds are under way."""
        busy = {each.tenant for each in self._open.values()}
        return {*busy, keys.NOBODY} if self._shipping else busy

    async def _forget(self, build_id: str) -> None:
        await self._store.write(functools.partial(rows.delete, build_id=build_id))
        self._path(build_id).unlink(missing_ok=True)

    # --- helpers --------------------------------------------------------------------------------

    def _path(self, build_id: str) -> Path:
        return self._directory / f"{build_id}.jsonl"

    async def _row(self, tenant: str, build_id: str) -> rows.Row:
        row = await self._store.read(lambda c: rows.get(c, build_id))
        if row is None or row["tenant_id"] != tenant:
            raise NotFoundError(f"There is no build {build_id[:64]}.", code="BUILD_NOT_FOUND")
        return row

    async def _update(self, build_id: str, values: Mapping[str, Any]) -> None:
        await self._store.write(lambda c: rows.update(c, build_id, values))

    def _driver(self, asked: str | None, least: Least = ANY) -> str:
        """A container's unless another is asked for, or its tenant is held to more: the host may mount what it wrote."""
        rungs = self._engine.rungs
        if asked is not None:
            name, capabilities = rungs.choose("auto", asked, least)
            if not capabilities.disk_image or capabilities.level < SANDBOX:
                raise UnsupportedError(f"The driver {asked} cannot build templates.")
            return name
        return rungs.choose("auto" if least.level > SANDBOX else "container", None, least)[0]

    def _of_shipped(self) -> str | None:
        rungs = self._engine.rungs
        found = (each for each in SHIPPED_ORDER if each in rungs.offered and rungs.available(each))
        return next(found, None)

    def _size(self, driver: str) -> Size:
        settings, host = self._engine.settings, self._engine.host()
        memory = min(settings.build_memory_mib, host.memory_mib)
        return Size(min(settings.build_vcpu, host.vcpu), memory, 10)

    async def _receive(self, path: Path, pieces: AsyncIterator[bytes]) -> None:
        most = self._engine.settings.build_context_mib << 20
        size = 0
        with path.open("xb") as file:
            async for piece in pieces:
                size += len(piece)
                if size > most:
                    raise copying.too_large("The context", most)
                if size % (64 << 20) < len(piece):
                    await self._engine.parts.storage.require(64 << 20)
                await asyncio.to_thread(file.write, piece)

    def _forsaken(self, build_id: str) -> None:
        each = self._open.get(build_id)
        if each is None or each.task is not None:
            return
        if each.receiving:  # it may break off
            loop = asyncio.get_running_loop()
            each.timer = loop.call_later(CONTEXT_S, self._forsaken, build_id)
        else:
            failure = InvalidRequestError(
                f"No context came within {CONTEXT_S:g} s: PUT /v1/builds/{build_id}/context.",
                code="INVALID_BODY",
            )
            self._engine.background(self._end(build_id, each, "failed", failure))

    def _begin(self, build_id: str, each: _Open) -> None:
        each.task = asyncio.ensure_future(self._work(build_id, each))

    async def _work(self, build_id: str, each: _Open) -> None:
        template_id = ids.new()
        building: Building | None = None
        ending: asyncio.Task[None] | None = None
        try:
            if each.context is not None and self._turns.locked():
                await self._update(build_id, {"status": "queued"})
            async with self._turns, self._layers.images.using() as use:
                building = await self._started(build_id, template_id, each, use)
                built = await building.run()
                ending = asyncio.ensure_future(self._finished(build_id, template_id, each, built))
                await asyncio.shield(ending)
        except asyncio.CancelledError:
            if ending is not None:  # Too late, unless it fails: its names move in one transaction.
                await asyncio.wait({ending})
            if not each.ended:
                failure = _cancelled() if each.cancelled else _stopped()
                status = "cancelled" if each.cancelled else "failed"
                await self._end(build_id, each, status, failure, template_id, building)
        except Exception as failure:
            known = failure
            if not isinstance(failure, RoostError):
                log.error("build.failed", build_id=build_id, exc_info=failure)
                known = MachineError(
                    "The build failed in a way nobody foresaw; the daemon's log has the reason.",
                    code="TEMPLATE_BUILD_FAILED",
                )
            assert isinstance(known, RoostError)
            await self._end(build_id, each, "failed", known, template_id, building)
        finally:
            if each.made is not None:  # told when nothing is held for it any more
                self._shut(build_id, each, {"status": "succeeded", **each.made})

    async def _started(self, build_id: str, template_id: str, each: _Open, use: Use) -> Building:
        context = None
        if each.context is not None:
            context = await asyncio.to_thread(Context.read, each.context)
        now = self._engine.clock.now()
        request = each.request
        name = reference.tagged(request.tags[0])[0]
        row = {
            "id": template_id,
            "tenant_id": each.tenant,
            "name": name,
            "status": "building",
            "config": {},
            "created_at": now,
            "updated_at": now,
        }

        def fn(connection: sa.Connection) -> None:
            template_rows.insert(connection, row)
            rows.update(
                connection,
                build_id,
                {"status": "running", "started_at": now, "template_id": template_id},
            )

        await self._store.write(fn)
        each.progress.pop("status", None)
        keeper = None
        if request.keep_failed:
            keeper = Keeper(each.tenant, request.created_by, _machine_name(name))

        def told(step: int, steps: int, cached: int) -> None:
            each.progress |= {"step": step, "steps": steps, "cached": cached}

        place = Place(each.tenant, template_id, name, each.driver, self._size(each.driver))
        return Building(
            self._engine, self._layers, self._bases, self._seal, each.recipe, place, context, each.log, told,
            use, keeper,
        )  # fmt: skip

    async def _finished(self, build_id: str, template_id: str, each: _Open, built: Built) -> None:
        """It ends well: its template, or the one that is the same already, is named. ``_shut`` remains."""
        now = self._engine.clock.now()
        digest = built.image.digest
        values = {
            "status": "ready",
            "digest": digest,
            "config": dict(built.config),
            "size_bytes": built.image.allocated_bytes,
            "parent_id": built.parent_id,
            "updated_at": now,
        }
        ended = {**each.progress, "status": "succeeded", "digest": digest, "ended_at": now}

        def fn(connection: sa.Connection) -> str:
            same = template_rows.by_digest(connection, each.tenant, digest)
            if same is not None and same["tenant_id"] == each.tenant:
                template_rows.delete(connection, template_id)
                found = str(same["id"])
            else:
                template_rows.update(connection, template_id, values)
                found = template_id
            for text in each.request.tags:
                name, tag = reference.tagged(text)
                template_rows.put_tag(connection, each.tenant, name, tag, found, now)
            rows.update(connection, build_id, {**ended, "template_id": found})
            return found

        found = await self._store.write(fn)
        each.ended = True
        each.made = {"template_id": found, "digest": digest}

    async def _end(
        self,
        build_id: str,
        each: _Open,
        status: str,
        failure: RoostError,
        template_id: str | None = None,
        building: Building | None = None,
    ) -> None:
        """It ends otherwise: of its template nothing is left, unless a machine was kept that needs it."""
        if each.ended:
            return
        each.ended = True
        kept = None if building is None else building.machine_id
        error = _redacted(discreet(failure), each)
        now = self._engine.clock.now()
        # What it would start is not there to be started.
        config = {} if building is None else building.config
        config = {key: config.get(key) for key in ("user", "workdir")}
        values = {
            **each.progress,
            "status": status,
            "error": error,
            "ended_at": now,
            "template_id": None,
            "machine_id": kept,
        }

        def fn(connection: sa.Connection) -> None:
            if template_id is not None and kept is None:
                template_rows.delete(connection, template_id)
            elif template_id is not None:
                left = {"status": "failed", "error": error, "config": config}
                template_rows.update(connection, template_id, left)
            rows.update(connection, build_id, values)

        try:
            await asyncio.shield(self._store.write(fn))
        finally:
            self._shut(build_id, each, {"status": status, "error": error})

    def _shut(self, build_id: str, each: _Open, data: Mapping[str, Any]) -> None:
        self._open.pop(build_id, None)
        each.log.add("end", **data)
        each.log.close()
        if each.timer is not None:
            each.timer.cancel()
        if each.context is not None:
            each.context.unlink(missing_ok=True)
        error = data.get("error") or {}
        log.info(
            "build.end", build_id=build_id, status=data["status"], error=error.get("error_code")
        )


def _read(request: StartBuild) -> tuple[dockerfile.Dockerfile, roosttoml.RoostToml | None, str]:
    """And what it begins from."""
    parsed = dockerfile.parse(request.dockerfile)
    beside = None if request.roost_toml is None else roosttoml.parse(request.roost_toml)
    return parsed, beside, Plan(parsed, request.args).check()


def _check(request: StartBuild) -> list[str]:
    """The tags, whole. Raises VALIDATION_FAILED."""
    if not 1 <= len(request.tags) <= MAX_TAGS:
        raise limits.bad("tags", f"are from 1 to {MAX_TAGS} names")
    found = [":".join(reference.tagged(each)) for each in request.tags]
    if len(request.args) > MAX_ARGS:
        raise limits.bad("build_args", f"are {MAX_ARGS} at most")
    launching.check_env(request.args)
    if len(request.secrets) > MAX_SECRETS:
        raise limits.bad("secrets", f"are {MAX_SECRETS} at most")
    for name, value in request.secrets.items():
        if not SECRET.fullmatch(name):
            raise limits.bad(
                "secrets",
                "have ids of 1 to 64 letters, digits, '.', '_' and '-', as RUN names them",
            )
        if not value or "\0" in value or not limits.utf8(value):
            raise limits.bad("secrets", f"are text without a NUL, and not empty ({name[:64]})")
    if not all(
        limits.utf8(value) for each in request.credentials.values() for value in each.values()
    ):
        raise limits.bad("credentials", "are text")
    if sum(len(value.encode()) for value in _hidden(request)) > MAX_SECRET_BYTES:
        raise limits.bad("secrets", f"and passwords are {MAX_SECRET_BYTES} bytes at most in all")
    return found


def _machine_name(name: str) -> str:
    """Of the machine that is kept when ``name`` cannot be built."""
    return re.sub(r"[^a-z0-9-]", "-", f"build-{name}")[:63].strip("-")


def _hidden(request: StartBuild) -> list[str]:
    found = list(request.secrets.values())
    for each in request.credentials.values():
        found += [value for name, value in each.items() if name != "username"]
    return found


def _redacted(failure: RoostError, each: _Open) -> dict[str, Any]:
    """As its row and log keep it."""
    redaction = each.redaction
    wire = failure.to_wire()
    details = {
        key: redaction.text(value) if isinstance(value, str) else value
        for key, value in wire["details"].items()
    }
    return {**wire, "message": redaction.text(wire["message"]), "details": details}


def _cancelled() -> RoostError:
    return ConflictError("The build was cancelled.", details={"status": "cancelled"})


def _stopped() -> RoostError:
    return MachineError(
        "The daemon stopped meanwhile: build again; what was cached is there.",
        code="TEMPLATE_BUILD_FAILED",
    )


def _quiet(step: int, steps: int, cached: int) -> None:
    return None


async def _told(
    events: AsyncGenerator[tuple[int, Event], None],
    tell: Callable[[str, int | None, str], None],
) -> None:
    """A build's log as the progress of a shipped recipe's."""
    steps = step = 1
    name = ""
    async for _, each in events:
        if each["event"] == "step" and "instruction" in each:
            step, steps = each["step"], max(1, each["steps"])
            name = f"{each['instruction'][:100]}{' (cached)' if each['status'] == 'cached' else ''}"
            tell(f"{step}/{steps}", (step - 1) * 95 // steps, name)
        elif each["event"] == "log":
            lines = [line for line in each["text"].splitlines() if line.strip()]
            if lines:
                tell(f"{step}/{steps}", (step - 1) * 95 // steps, lines[-1].strip()[:200])


def _pack(directory: Path, archive: Path) -> None:
    with archive.open("xb") as file:
        for piece in pack(directory):
            file.write(piece)
