"""Templates and snapshots as one file, over HTTP. A template comes in as a build's context (``FROM oci:.``)."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from roost.api.v1 import answers, routes, shapes, transfer
from roost.api.v1.services import Services, key_id, only_admin, tenant
from roost.gateway.respond import Json, Streamed, primed

_TAR = "application/x-tar"
FILE: dict[str, Any] = {"content": {_TAR: {"schema": {"type": "string", "format": "binary"}}}}
Trusted = Annotated[
    bool,
    Query(
        description="An admin knows where the file comes from: its disk is mounted on the host, its memory gone on from."
    ),
]
Memory = Annotated[bool, Query(description="With its processes, where it has them.")]


def router(s: Services) -> APIRouter:
    r = routes.router("/v1")

    @r.get(
        "/templates/{name}/export",
        tags=["templates"],
        response_class=Response,
        responses={200: FILE},
    )
    async def export_template(request: Request, name: str) -> Response:
        """An OCI image of one layer, as an oci-archive."""
        pieces = s.transfers.export_template(tenant(request), name)
        return Streamed(await primed(pieces), 200, None, _TAR)

    @r.get(
        "/snapshots/{snapshot}/export",
        tags=["snapshots"],
        response_class=Response,
        responses={200: FILE},
    )
    async def export_snapshot(request: Request, snapshot: str, memory: Memory = False) -> Response:
        """The file that ``import`` takes; SPECIFICATION.md says what is in it."""
        pieces = s.transfers.export_snapshot(tenant(request), snapshot, memory)
        return Streamed(await primed(pieces), 200, None, _TAR)

    @r.post(
        "/snapshots/import",
        tags=["snapshots"],
        status_code=201,
        response_model=answers.Snapshot,
        openapi_extra={"requestBody": FILE},
    )
    async def import_snapshot(
        request: Request,
        name: Annotated[str | None, Query(max_length=63)] = None,
        trusted: Trusted = False,
    ) -> Response:
        if trusted:
            only_admin(request)
        made = await s.transfers.import_snapshot(
            tenant(request), transfer.pieces(request), name, trusted, key_id(request)
        )
        return Json(shapes.snapshot(made), 201)

    return r
