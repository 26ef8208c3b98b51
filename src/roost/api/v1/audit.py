"""The audit log over HTTP: pages, newest first, and a stream that goes on."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from roost.api.v1 import answers, routes, shapes
from roost.api.v1.parse import utc
from roost.api.v1.services import Services, caller, principal
from roost.gateway.respond import Events, Json, event
from roost.services.models import AuditEntry, Role
from roost.store.audit import Wanted

Id = Annotated[str | None, Query(max_length=40)]
Action = Annotated[str | None, Query(max_length=64, description="The operationId of the call.")]
Limit = Annotated[int, Query(ge=1, le=500)]
Cursor = Annotated[str | None, Query(max_length=512)]
_LAST_ID = re.compile(r"\d{1,18}", re.ASCII)
SSE: dict[str, Any] = {"content": answers.EVENTS, "description": "Events: entry, error."}


def router(s: Services) -> APIRouter:
    r = routes.router("/v1/audit", "audit")

    @r.get("", response_model=answers.Page[answers.AuditEntry])
    async def query(
        request: Request,
        machine_id: Id = None,
        key_id: Id = None,
        tenant_id: Id = None,
        action: Action = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        wanted = Wanted(
            _whose(request, tenant_id),
            machine_id,
            key_id,
            action,
            None if since is None else utc("since", since),
            None if until is None else utc("until", until),
        )
        return Json(shapes.page(await s.audit.query(wanted, limit, cursor), shapes.audit_entry))

    @r.get("/stream", response_class=Response, responses={200: SSE})
    async def stream(
        request: Request,
        machine_id: Id = None,
        key_id: Id = None,
        tenant_id: Id = None,
        action: Action = None,
    ) -> Response:
        """From now on, or with Last-Event-ID from after that one."""
        wanted = Wanted(_whose(request, tenant_id), machine_id, key_id, action)
        last = _LAST_ID.fullmatch(request.headers.get("last-event-id", ""))
        entries = s.audit.follow(wanted, int(last[0]) if last else await s.audit.last())
        return Events(_sse(entries), caller(request).request_id, caller(request).principal)

    return r


def _whose(request: Request, tenant_id: str | None) -> str | None:
    """A tenant sees its own, an admin all: another's id finds nothing."""
    who = principal(request)
    if who.role is Role.ADMIN:
        return tenant_id
    return who.tenant if tenant_id in (None, who.tenant) else ""


async def _sse(entries: AsyncGenerator[AuditEntry, None]) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(entries):
        async for each in entries:
            yield event("entry", shapes.audit_entry(each), str(each.id))
