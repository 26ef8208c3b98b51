"""Sandboxes: machines, and their life.

E2B has one kind of sandbox: which rung one is on may be said in the headers X-Roost-Isolation and X-Roost-Driver, which
its clients send on request (``headers=``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, unquote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from structlog.contextvars import bind_contextvars

from roost import ids
from roost.dialects.e2b.access import Access, gone
from roost.dialects.e2b.control import bodies, names, network, shapes
from roost.dialects.e2b.control.exposure import Exposure
from roost.dialects.serving import (
    Json,
    Services,
    body,
    caller,
    empty,
    key_id,
    not_served,
    tenant,
)
from roost.egress.policy import Policy
from roost.engine.lifecycle import Phase
from roost.errors import ConflictError, InvalidRequestError, NotFoundError, RoostError, bad
from roost.services import asking
from roost.services.models import Attach, CreateMachine, ForkMachine, Machine, PatchMachine
from roost.services.volume_files import LABEL

TIMEOUT_S = 300
LIMIT = 100
_GONE = frozenset({Phase.DESTROYING, Phase.DESTROYED})
_STATES = {
    "running": [each for each in Phase if each not in _GONE | shapes.ASLEEP],
    "paused": [each for each in Phase if each in shapes.ASLEEP],
}
_PAUSED = shapes.ASLEEP | {Phase.STOPPING}
_MISSING = ("MACHINE_NOT_FOUND", "NOT_FOUND")
_UNKNOWN = ("TEMPLATE_NOT_FOUND", "VALIDATION_FAILED")


class Sandboxes:
    def __init__(self, services: Services, access: Access, exposure: Exposure) -> None:
        self._s = services
        self._access = access
        self._exposure = exposure

    def routes(self) -> list[Route]:
        one = "/sandboxes/{machine_id}"
        newer = "/v2/sandboxes/{machine_id}"
        return [
            Route("/v2/sandboxes", self.create, methods=["POST"]),
            Route("/sandboxes", self.create, methods=["POST"]),
            Route("/v2/sandboxes", self.list_, methods=["GET"]),
            Route("/sandboxes", self.list_running, methods=["GET"]),
            Route("/sandboxes/metrics", self.metrics_of, methods=["GET"]),
            Route(one, self.get, methods=["GET"]),
            Route(one, self.delete, methods=["DELETE"]),
            Route(f"{newer}/connect", self.connect, methods=["POST"]),
            Route(f"{one}/connect", self.connect, methods=["POST"]),
            Route(f"{one}/resume", self.resume, methods=["POST"]),
            Route(f"{one}/timeout", self.timeout, methods=["POST"]),
            Route(f"{one}/refreshes", self.refresh, methods=["POST"]),
            Route(f"{one}/pause", self.pause, methods=["POST"]),
            Route(f"{one}/fork", self.fork, methods=["POST"]),
            Route(f"{one}/metrics", self.metrics, methods=["GET"]),
            Route(f"{one}/network", self.network, methods=["PUT"]),
            Route(f"{one}/logs", self.logs, methods=["GET"]),
            Route(f"{newer}/logs", self.logs, methods=["GET"]),
        ]

    # --- making ---------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        asked = await body(request, bodies.NewSandbox)
        wanted = replace(
            _wanted(asked, key_id(request)),
            isolation=request.headers.get("x-roost-isolation", "auto"),
            driver=request.headers.get("x-roost-driver"),
        )
        whose = tenant(request)
        for each in wanted.volumes:
            await self._s.volume_files.release(whose, each.name)
        try:
            machine = await self._made(whose, asked.template_id, wanted)
        except RoostError as failure:
            left = caller(request).machine_id = failure.details.get("machine_id")
            if left is not None:  # a sandbox that did not start is none
                await self._s.machines.delete(whose, left, wait=False)
            raise
        caller(request).machine_id = machine.id
        bind_contextvars(machine_id=machine.id)
        net = asked.network
        public = net is None or net.allow_public_traffic is not False
        try:
            await self._exposure.begin(whose, machine.id, public)
        except BaseException:
            await self._s.machines.delete(whose, machine.id, wait=False)
            raise
        return await self._opened(request, machine, 201)

    async def _made(self, whose: str, named: str, wanted: CreateMachine) -> Machine:
        """From a template, or a snapshot: E2B's snapshots are templates. Raises TEMPLATE_NOT_FOUND."""
        name = names.ours(named)
        if not ids.formed(name):
            try:
                return await self._s.machines.create(whose, replace(wanted, template=name))
            except RoostError as failure:
                if failure.code not in _UNKNOWN or "machine_id" in failure.details:
                    raise
                found = await self.snapshot(whose, name)
                if found is None:
                    raise
        else:
            found = await self.snapshot(whose, name)
            if found is None:
                return await self._s.machines.create(whose, replace(wanted, template=name))
        if wanted.env:
            raise not_served(
                "environment variables of a sandbox made from a snapshot",
                "They are the snapshot's: pass others to each command.",
            )
        return await self._s.machines.create(whose, replace(wanted, snapshot=found))

    async def snapshot(self, whose: str, named: str) -> str | None:
        """The id of the snapshot of this id or name (``name:tag``, whatever the tag)."""
        try:
            return (await self._s.snapshots.get(whose, named.partition(":")[0])).id
        except RoostError as failure:
            if failure.code != "SNAPSHOT_NOT_FOUND":
                raise
            return None

    async def fork(self, request: Request) -> Response:
        asked = await body(request, bodies.Fork, optional=True)
        whose, machine = tenant(request), await self.found(request)
        wanted = ForkMachine(
            count=asked.count,
            ttl_seconds=_ttl(asked.timeout),
            created_by=key_id(request),
        )
        public = self._exposure.public(machine.id)
        children = await self._s.machines.fork(whose, machine.id, wanted)
        try:
            for child in children:
                await self._exposure.begin(whose, child.id, public)
        except BaseException:
            for child in children:
                await self._s.machines.delete(whose, child.id, wait=False)
            raise
        return Json([{"sandbox": self._shape(request, c, public)} for c in children], 201)

    async def connect(self, request: Request) -> Response:
        asked = await body(request, bodies.Connect, optional=True)
        machine = await self.found(request)
        woken = machine.phase in _PAUSED
        if woken:
            machine = await self._wake(machine, asked.memory)
        wanted = TIMEOUT_S if asked.timeout is None else asked.timeout
        now = self._s.machines.clock.now()
        later = machine.expires_at is not None and machine.expires_at < now + timedelta(
            seconds=wanted
        )
        if later or woken:
            machine = await self._end_in(machine, wanted)
        return await self._opened(request, machine, 201 if woken else 200)

    async def resume(self, request: Request) -> Response:
        """Of older clients."""
        asked = await body(request, bodies.Resume, optional=True)
        machine = await self.found(request)
        if shapes.state(machine) != "paused":
            raise ConflictError(f"Sandbox {machine.id} is running already.")
        machine = await self._wake(machine, True)
        machine = await self._end_in(
            machine, TIMEOUT_S if asked.timeout is None else asked.timeout, asked.auto_pause
        )
        return await self._opened(request, machine, 201)

    async def _wake(self, machine: Machine, memory: bool) -> Machine:
        machines = self._s.machines
        if not memory:
            machines.require_start(machine)
            await machines.sleep(machine.tenant_id, machine.id, "stopped")
        woken = await machines.wake(machine.tenant_id, machine.id)
        await self._exposure.begin(machine.tenant_id, machine.id, None)
        return woken

    # --- looking --------------------------------------------------------------------------------

    async def get(self, request: Request) -> Response:
        machine = await self.found(request)
        return Json(
            shapes.detail(
                machine,
                self._access.token(machine) if asking.may_change() else None,
                self._exposure.domain(request),
                self._exposure.public(machine.id),
            )
        )

    async def list_(self, request: Request) -> Response:
        query = request.query_params
        limit = whole(query.get("limit"), "limit", LIMIT, 1, 500)
        states = set(filter(None, ",".join(query.getlist("state")).split(",")))
        if unknown := states - set(_STATES):
            raise bad("state", f"is running or paused, not {min(unknown)[:32]}")
        order = query.get("order") or "desc"
        if order not in ("asc", "desc"):
            raise bad("order", "is asc or desc")
        wanted = _Wanted(
            [phase for each in states or _STATES for phase in _STATES[each]],
            _metadata(query.get("metadata")),
            query.get("template") or None,
            _time(query.get("startedAfter")),
            order == "asc",
        )
        found, token = await self._page(tenant(request), wanted, limit, query.get("nextToken"))
        headers = {"x-next-token": token} if token else {}
        return Json([shapes.listed(each) for each in found], 200, headers)

    async def list_running(self, request: Request) -> Response:
        """Of older clients: all of them, at once."""
        wanted = _Wanted(_STATES["running"], _metadata(request.query_params.get("metadata")))
        found, _ = await self._page(tenant(request), wanted, 10_000, None)
        return Json([shapes.listed(each) for each in found])

    async def metrics(self, request: Request) -> Response:
        machine = await self.found(request)
        query = request.query_params
        found = await self._s.machines.metrics(
            machine.tenant_id, machine.id, _unix(query.get("start")), _unix(query.get("end"))
        )
        return Json([shapes.metric(each) for each in found])

    async def metrics_of(self, request: Request) -> Response:
        """The last of each that runs."""
        named = ",".join(request.query_params.getlist("sandbox_ids")).split(",")
        last: dict[str, Any] = {}
        for each in filter(None, named[:100]):
            found = await self._s.machines.metrics(tenant(request), each, None, None)
            if found:
                last[each] = shapes.metric(found[-1])
        return Json({"sandboxes": last})

    async def logs(self, request: Request) -> Response:
        """What happened to the sandbox; what its programs say is theirs."""
        machine = await self.found(request)
        found = await self._s.machines.events(machine.tenant_id, machine.id)
        entries = [
            {
                "timestamp": each.at,
                "level": "info",
                "message": f"{each.event}: {each.message}" if each.message else each.event,
                "fields": {},
            }
            for each in found
        ]
        if request.url.path.startswith("/v2/"):
            return Json({"logs": entries})
        plain = [{"timestamp": each["timestamp"], "line": each["message"]} for each in entries]
        return Json({"logs": plain, "logEntries": entries})

    # --- changing -------------------------------------------------------------------------------

    async def delete(self, request: Request) -> Response:
        machine = await self.found(request)
        await self._s.machines.delete(machine.tenant_id, machine.id)
        return empty()

    async def timeout(self, request: Request) -> Response:
        asked = await body(request, bodies.Timeout)
        machine = await self._running(request)
        await self._end_in(machine, asked.timeout)
        return empty()

    async def refresh(self, request: Request) -> Response:
        """Of older clients: as ``timeout``, but never sooner."""
        asked = await body(request, bodies.Refresh, optional=True)
        machine = await self._running(request)
        wanted = TIMEOUT_S if asked.duration is None else asked.duration
        end = self._s.machines.clock.now() + timedelta(seconds=wanted)
        if machine.expires_at is not None and machine.expires_at < end:
            await self._end_in(machine, wanted)
        return empty()

    async def pause(self, request: Request) -> Response:
        asked = await body(request, bodies.Pause, optional=True)
        machine = await self.found(request)
        if shapes.state(machine) == "paused":
            raise ConflictError(f"Sandbox {machine.id} is paused already.")
        tier = None if asked.memory else "stopped"
        await self._s.machines.sleep(machine.tenant_id, machine.id, tier)
        # Paused it has no end: connecting to it gives it one again.
        await self._s.machines.patch(machine.tenant_id, machine.id, PatchMachine(ttl_seconds=None))
        return empty()

    async def network(self, request: Request) -> Response:
        asked = await body(request, bodies.Egress)
        machine = await self.found(request)
        wanted = network.policy(asked) or Policy()
        await self._s.policies.replace(machine.tenant_id, machine.id, wanted)
        return empty()

    # --- helpers --------------------------------------------------------------------------------

    async def found(self, request: Request) -> Machine:
        """The machine the path names; one that is being destroyed is none. Raises MACHINE_NOT_FOUND."""
        named = request.path_params["machine_id"]
        try:
            machine = await self._s.machines.get(tenant(request), named)
        except RoostError as failure:
            if failure.code not in _MISSING:
                raise
            raise missing(named) from None
        if machine.phase in _GONE:
            raise missing(named)
        return machine

    async def _running(self, request: Request) -> Machine:
        """A paused one has no end that could be moved. Raises MACHINE_NOT_FOUND."""
        machine = await self.found(request)
        if machine.phase in _PAUSED:
            raise missing(machine.id)
        return machine

    async def _end_in(
        self, machine: Machine, seconds: int, auto_pause: bool | None = None
    ) -> Machine:
        patch = PatchMachine(ttl_seconds=max(1, seconds))
        if auto_pause is not None:
            patch = replace(patch, expiry="sleep" if auto_pause else "destroy")
        elif machine.autosleep_seconds is not None and machine.expiry == "sleep":
            patch = replace(patch, autosleep_seconds=max(machine.autosleep_seconds, seconds))
        return await self._s.machines.patch(machine.tenant_id, machine.id, patch)

    async def _opened(self, request: Request, machine: Machine, status: int) -> Response:
        return Json(self._shape(request, machine, self._exposure.public(machine.id)), status)

    def _shape(self, request: Request, machine: Machine, public: bool) -> dict[str, Any]:
        return shapes.opened(
            machine,
            self._access.token(machine),
            None if public else self._exposure.token(machine),
            self._exposure.domain(request),
        )

    async def _page(
        self, whose: str, wanted: _Wanted, limit: int, token: str | None
    ) -> tuple[list[Machine], str | None]:
        """What our lists cannot tell apart is left out here, so a page may take several of ours."""
        skip, cursor = _read_token(token)
        found: list[Machine] = []
        while True:
            page = await self._s.machines.list(
                whose,
                wanted.phases,
                labels=wanted.metadata or None,
                limit=min(500, limit + skip),
                cursor=cursor,
                since=wanted.since,
                oldest_first=wanted.oldest_first,
            )
            matching = [each for each in page.items if wanted.has(each)][skip:]
            room = limit - len(found)
            if len(matching) > room:
                return found + matching[:room], f"{skip + room}.{cursor or ''}"
            found += matching
            skip, cursor = 0, page.next_cursor
            if cursor is None:
                return found, None
            if len(found) == limit:
                return found, f"0.{cursor}"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a list is of."""

    phases: list[Phase]
    metadata: Mapping[str, str]
    template: str | None = None
    since: datetime | None = None
    oldest_first: bool = False

    def has(self, machine: Machine) -> bool:
        return LABEL not in machine.labels and (
            self.template is None
            or self.template in (shapes.template_of(machine), machine.template_id)
            or names.ours(self.template) == machine.template
        )


def missing(named: str) -> NotFoundError:
    return NotFoundError(
        f"Sandbox {named[:64]} was not found",
        code="MACHINE_NOT_FOUND",
        details=gone(named).details,
    )


def _wanted(asked: bodies.NewSandbox, created_by: str | None) -> CreateMachine:
    if asked.mcp:
        raise not_served("MCP gateways in sandboxes", "Start one in the sandbox yourself.")
    if asked.iam and asked.iam.get("tokens"):
        raise not_served("workload identity")
    if asked.auto_pause and not asked.auto_pause_memory:
        raise not_served(
            "a pause at the timeout that drops the memory", "Leave the mode out: memory is kept."
        )
    net = asked.network or bodies.Network.model_validate({})
    if asked.allow_internet_access is not None and net.allow_internet_access is None:
        net = net.model_copy(update={"allow_internet_access": asked.allow_internet_access})
    resumes = asked.auto_resume is not None and asked.auto_resume.enabled
    return CreateMachine(
        env=asked.env_vars or {},
        labels=asked.metadata or {},
        # Once traffic has resumed it, it pauses again after as long without any.
        autosleep_seconds=max(TIMEOUT_S, _ttl(asked.timeout)) if resumes else None,
        hibernate_after_seconds=None,
        ttl_seconds=_ttl(asked.timeout),
        created_by=created_by,
        egress=network.policy(net),
        volumes=tuple(Attach(each.name, each.path) for each in asked.volume_mounts),
        expiry="sleep" if asked.auto_pause else "destroy",
        autowake=resumes,
    )


def _ttl(seconds: int | None) -> int:
    return TIMEOUT_S if seconds is None else max(1, seconds)


def _metadata(text: str | None) -> dict[str, str]:
    """``a=b&c=d``, of which names and values are encoded once more. Raises VALIDATION_FAILED."""
    if not text:
        return {}
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True)
    except ValueError:
        raise bad("metadata", "is name=value&...") from None
    return {unquote(name): unquote(value) for name, value in pairs}


def _time(text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError:
        raise bad("startedAfter", "is a time as RFC 3339 has it") from None
    if at.tzinfo is None:
        raise bad("startedAfter", "has a time zone")
    return at


def _unix(text: str | None) -> datetime | None:
    if not text:
        return None
    return datetime.fromtimestamp(whole(text, "start", 0, 0, 1 << 36), UTC)


def whole(text: str | None, field: str, default: int, least: int, most: int) -> int:
    if text is None or text == "":
        return default
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII) or not least <= int(text) <= most:
        raise bad(field, f"is from {least} to {most}")
    return int(text)


def _read_token(token: str | None) -> tuple[int, str | None]:
    if not token:
        return 0, None
    skip, point, cursor = token.partition(".")
    if not point or not re.fullmatch(r"\d{1,9}", skip, re.ASCII):
        raise InvalidRequestError("nextToken is none of ours.", code="INVALID_CURSOR")
    return int(skip), cursor or None
