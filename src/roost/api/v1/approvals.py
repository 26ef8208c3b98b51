"""What waits for approval, and deciding it, over HTTP. Who may decide sees all of what waits."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from roost.api.v1 import answers, bodies, routes, shapes
from roost.api.v1.services import Services, caller, key_id, tenant
from roost.gateway.respond import Events, Json, event
from roost.services import asking
from roost.services.approvals import Approval

MachineId = Annotated[str | None, Query(max_length=40)]
Status = Annotated[Literal["pending", "approved", "denied", "expired", "cancelled", "any"], Query()]
Limit = Annotated[int, Query(ge=1, le=500)]
Cursor = Annotated[str | None, Query(max_length=512)]
SSE: dict[str, Any] = {
    "content": answers.EVENTS,
    "description": "Events: approval (what waits, and again when it is decided), error.",
}


def router(s: Services) -> APIRouter:
    r = routes.router("/v1/approvals", "approvals")

    @r.get("", response_model=answers.Page[answers.Approval])
    async def list_(
        request: Request,
        machine_id: MachineId = None,
        status: Status = "pending",
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        """Newest first."""
        wanted = None if status == "any" else status
        whole = asking.may_change()
        found = await s.approvals.list(
            tenant(request), machine_id, wanted, limit, cursor, whole=whole
        )
        return Json(shapes.page(found, shapes.approval))

    @r.get("/stream", response_class=Response, responses={200: SSE})
    async def stream(request: Request, machine_id: MachineId = None) -> Response:
        found = s.approvals.follow(tenant(request), machine_id, whole=asking.may_change())
        return Events(_sse(found), caller(request).request_id, caller(request).principal)

    @r.get("/{approval_id}", response_model=answers.Approval)
    async def get(request: Request, approval_id: str) -> Response:
        whole = asking.may_change()
        found = await s.approvals.get(tenant(request), approval_id, whole=whole)
        return Json(shapes.approval(found))

    @r.post("/{approval_id}/approve", response_model=answers.Approval)
    async def approve(
        request: Request, approval_id: str, body: bodies.Decision | None = None
    ) -> Response:
        """Once, and exactly what was asked for is started."""
        note = None if body is None else body.note
        return _decided(
            request,
            await s.approvals.approve(tenant(request), approval_id, key_id(request), note),
        )

    @r.post("/{approval_id}/deny", response_model=answers.Approval)
    async def deny(
        request: Request, approval_id: str, body: bodies.Decision | None = None
    ) -> Response:
        note = None if body is None else body.note
        return _decided(
            request, await s.approvals.deny(tenant(request), approval_id, key_id(request), note)
        )

    return r


def _decided(request: Request, approval: Approval) -> Response:
    caller(request).machine_id = approval.machine_id  # for the audit log
    return Json(shapes.approval(approval))


async def _sse(found: AsyncGenerator[Approval, None]) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(found):
        async for each in found:
            yield event("approval", shapes.approval(each))
