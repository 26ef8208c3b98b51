"""Machines over HTTP."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Query, Request
from starlette.responses import Response
from structlog.contextvars import bind_contextvars

from roost.api.v1 import answers, bodies, routes, shapes
from roost.api.v1.parse import if_match, invalid, policy, tools, utc
from roost.api.v1.secrets import specified
from roost.api.v1.services import Services, caller, key_id, tenant
from roost.errors import RoostError
from roost.gateway.respond import Events, Json, event
from roost.services.models import (
    UNSET,
    Allowance,
    Attach,
    CreateMachine,
    ForkMachine,
    Machine,
    PatchMachine,
)
from roost.units import parse_duration

T = TypeVar("T")
Limit = Annotated[int, Query(ge=1, le=500)]
Cursor = Annotated[str | None, Query(max_length=512)]
Tier = Annotated[
    Literal["frozen", "hibernated", "stopped"] | None,
    Query(
        description="frozen keeps memory resident, hibernated on the disk, stopped not; default: the deepest that"
        " keeps all the rung can."
    ),
]
Labels = Annotated[list[str] | None, Query(description="k=v; repeat for more.")]


_REVISION = re.compile(r"\d{1,18}", re.ASCII)
_TAKEN_OVER = {"template", "vcpu", "memory_mib", "storage_gib", "isolation", "driver", "env"}


def router(s: Services) -> APIRouter:
    r = routes.router("/v1/machines", "machines")

    @r.post(
        "",
        status_code=201,
        response_model=answers.Machine,
        responses={202: {"model": answers.Machine}},
    )
    async def create(request: Request, body: bodies.CreateMachine, wait: bool = True) -> Response:
        began = time.perf_counter()
        if body.snapshot is not None and (named := _TAKEN_OVER & body.model_fields_set):
            raise invalid(sorted(named)[0], "the snapshot's: leave it out")
        wanted = replace(
            _create(request, body, body.key), snapshot=body.snapshot, memory=body.memory
        )
        given = [specified(each, each.name) for each in body.secrets]
        if given:
            s.secrets.check(given)
        made = await _named(request, s.machines.create(tenant(request), wanted, wait))
        if given:
            await s.secrets.give(made, given, wait)
        if wait:
            s.metrics.create_seconds.observe(time.perf_counter() - began)
        return _machine(made, 201 if wait else 202)

    @r.get("", response_model=answers.Page[answers.Machine])
    async def list_(
        request: Request,
        phase: Annotated[
            list[answers.Phase] | None, Query(description="Any of these; repeat for more.")
        ] = None,
        key: Annotated[str | None, Query(max_length=128)] = None,
        label: Labels = None,
        template: Annotated[str | None, Query(max_length=64)] = None,
        parent: Annotated[
            str | None, Query(max_length=64, description="Those that went on from it.")
        ] = None,
        since: Annotated[datetime | None, Query(description="Made then or later.")] = None,
        order: Annotated[
            Literal["newest", "oldest"], Query(description="Which comes first.")
        ] = "newest",
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        labels: dict[str, str] = {}
        for each in label or ():
            name, equals, value = each.partition("=")
            if not equals or not name:
                raise invalid("label", "k=v")
            labels[name] = value
        found = await s.machines.list(
            tenant(request),
            phase,
            key,
            labels or None,
            template,
            limit,
            cursor,
            parent,
            since=None if since is None else utc("since", since),
            oldest_first=order == "oldest",
        )
        return Json(shapes.page(found, shapes.machine))

    @r.put(
        "/by-key/{key}", response_model=answers.Machine, responses={201: {"model": answers.Machine}}
    )
    async def ensure(request: Request, key: str, body: bodies.EnsureMachine) -> Response:
        wanted = _create(request, body, None)
        found, made = await _named(request, s.machines.ensure(tenant(request), key, wanted))
        return _machine(found, 201 if made else 200)

    @r.get("/{machine_id}", response_model=answers.Machine)
    async def get(request: Request, machine_id: str) -> Response:
        return _machine(await s.machines.get(tenant(request), machine_id))

    @r.patch("/{machine_id}", response_model=answers.Machine)
    async def patch(request: Request, machine_id: str, body: bodies.PatchMachine) -> Response:
        changed = await s.machines.patch(
            tenant(request), machine_id, _patch(body), if_match(request)
        )
        return _machine(changed)

    @r.delete(
        "/{machine_id}", response_model=answers.Machine, responses={202: {"model": answers.Machine}}
    )
    async def delete(request: Request, machine_id: str, wait: bool = True) -> Response:
        gone = await s.machines.delete(tenant(request), machine_id, wait, if_match(request))
        return _machine(gone, 200 if wait else 202)

    @r.post("/{machine_id}/sleep", response_model=answers.Machine)
    async def sleep(request: Request, machine_id: str, tier: Tier = None) -> Response:
        return _machine(await s.machines.sleep(tenant(request), machine_id, tier))

    @r.post("/{machine_id}/wake", response_model=answers.Machine)
    async def wake(request: Request, machine_id: str) -> Response:
        return _machine(await s.machines.wake(tenant(request), machine_id))

    @r.post("/{machine_id}/reboot", response_model=answers.Machine)
    async def reboot(request: Request, machine_id: str) -> Response:
        """Running again from its disk; its processes are gone."""
        return _machine(await s.machines.reboot(tenant(request), machine_id))

    @r.get(
        "/{machine_id}/status/stream",
        response_class=Response,
        responses={
            200: {
                "content": answers.EVENTS,
                "description": "An event `machine` with every change, its id the revision.",
            }
        },
    )
    async def states(request: Request, machine_id: str) -> Response:
        last = request.headers.get("last-event-id", "")
        after = int(last) if _REVISION.fullmatch(last) else None
        found = await s.machines.states(tenant(request), machine_id, after)
        return Events(_states(found), caller(request).request_id, caller(request).principal)

    @r.post("/{machine_id}/fork", status_code=201, response_model=answers.Machines)
    async def fork(
        request: Request, machine_id: str, body: bodies.ForkMachine | None = None
    ) -> Response:
        body = body or bodies.ForkMachine.model_validate({})
        wanted = ForkMachine(
            body.count,
            body.name,
            body.labels,
            parse_duration(body.ttl),
            key_id(request),
            policy(body.egress),
            body.inherit_secrets,
            body.snapshot,
            Allowance.of(body.allow_inside, body.inside_forks),
            None if body.volumes is None else _attach(body.volumes),
            body.expiry,
            body.autowake,
            key=body.key,
        )
        made = await s.machines.fork(tenant(request), machine_id, wanted)
        if any(each.unrestricted for each in made):
            caller(request).remark = UNRESTRICTED
        return Json({"items": [shapes.machine(each) for each in made]}, 201)

    @r.post("/{machine_id}/rollback", response_model=answers.Machine)
    async def rollback(request: Request, machine_id: str, body: bodies.Rollback) -> Response:
        return _machine(await s.snapshots.rollback(tenant(request), machine_id, body.snapshot))

    @r.get("/{machine_id}/usage", response_model=answers.Usage)
    async def usage(request: Request, machine_id: str) -> Response:
        return Json(shapes.usage(await s.machines.usage(tenant(request), machine_id)))

    @r.get("/{machine_id}/metrics", response_model=answers.Samples)
    async def metrics(
        request: Request,
        machine_id: str,
        start: Annotated[datetime | None, Query(description="From then on.")] = None,
        end: Annotated[datetime | None, Query(description="Until then.")] = None,
    ) -> Response:
        found = await s.machines.metrics(
            tenant(request),
            machine_id,
            None if start is None else utc("start", start),
            None if end is None else utc("end", end),
        )
        return Json({"items": [shapes.sample(each) for each in found]})

    @r.get("/{machine_id}/logs", response_model=answers.Logs)
    async def logs(request: Request, machine_id: str) -> Response:
        found = await s.machines.events(tenant(request), machine_id)
        return Json({"items": [shapes.machine_event(each) for each in found]})

    return r


async def _states(found: AsyncGenerator[Machine, None]) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(found):
        async for each in found:
            yield event("machine", shapes.machine(each), str(each.revision))


async def _named(request: Request, work: Awaitable[T]) -> T:
    """Tells the audit log which machine it was about, also one that was made and failed."""
    try:
        made = await work
    except RoostError as failure:
        caller(request).machine_id = failure.details.get("machine_id")
        raise
    machine = made[0] if isinstance(made, tuple) else made
    caller(request).machine_id = getattr(machine, "id", None)
    if getattr(machine, "unrestricted", False) and not (isinstance(made, tuple) and not made[1]):
        caller(request).remark = UNRESTRICTED
    return made


def _machine(found: Machine, status: int = 200) -> Response:
    bind_contextvars(machine_id=found.id)  # for the log, where the path did not say it
    return Json(shapes.machine(found), status, {"etag": f'"{found.revision}"'})


UNRESTRICTED = "machines_unrestricted"  # in the audit log, beside the create or fork


def _create(
    request: Request, body: bodies.CreateMachine | bodies.EnsureMachine, key: str | None
) -> CreateMachine:
    return CreateMachine(
        template=body.template,
        key=key,
        name=body.name,
        vcpu=body.vcpu,
        memory_mib=body.memory_mib,
        storage_gib=body.storage_gib,
        isolation=body.isolation,
        driver=body.driver,
        env=body.env,
        labels=body.labels,
        autosleep_seconds=parse_duration(body.autosleep, allow_never=True),
        hibernate_after_seconds=(
            UNSET
            if body.hibernate_after is None
            else parse_duration(body.hibernate_after, allow_never=True)
        ),
        ttl_seconds=parse_duration(body.ttl),
        created_by=key_id(request),
        egress=policy(body.egress),
        inside=Allowance.of(body.allow_inside, body.inside_forks),
        tools=tools(body.tools),
        volumes=_attach(body.volumes),
        expiry=body.expiry,
        autowake=body.autowake,
        unrestricted=body.unrestricted,
        run_as=body.run_as,
    )


def _attach(asked: Sequence[bodies.AttachVolume]) -> tuple[Attach, ...]:
    return tuple(Attach(each.name, each.path, each.read_only) for each in asked)


def _patch(body: bodies.PatchMachine) -> PatchMachine:
    named = body.model_fields_set
    return PatchMachine(
        name=body.name if "name" in named else UNSET,
        labels=body.labels if "labels" in named else UNSET,
        autosleep_seconds=(
            parse_duration(body.autosleep, allow_never=True) if "autosleep" in named else UNSET
        ),
        hibernate_after_seconds=(
            parse_duration(body.hibernate_after, allow_never=True)
            if "hibernate_after" in named
            else UNSET
        ),
        ttl_seconds=parse_duration(body.ttl) if "ttl" in named else UNSET,
        vcpu=body.vcpu if "vcpu" in named else UNSET,
        memory_mib=body.memory_mib if "memory_mib" in named else UNSET,
        storage_gib=body.storage_gib if "storage_gib" in named else UNSET,
        expiry=body.expiry if "expiry" in named else UNSET,
        autowake=body.autowake if "autowake" in named else UNSET,
        run_as=body.run_as if "run_as" in named else UNSET,
        allow_inside=body.allow_inside if "allow_inside" in named else UNSET,
        inside_forks=body.inside_forks if "inside_forks" in named else UNSET,
    )
