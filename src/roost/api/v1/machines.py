"""Machines over HTTP."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from roost.api.v1 import answers, bodies, shapes
from roost.api.v1.parse import if_match, invalid
from roost.api.v1.services import Services, tenant
from roost.gateway.respond import Json
from roost.services.models import UNSET, CreateMachine, ForkMachine, Machine, PatchMachine
from roost.units import parse_duration

Limit = Annotated[int, Query(ge=1, le=500)]
Cursor = Annotated[str | None, Query(max_length=512)]
Tier = Annotated[
    Literal["hibernated", "stopped"] | None,
    Query(description="hibernated keeps memory; default: as much as the rung can keep."),
]
Labels = Annotated[list[str] | None, Query(description="k=v; repeat for more.")]


_TAKEN_OVER = {"template", "vcpu", "memory_mib", "storage_gib", "isolation", "driver", "env"}


def router(s: Services) -> APIRouter:
    r = APIRouter(prefix="/v1/machines", tags=["machines"])

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
        wanted = replace(_create(body, body.key), snapshot=body.snapshot, memory=body.memory)
        made = await s.machines.create(tenant(request), wanted, wait)
        if wait:
            s.metrics.create_seconds.observe(time.perf_counter() - began)
        return _machine(made, 201 if wait else 202)

    @r.get("", response_model=answers.Page[answers.Machine])
    async def list_(
        request: Request,
        phase: answers.Phase | None = None,
        key: Annotated[str | None, Query(max_length=128)] = None,
        label: Labels = None,
        template: Annotated[str | None, Query(max_length=64)] = None,
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
            tenant(request), phase, key, labels or None, template, limit, cursor
        )
        return Json(shapes.page(found, shapes.machine))

    @r.put(
        "/by-key/{key}", response_model=answers.Machine, responses={201: {"model": answers.Machine}}
    )
    async def ensure(request: Request, key: str, body: bodies.EnsureMachine) -> Response:
        found, made = await s.machines.ensure(tenant(request), key, _create(body, None))
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

    @r.post("/{machine_id}/fork", status_code=201, response_model=answers.Machines)
    async def fork(
        request: Request, machine_id: str, body: bodies.ForkMachine | None = None
    ) -> Response:
        body = body or bodies.ForkMachine.model_validate({})
        wanted = ForkMachine(body.count, body.name, body.labels, parse_duration(body.ttl))
        made = await s.machines.fork(tenant(request), machine_id, wanted)
        return Json({"items": [shapes.machine(each) for each in made]}, 201)

    @r.post("/{machine_id}/rollback", response_model=answers.Machine)
    async def rollback(request: Request, machine_id: str, body: bodies.Rollback) -> Response:
        return _machine(await s.snapshots.rollback(tenant(request), machine_id, body.snapshot))

    @r.get("/{machine_id}/usage", response_model=answers.Usage)
    async def usage(request: Request, machine_id: str) -> Response:
        return Json(shapes.usage(await s.machines.usage(tenant(request), machine_id)))

    @r.get("/{machine_id}/logs", response_model=answers.Logs)
    async def logs(request: Request, machine_id: str) -> Response:
        found = await s.machines.events(tenant(request), machine_id)
        return Json({"items": [shapes.machine_event(each) for each in found]})

    return r


def _machine(found: Machine, status: int = 200) -> Response:
    return Json(shapes.machine(found), status, {"etag": f'"{found.revision}"'})


def _create(body: bodies.CreateMachine | bodies.EnsureMachine, key: str | None) -> CreateMachine:
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
        ttl_seconds=parse_duration(body.ttl),
    )


def _patch(body: bodies.PatchMachine) -> PatchMachine:
    named = body.model_fields_set
    return PatchMachine(
        name=body.name if "name" in named else UNSET,
        labels=body.labels if "labels" in named else UNSET,
        autosleep_seconds=(
            parse_duration(body.autosleep, allow_never=True) if "autosleep" in named else UNSET
        ),
        ttl_seconds=parse_duration(body.ttl) if "ttl" in named else UNSET,
        vcpu=body.vcpu if "vcpu" in named else UNSET,
        memory_mib=body.memory_mib if "memory_mib" in named else UNSET,
        storage_gib=body.storage_gib if "storage_gib" in named else UNSET,
    )
