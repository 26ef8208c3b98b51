"""The life of sandboxes: made, listed, paused, hibernated, forked, promoted, ended."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from structlog.contextvars import bind_contextvars

from roost import ids
from roost.api.v1.services import Services, caller, key_id, tenant
from roost.dialects import serving
from roost.dialects.pandastack import bodies, shapes
from roost.dialects.pandastack.volumes import attached
from roost.errors import InvalidRequestError, NotFoundError, RoostError
from roost.gateway.respond import Json
from roost.services.models import UNSET, CreateMachine, ForkMachine, Machine, PatchMachine

MAX_TREE = 16
IDLE_S = 300  # of a persistent one that does not say
EVERY_PORT = 0
# Names of templates that their clients take unasked; ours where nobody made one of that name.
ALIASES = {"ubuntu-24.04": "base"}
_GONE = ("destroying", "destroyed")


class Sandboxes:
    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[BaseRoute]:
        at = "/v1/sandboxes"
        one = f"{at}/{{id}}"
        return [
            Route(at, self.create, methods=["POST"]),
            Route(at, self.list, methods=["GET"]),
            Route(one, self.get, methods=["GET"]),
            Route(one, self.delete, methods=["DELETE"]),
            Route(f"{one}/pause", self.pause, methods=["POST"]),
            Route(f"{one}/resume", self.resume, methods=["POST"]),
            Route(f"{one}/hibernate", self.hibernate, methods=["POST"]),
            Route(f"{one}/stop", self.hibernate, methods=["POST"]),
            Route(f"{one}/wake", self.wake, methods=["POST"]),
            Route(f"{one}/start", self.wake, methods=["POST"]),
            Route(f"{one}/lifecycle", self.lifecycle, methods=["GET"]),
            Route(f"{one}/lifecycle", self.set_lifecycle, methods=["PATCH"]),
            Route(f"{one}/fork", self.fork, methods=["POST"]),
            Route(f"{one}/fork-tree", self.fork_tree, methods=["POST"]),
            Route(f"{one}/promote", self.promote, methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        asked = await serving.body(request, bodies.Create)
        began = time.perf_counter()
        who = tenant(request)
        wanted = CreateMachine(
            template=await self._template(who, asked),
            labels=asked.metadata or {},
            autosleep_seconds=IDLE_S if asked.persistent else None,
            ttl_seconds=asked.ttl_seconds or None,
            snapshot=asked.from_snapshot,
            created_by=key_id(request),
            volumes=attached(asked.volumes),
        )
        try:
            made = await self._s.machines.create(who, wanted)
        except RoostError as failure:
            # It was made and does not run: nobody was told its id, so nobody else would end it.
            if (failed := failure.details.get("machine_id")) is not None:
                caller(request).machine_id = failed
                await self._end(who, [failed])
            raise
        caller(request).machine_id = made.id
        bind_contextvars(machine_id=made.id)
        await self._show(who, [made])
        seconds = time.perf_counter() - began
        self._s.metrics.create_seconds.observe(seconds)
        return Json(shapes.sandbox(made, round(seconds * 1000)), 201)

    async def list(self, request: Request) -> Response:
        """All of them, newest first: there are no pages there."""
        found = await self._every(tenant(request), None)
        return Json([shapes.sandbox(each) for each in found])

    async def get(self, request: Request) -> Response:
        return Json(shapes.sandbox(await self._get(request)))

    async def delete(self, request: Request) -> Response:
        machine = await self._get(request)
        await self._s.machines.delete(tenant(request), machine.id)
        return Response(status_code=204)

    async def pause(self, request: Request) -> Response:
        """Its processes stand still, and its memory stays where it is; on a rung that cannot, it sleeps as it can."""
        machine = await self._get(request)
        tier = "frozen" if machine.capabilities.freeze else None
        if machine.phase != "sleeping":
            await self._s.machines.sleep(tenant(request), machine.id, tier)
        return Response(status_code=204)

    async def resume(self, request: Request) -> Response:
        await self._s.machines.wake(tenant(request), (await self._get(request)).id)
        return Response(status_code=204)

    async def hibernate(self, request: Request) -> Response:
        machine = await self._get(request)
        slept = await self._s.machines.sleep(tenant(request), machine.id)
        return Json({"id": slept.id, "status": shapes.status(slept)})

    async def wake(self, request: Request) -> Response:
        machine = await self._get(request)
        woken = await self._s.machines.wake(tenant(request), machine.id)
        return Json({"id": woken.id, "status": shapes.status(woken)})

    async def lifecycle(self, request: Request) -> Response:
        return Json(shapes.lifecycle(await self._get(request)))

    async def set_lifecycle(self, request: Request) -> Response:
        asked = await serving.body(request, bodies.Lifecycle)
        machine = await self._get(request)
        patch = PatchMachine(
            ttl_seconds=UNSET if asked.ttl_seconds is None else asked.ttl_seconds or None,
            autosleep_seconds=_idle(asked, machine),
        )
        return Json(
            shapes.lifecycle(await self._s.machines.patch(tenant(request), machine.id, patch))
        )

    async def fork(self, request: Request) -> Response:
        asked = await serving.body(request, bodies.Fork, optional=True)
        parent = await self._get(request)
        _check_count(asked.count)
        labels = _metadata(parent, asked.metadata)
        made = await self._fork(request, parent, asked.count, labels, parent.ttl_seconds)
        first = shapes.sandbox(made[0])
        said = {
            "parent_id": parent.id,
            "snapshot_id": made[0].from_snapshot_id or "",
            "children": [each.id for each in made],
            "sandbox": first,  # which their clients take before the id
            "at": first["created_at"],
        }
        return Json(said, 201)

    async def fork_tree(self, request: Request) -> Response:
        """Metadata ``explore_ttl``: the children end after so long, should whoever tries them never come back."""
        asked = await serving.body(request, bodies.ForkTree)
        _check_count(asked.count)
        parent = await self._get(request)
        tree = ids.new()
        labels = _metadata(parent, asked.metadata) | {shapes.TREE: tree}
        ttl = parent.ttl_seconds
        if (said := (asked.metadata or {}).get("explore_ttl", "")).isdecimal():
            ttl = int(said[:20]) or ttl  # of more digits it is out of all bounds, too
        children = await self._fork(request, parent, asked.count, labels, ttl)
        return Json(
            {
                "tree_id": tree,
                "parent_id": parent.id,
                "children": [shapes.sandbox(each) for each in children],
                "at": shapes.sandbox(children[0])["created_at"],
            },
            201,
        )

    async def promote(self, request: Request) -> Response:
        """One of a tree, on its own from now on: its end is its parent's kind again, its siblings go where that is
        asked for. Its parent stays what it is; taking its place is the native API's ``promote``."""
        asked = await serving.body(request, bodies.Promote, optional=True)
        who = tenant(request)
        winner = await self._get(request)
        tree = asked.tree_id or winner.labels.get(shapes.TREE, "")
        deleted: Sequence[str] = []
        failures: Mapping[str, str] = {}
        if asked.cleanup_siblings and not tree:
            raise InvalidRequestError(f"tree_id: sandbox {winner.id} is of no tree.")
        if asked.cleanup_siblings:
            deleted, failures = await self._reap(who, winner, tree)
        if shapes.TREE in winner.labels:
            await self._release(who, winner)
        return Json(
            {"winner": winner.id, "tree_id": tree, "deleted": deleted, "failures": failures}
        )

    # --- helpers --------------------------------------------------------------------------------

    async def _get(self, request: Request) -> Machine:
        """Raises MACHINE_NOT_FOUND, also for one that is gone."""
        return await present(self._s, request)

    async def _every(self, who: str, labels: Mapping[str, str] | None) -> builtins.list[Machine]:
        found: builtins.list[Machine] = []
        cursor: str | None = None
        while True:
            page = await self._s.machines.list(who, labels=labels, limit=500, cursor=cursor)
            found += [each for each in page.items if each.phase not in _GONE]
            cursor = page.next_cursor
            if cursor is None:
                return found

    async def _template(self, who: str, asked: bodies.Create) -> str:
        alias = ALIASES.get(asked.template)
        if asked.from_snapshot is not None:
            return "base"  # the snapshot has its own
        if alias is None:
            return asked.template
        try:
            await self._s.templates.get(who, asked.template)
        except NotFoundError:
            return alias
        return asked.template

    async def _fork(
        self,
        request: Request,
        parent: Machine,
        count: int,
        labels: Mapping[str, str],
        ttl: int | None,
    ) -> builtins.list[Machine]:
        who = tenant(request)
        wanted = ForkMachine(count, labels=labels, ttl_seconds=ttl, created_by=key_id(request))
        made = await self._s.machines.fork(who, parent.id, wanted)
        await self._show(who, made)
        return made

    async def _show(self, who: str, made: Sequence[Machine]) -> None:
        """Every port of them, to whoever knows their ids; or there are none of them."""
        ports = self._s.ports
        try:
            for each in made:
                await ports.create(who, each.id, EVERY_PORT, visibility="public")
        except BaseException:
            await self._end(who, [each.id for each in made])
            raise

    async def _end(self, who: str, made: Sequence[str]) -> None:
        ends = (self._s.machines.delete(who, each, wait=False) for each in made)
        await asyncio.shield(asyncio.gather(*ends, return_exceptions=True))

    async def _reap(
        self, who: str, winner: Machine, tree: str
    ) -> tuple[Sequence[str], Mapping[str, str]]:
        found = await self._every(who, {shapes.TREE: tree})
        others = [each.id for each in found if each.id != winner.id]
        ended = await asyncio.gather(
            *(self._s.machines.delete(who, each) for each in others), return_exceptions=True
        )
        failures: dict[str, str] = {}
        for machine_id, end in zip(others, ended, strict=True):
            if isinstance(end, RoostError):
                failures[machine_id] = end.message
            elif isinstance(end, BaseException):
                raise end
        return [each for each in others if each not in failures], failures

    async def _release(self, who: str, winner: Machine) -> None:
        labels = {k: v for k, v in winner.labels.items() if k not in (shapes.TREE, "explore_ttl")}
        ttl = None
        with contextlib.suppress(NotFoundError):
            ttl = (await self._s.machines.get(who, str(winner.parent_id))).ttl_seconds
        await self._s.machines.patch(who, winner.id, PatchMachine(labels=labels, ttl_seconds=ttl))


async def present(services: Services, request: Request) -> Machine:
    """The sandbox the path names. Raises MACHINE_NOT_FOUND, also for one that is gone."""
    named = request.path_params["id"]
    machine = await services.machines.get(tenant(request), named)
    if machine.phase in _GONE:
        raise NotFoundError(f"There is no sandbox {named}.", code="MACHINE_NOT_FOUND")
    return machine


def _check_count(count: int) -> None:
    if not 1 <= count <= MAX_TREE:
        raise InvalidRequestError(f"count: from 1 to {MAX_TREE}.", details={"field": "count"})


def _metadata(parent: Machine, asked: Mapping[str, str] | None) -> dict[str, str]:
    kept = {k: v for k, v in parent.labels.items() if k != shapes.TREE}
    return (kept if asked is None else dict(asked)) | {shapes.PARENT: parent.id}


def _idle(asked: bodies.Lifecycle, machine: Machine) -> Any:
    """After which it sleeps; what is not persistent never does."""
    if asked.persistent is False or asked.idle_seconds == 0:
        return None
    if asked.idle_seconds is not None:
        return asked.idle_seconds
    if asked.persistent and machine.autosleep_seconds is None:
        return IDLE_S
    return UNSET
