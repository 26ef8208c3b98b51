"""Usage of the tenant, and of its machines by day. Nothing is billed: what that service counts for a bill is here what
was used.

CPU counts while a machine runs, whether it computes or not; memory, too, while it is frozen. Rows are of days, also where
hours were asked for, as ``granularity`` says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from roost.api.v1.shapes import time
from roost.clock import Clock
from roost.dialects.dedalus import asked
from roost.dialects.serving import Json, Services, tenant
from roost.errors import bad
from roost.services.models import Machine
from roost.services.usage import Amounts, UsageRow

PLAN = "self-hosted"
_DAY = timedelta(days=1)


class Usage:
    def __init__(self, services: Services, clock: Clock) -> None:
        self._s = services
        self._clock = clock

    async def retrieve(self, request: Request) -> Response:
        who = tenant(request)
        first = asked.day(request, "period_start") or self._today().replace(day=1)
        found = await self._s.usage.report(who, first, None, ("machine",))
        machines = await self._machines(who)
        total = found.total.amounts
        return Json(
            {
                "plan_slug": PLAN,
                "included_storage_gib": 0,
                "provisioned_storage_gib": sum(each.storage_gib for each in machines.values()),
                "billed_awake_seconds": sum(
                    _awake(row.amounts, machines.get(row.group["machine_id"]))
                    for row in found.items
                ),
                "billed_cpu_millicore_seconds": total.vcpu_milli_ms // 1000,
                "billed_memory_mib_seconds": total.memory_mib_ms // 1000,
                "billed_logical_storage_mib_seconds": total.storage_kib_ms // 1024 // 1000,
            }
        )

    async def compute(self, request: Request) -> Response:
        granularity = request.query_params.get("granularity") or "hour"
        if granularity not in ("hour", "day"):
            raise bad("granularity", "is hour or day")
        first, last, rows = await self._rows(request)
        machines = await self._machines(tenant(request))
        used = (row for row in rows if row.amounts.vcpu_milli_ms or row.amounts.memory_mib_ms)
        return Json(
            {
                "granularity": "day",
                **self._period(first, last),
                "rows": [self._compute(row, machines.get(row.group["machine_id"])) for row in used],
            }
        )

    async def storage(self, request: Request) -> Response:
        first, last, rows = await self._rows(request)
        used = (row for row in rows if row.amounts.storage_kib_ms)
        return Json({**self._period(first, last), "rows": [self._storage(row) for row in used]})

    # --- helpers --------------------------------------------------------------------------------

    def _today(self) -> date:
        return self._clock.now().astimezone(UTC).date()

    async def _rows(self, request: Request) -> tuple[date, date, Iterable[UsageRow]]:
        """Of the days asked for, and of one machine where one is."""
        first = asked.day(request, "period_start") or self._today().replace(day=1)
        last = asked.day(request, "period_end") or max(self._today(), first)
        found = await self._s.usage.report(tenant(request), first, last, ("day", "machine"))
        wanted = request.query_params.get("machine_id")
        return first, last, [r for r in found.items if wanted in (None, r.group["machine_id"])]

    async def _machines(self, who: str) -> dict[str, Machine]:
        """All there are: what one that is gone was like is not known any more."""
        known: dict[str, Machine] = {}
        cursor = None
        while True:
            page = await self._s.machines.list(who, limit=asked.MAX_PAGE, cursor=cursor)
            known.update((each.id, each) for each in page.items)
            cursor = page.next_cursor
            if cursor is None:
                return known

    def _period(self, first: date, last: date) -> dict[str, Any]:
        return {"period_start": time(_begin(first)), "period_end": self._end(last)}

    def _end(self, day: date) -> str | None:
        return time(min(_begin(day) + _DAY, max(self._clock.now(), _begin(day))))

    def _bucket(self, row: UsageRow) -> dict[str, Any]:
        day = date.fromisoformat(row.group["day"])
        return {
            "machine_id": row.group["machine_id"],
            "bucket_start": time(_begin(day)),
            "bucket_end": time(_begin(day) + _DAY),
        }

    def _compute(self, row: UsageRow, machine: Machine | None) -> dict[str, Any]:
        size = (0.0, 0, 0)
        if machine is not None:
            size = (machine.vcpu, machine.memory_mib, machine.storage_gib)
        return {
            **self._bucket(row),
            "awake_seconds": _awake(row.amounts, machine),
            "cpu_millicore_seconds": row.amounts.vcpu_milli_ms // 1000,
            "memory_mib_seconds": row.amounts.memory_mib_ms // 1000,
            "requested_vcpu": size[0],
            "requested_memory_mib": size[1],
            "requested_storage_gib": size[2],
            "spec_fingerprint": hashlib.sha256(repr(size).encode()).hexdigest()[:16],
            "window_count": 1,
            "last_window_end": self._end(date.fromisoformat(row.group["day"])),
            "org_metering_bucket_ids": [],
            "stripe_cpu_identifiers": [],
            "stripe_memory_identifiers": [],
        }

    def _storage(self, row: UsageRow) -> dict[str, Any]:
        day = _begin(date.fromisoformat(row.group["day"]))
        ms = max(1, int((min(day + _DAY, self._clock.now()) - day) / timedelta(milliseconds=1)))
        return {
            **self._bucket(row),
            "logical_storage_bytes": row.amounts.storage_kib_ms * 1024 // ms,
            "storage_mib_seconds": row.amounts.storage_kib_ms // 1024 // 1000,
            "org_metering_bucket_id": "",
            "stripe_storage_identifier": "",
        }


def _begin(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _awake(amounts: Amounts, machine: Machine | None) -> int:
    """Whole seconds; of a machine that is gone, as if it had had one vCPU."""
    milli = 1000 if machine is None else max(1, round(machine.vcpu * 1000))
    return amounts.vcpu_milli_ms // milli // 1000
