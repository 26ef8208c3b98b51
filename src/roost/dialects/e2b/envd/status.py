"""``/health``, ``/metrics`` and ``/envs``: none of them wakes a sandbox."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from roost.api.v1.services import Services
from roost.dialects.e2b.envd.files import answered
from roost.dialects.e2b.envd.place import place
from roost.dialects.e2b.envd.refusals import missing
from roost.gateway.respond import Json
from roost.services.models import Machine, MachineUsage

MIB = 1 << 20
SAMPLE_S = 0.1


def routes(services: Services) -> list[Route]:
    async def health(request: Request) -> Response:
        where = place(request)
        if services.machines.runs(where.machine_id):
            return Response(status_code=204)
        status, said = missing(where.machine_id)
        return Json(said, status)

    async def metrics(request: Request) -> Response:
        where = place(request)
        if not services.machines.runs(where.machine_id):
            status, said = missing(where.machine_id)
            return Json(said, status)
        machine = await services.machines.get(where.tenant, where.machine_id)
        before = await services.machines.usage(where.tenant, where.machine_id)
        began = time.monotonic()
        await asyncio.sleep(SAMPLE_S)
        now = await services.machines.usage(where.tenant, where.machine_id)
        used_s = (now.cpu_usage_us - before.cpu_usage_us) / 1e6
        share = used_s / (time.monotonic() - began) / machine.vcpu
        return Json(shown(machine, now, share))

    async def envs(request: Request) -> Response:
        where = place(request)
        return Json(dict((await services.machines.get(where.tenant, where.machine_id)).env))

    return [
        Route("/health", answered(health), methods=["GET"]),
        Route("/metrics", answered(metrics), methods=["GET"]),
        Route("/envs", answered(envs), methods=["GET"]),
    ]


def shown(machine: Machine, usage: MachineUsage, cpu_share: float) -> dict[str, Any]:
    total = usage.memory_limit_bytes or machine.memory_mib * MIB
    return {
        "ts": int(time.time()),
        "cpu_count": max(1, math.ceil(machine.vcpu)),
        "cpu_used_pct": round(100 * max(0.0, cpu_share), 2),
        "mem_total": total,
        "mem_used": usage.memory_bytes,
        "mem_total_mib": total // MIB,
        "mem_used_mib": usage.memory_bytes // MIB,
        "disk_total": usage.disk_total_bytes or 0,
        "disk_used": usage.disk_used_bytes or 0,
    }
