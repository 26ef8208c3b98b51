"""What runs in a machine, by the numbers it has there."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from roost.api.v1 import answers, routes, shapes
from roost.api.v1.services import Services, tenant
from roost.gateway.respond import Json


class Process(answers.Execution):
    pid: int


class ProcessList(answers.Answer):
    items: list[Process]
    next_cursor: None


def router(s: Services) -> APIRouter:
    r = routes.router("/v1/machines/{machine_id}/processes", "executions")

    @r.get("", response_model=ProcessList)
    async def processes(request: Request, machine_id: str) -> Response:
        found = await s.executions.processes(tenant(request), machine_id)
        shown = [{**shapes.execution(each.execution), "pid": each.pid} for each in found]
        return Json({"items": shown, "next_cursor": None})

    return r
