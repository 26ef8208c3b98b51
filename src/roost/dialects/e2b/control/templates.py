"""Templates: E2B's name is ours, its build is one of our builds, its tags are our tags.

    POST /v3/templates             names a build that is to come; nothing is done yet
    GET  .../files/{hash}          where an archive of a COPY goes, unless it is there
    PUT  /e2b/files?pass=          the archive, by a signed URL
    POST /v2/templates/.../builds  a Dockerfile made of the steps, and a context made of the archives
    GET  .../builds/{id}/status    how it goes, and what it says

``templateID`` is the template's name: it stays when the template is built anew, as E2B's does.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from roost import ids
from roost.dialects.e2b.control import bodies, names
from roost.dialects.e2b.control.recipe import Recipe, recipe
from roost.dialects.e2b.control.sandboxes import Sandboxes
from roost.dialects.e2b.control.shapes import ENVD_VERSION
from roost.dialects.serving import Json, Services, body, empty, key_id, tenant
from roost.errors import (
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    RoostError,
)
from roost.services import asking
from roost.services.builds import StartBuild
from roost.services.models import Build, Template
from roost.templates import reference

FILES = "/e2b/files"
PAGE = 100  # log entries of one answer
PENDING = 50  # builds of a tenant that are remembered: named and not begun, under way, ended
KEPT = 512 * 1024  # characters of a build's log entries
_STATUS = {"waiting": "waiting", "queued": "building", "running": "building", "succeeded": "ready"}
_NAMESPACE = uuid.UUID("6f1a3d3e-5a5f-4c57-9f0b-1d6f2f6f0b8e")  # of build ids that must be UUIDs


@dataclass(slots=True)
class _Pending:
    tenant: str
    name: str
    tags: tuple[str, ...]
    cpu: float | None
    memory_mib: int | None
    build_id: str | None = None  # ours, once it has begun
    entries: list[dict[str, Any]] = field(default_factory=list)
    kept: int = 0
    said: asyncio.Task[None] | None = None


class Templates:
    def __init__(self, services: Services, sandboxes: Sandboxes) -> None:
        self._s = services
        self._sandboxes = sandboxes
        self._pending: OrderedDict[str, _Pending] = OrderedDict()

    def routes(self) -> list[Route]:
        one = "/templates/{name:path}"
        return [
            Route("/v3/templates", self.request, methods=["POST"]),
            Route("/v2/templates", self.list_, methods=["GET"]),
            Route("/templates", self.list_, methods=["GET"]),
            Route("/templates/tags", self.tag, methods=["POST"]),
            Route("/templates/tags", self.untag, methods=["DELETE"]),
            Route("/templates/aliases/{name:path}", self.alias, methods=["GET"]),
            Route(f"{one}/files/{{hash}}", self.files, methods=["GET"]),
            Route("/v2/templates/{name:path}/builds/{build}", self.start, methods=["POST"]),
            Route(f"{one}/builds/{{build}}/status", self.status, methods=["GET"]),
            Route(f"{one}/builds/{{build}}/logs", self.logs, methods=["GET"]),
            Route(f"{one}/tags", self.tags, methods=["GET"]),
            Route(one, self.get, methods=["GET"]),
            Route(one, self.delete, methods=["DELETE"]),
        ]

    # --- building -------------------------------------------------------------------------------

    async def request(self, request: Request) -> Response:
        asked = await body(request, bodies.NewTemplate)
        name, tag = _named(asked.name or asked.alias or "")
        tags = tuple(dict.fromkeys(asked.tags or [tag]))
        for each in tags:
            reference.tagged(f"{name}:{names.tag_ours(each)}")
        build = ids.new()
        self._pending[build] = _Pending(
            tenant(request), name, tags, asked.cpu_count, asked.memory_mb
        )
        mine = [each for each, found in self._pending.items() if found.tenant == tenant(request)]
        for each in mine[:-PENDING]:
            oldest = self._pending.pop(each)
            if oldest.said is not None:
                oldest.said.cancel()
        answer = {
            "templateID": name,
            "buildID": build,
            "public": False,
            "names": [name],
            "tags": list(tags),
            "aliases": [name],
        }
        return Json(answer, 202)

    async def files(self, request: Request) -> Response:
        whose, digest = tenant(request), request.path_params["hash"]
        answer: dict[str, Any] = {"present": await self._s.build_files.has(whose, digest)}
        if not answer["present"]:
            if not asking.may_change():
                raise ForbiddenError("This key may only read: it sends no files.")
            said = self._s.build_files.pass_of(whose, digest)
            scheme = request.url.scheme
            host = request.headers.get("host", "")
            answer["url"] = f"{scheme}://{host}{FILES}?pass={quote(said)}"
        return Json(answer, 201)

    async def start(self, request: Request) -> Response:
        asked = await body(request, bodies.StartBuild)
        whose, named = tenant(request), request.path_params["build"]
        pending = self._pending.get(named)
        if pending is None or pending.tenant != whose:
            raise NotFoundError(f"Build {named[:64]} was not found", code="BUILD_NOT_FOUND")
        if pending.build_id is not None:
            raise ConflictError("This build has begun already.")
        made = recipe(asked, pending.cpu, pending.memory_mib)
        if asked.from_template is not None:
            made = await self._from(whose, asked.from_template, made)
        wanted = StartBuild(
            tags=tuple(f"{pending.name}:{names.tag_ours(each)}" for each in pending.tags),
            dockerfile=made.dockerfile,
            roost_toml=made.roost_toml,
            credentials=made.credentials,
            no_cache=asked.force,
            created_by=key_id(request),
        )
        archives = {}
        for place, digest in made.archives.items():
            archives[place] = await self._s.build_files.path(whose, digest)
        build, waits = await self._s.builds.start(whose, wanted)
        pending.build_id = build.id
        if waits:
            try:
                await self._s.builds.give(whose, build.id, self._s.build_files.context(archives))
            except BaseException:
                await self._s.builds.cancel(whose, build.id)
                raise
        pending.said = asyncio.create_task(self._listen(pending))
        return Response(status_code=202)

    async def _from(self, whose: str, named: str, made: Recipe) -> Recipe:
        """A snapshot is a template to E2B, too."""
        name = names.ours(named)
        if (found := await self._sandboxes.snapshot(whose, name)) is not None:
            name = f"snapshot:{found}"
        return made.beginning_with(name)

    async def _listen(self, pending: _Pending) -> None:
        assert pending.build_id is not None
        with contextlib.suppress(RoostError):
            found = await self._s.builds.follow(pending.tenant, pending.build_id)
            async with contextlib.aclosing(found):
                async for _, each in found:
                    for entry in _entries(each, self._s.machines.clock.now()):
                        pending.kept += len(entry["message"]) + 100
                        if pending.kept < KEPT:
                            pending.entries.append(entry)

    async def status(self, request: Request) -> Response:
        pending, build = await self._build(request)
        answer: dict[str, Any] = {
            "templateID": request.path_params["name"],
            "buildID": request.path_params["build"],
            "status": "waiting" if build is None else _STATUS.get(build.status, "error"),
            "logs": [],
            "logEntries": [],
        }
        ended = build is not None and build.ended_at is not None
        if pending is not None and pending.said is not None and ended:
            await asyncio.wait({pending.said}, timeout=5)
        if pending is not None:
            offset = request.query_params.get("logsOffset", "0")
            start = int(offset) if offset.isascii() and offset.isdigit() else 0
            answer["logEntries"] = pending.entries[start : start + PAGE]
        if build is not None and answer["status"] == "error":
            answer["reason"] = _reason(build)
        return Json(answer)

    async def logs(self, request: Request) -> Response:
        pending, _ = await self._build(request)
        entries = [] if pending is None else pending.entries
        return Json({"logs": entries[-PAGE:]})

    async def _build(self, request: Request) -> tuple[_Pending | None, Build | None]:
        named, whose = request.path_params["build"], tenant(request)
        pending = self._pending.get(named)
        if pending is not None and pending.tenant == whose:
            if pending.build_id is None:
                return pending, None
            return pending, await self._s.builds.get(whose, pending.build_id)
        return None, await self._s.builds.get(whose, named)

    # --- names ----------------------------------------------------------------------------------

    async def list_(self, request: Request) -> Response:
        return Json([_shape(each) for each in await self._s.templates.list(tenant(request))])

    async def get(self, request: Request) -> Response:
        found = await self._found(request)
        build = {
            "buildID": build_uuid(found),
            "status": "ready" if found.digest is not None else "waiting",
            "createdAt": found.created_at,
            "updatedAt": found.updated_at,
            "cpuCount": 1,
            "memoryMB": 1024,
        }
        return Json({**_shape(found, _asked(request)), "builds": [build]})

    async def alias(self, request: Request) -> Response:
        found = await self._found(request)
        return Json(
            {"templateID": _title(found, _asked(request)), "public": found.tenant_id is None}
        )

    async def tags(self, request: Request) -> Response:
        found = await self._found(request)
        name = _title(found, _asked(request))
        every = await self._s.templates.list(tenant(request))
        said = [
            {
                "tag": names.tag_theirs(each.partition(":")[2]),
                "buildID": build_uuid(t),
                "createdAt": t.created_at,
            }
            for t in every
            for each in t.tags
            if each.partition(":")[0] == name
        ]
        return Json(said)

    async def tag(self, request: Request) -> Response:
        asked = await body(request, bodies.Tags)
        whose, target = tenant(request), names.ours(asked.target)
        if not asked.tags:
            raise InvalidRequestError("tags: name at least one.", details={"field": "tags"})
        found = await self._s.templates.get(whose, target)
        name = target.partition(":")[0]
        for each in asked.tags:
            found = await self._s.templates.tag(whose, target, f"{name}:{names.tag_ours(each)}")
        return Json({"tags": asked.tags, "buildID": build_uuid(found)}, 201)

    async def untag(self, request: Request) -> Response:
        asked = await body(request, bodies.Tags)
        name = names.ours(asked.name).partition(":")[0]
        whose = tenant(request)
        for each in asked.tags:
            await self._s.templates.delete(whose, f"{name}:{names.tag_ours(each)}")
        return empty()

    async def delete(self, request: Request) -> Response:
        """A template with all its tags, or a snapshot."""
        whose, named = tenant(request), request.path_params["name"]
        if (snapshot := await self._sandboxes.snapshot(whose, names.ours(named))) is not None:
            await self._s.snapshots.delete(whose, snapshot)
            return empty()
        found = await self._found(request)
        await self._s.templates.delete(whose, found.id)
        return empty()

    async def _found(self, request: Request) -> Template:
        """What the path names; a name alone is any template of that name where none is its default."""
        named, whose = request.path_params["name"], tenant(request)
        name = names.ours(named)
        try:
            return await self._s.templates.get(whose, name)
        except RoostError as failure:
            if failure.code not in ("TEMPLATE_NOT_FOUND", "VALIDATION_FAILED"):
                raise
        for each in await self._s.templates.list(whose):
            if ":" not in named and any(tag.partition(":")[0] == name for tag in each.tags):
                return each
        raise NotFoundError(f"Template {named[:64]} was not found", code="TEMPLATE_NOT_FOUND")


def build_uuid(found: Template) -> str:
    """Tags name builds by UUIDs: of the template a build made, this one."""
    return str(uuid.uuid5(_NAMESPACE, found.id or found.name))


def _named(text: str) -> tuple[str, str]:
    """(name, tag), the tag as E2B writes it. Raises VALIDATION_FAILED."""
    name, tag = reference.tagged(names.ours(text))
    return name, names.tag_theirs(tag)


def _asked(request: Request) -> str:
    return names.ours(request.path_params["name"]).partition(":")[0]


def _title(found: Template, asked: str = "") -> str:
    """What it is called, by the name it was asked for where it has several: builds of the same content are one."""
    called = _names(found)
    return asked if asked in called else called[0]


def _names(found: Template) -> list[str]:
    return list(dict.fromkeys(each.partition(":")[0] for each in found.tags)) or [found.name]


def _shape(found: Template, asked: str = "") -> dict[str, Any]:
    name = _title(found, asked)
    size = found.config.get("size") or {}
    return {
        "templateID": name,
        "buildID": build_uuid(found),
        "cpuCount": max(1, int(size.get("vcpu") or 1)),
        "memoryMB": size.get("memory_mib") or 1024,
        "diskSizeMB": (size.get("storage_gib") or 10) * 1024,
        "public": found.tenant_id is None,
        "aliases": _names(found),
        "names": _names(found),
        "createdAt": found.created_at,
        "updatedAt": found.updated_at,
        "createdBy": None,
        "lastSpawnedAt": None,
        "spawnCount": 0,
        "buildCount": 1,
        "envdVersion": ENVD_VERSION,
        "buildStatus": "ready" if found.digest is not None else "waiting",
    }


def _entries(event: dict[str, Any], now: datetime) -> list[dict[str, Any]]:
    """Of one event of our log: a line each."""
    kind, step = event.get("event"), str(event.get("step", ""))
    if kind == "step":
        if "instruction" not in event:
            return []
        cached = "CACHED " if event.get("status") == "cached" else ""
        return [_entry(now, f"{cached}{event['instruction']}", "info", step)]
    if kind != "log":
        return []
    level = "warn" if event.get("stream") == "stderr" else "info"
    lines = str(event.get("text", "")).splitlines()
    return [_entry(now, each, level, step) for each in lines if each.strip()]


def _entry(now: datetime, message: str, level: str, step: str) -> dict[str, Any]:
    found = {"timestamp": now, "message": message[:4096], "level": level}
    return {**found, "step": step} if step else found


def _reason(build: Build) -> dict[str, Any]:
    error = build.error or {}
    details = error.get("details") or {}
    said: dict[str, Any] = {
        "message": str(error.get("message") or f"The build was {build.status}.")
    }
    if "step" in details:
        said["step"] = str(details["step"])
    return said
