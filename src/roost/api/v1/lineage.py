"""What comes of machines over HTTP: trees of them, what differs between two, and one in another's place."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from roost.api.v1 import answers, bodies, routes, shapes
from roost.api.v1.parse import invalid, query_path
from roost.api.v1.services import Services, tenant
from roost.gateway.respond import Json
from roost.services.diffs import ITEMS, MAX_EXCLUDED, MAX_ITEMS

Id = Annotated[str, Query(max_length=64)]
Path = Annotated[str | None, Query(max_length=8192, description="Below it only; absolute.")]
Path64 = Annotated[str | None, Query(max_length=8192, description="Instead of path: base64.")]
Excluded = Annotated[
    list[str] | None,
    Query(max_length=MAX_EXCLUDED, description="Absolute, with all below; repeat for more."),
]


def router(s: Services) -> APIRouter:
    r = routes.router("/v1", "machines")

    @r.get("/tree", response_model=answers.Tree)
    async def tree(
        request: Request,
        machine: Annotated[
            str | None,
            Query(max_length=64, description="Those it came of, itself, all that came of it."),
        ] = None,
    ) -> Response:
        found = await s.trees.tree(tenant(request), machine)
        nodes = [shapes.node(each) for each in found.nodes]
        return Json({"items": nodes, "truncated": found.truncated})

    @r.get("/machines/{machine_id}/diff", response_model=answers.Diff)
    async def diff(
        request: Request,
        machine_id: str,
        other: Id,
        path: Path = None,
        path_b64: Path64 = None,
        exclude: Excluded = None,
        limit: Annotated[int, Query(ge=1, le=MAX_ITEMS)] = ITEMS,
    ) -> Response:
        """What differs in files, from this machine to the other. Wakes both."""
        top = b"/"
        if path is not None or path_b64 is not None:
            top = query_path(request)
        try:
            left_out = [each.encode() for each in exclude or ()]
        except UnicodeEncodeError:
            raise invalid("exclude", "is UTF-8", "INVALID_PATH") from None
        found = await s.diffs.diff(tenant(request), machine_id, other, top, left_out, limit)
        return Json(shapes.diff(found))

    @r.post("/machines/{machine_id}/promote", response_model=answers.Machine)
    async def promote(
        request: Request, machine_id: str, body: bodies.Promote | None = None
    ) -> Response:
        """It takes its parent's key, name, end, ports with their hosts and links, and preview tokens; or, where isolation
        or driver is named, it goes up the ladder with its disk."""
        body = body or bodies.Promote.model_validate({})
        if body.isolation is not None or body.driver is not None:
            if body.onto is not None or body.previous != "keep":
                raise invalid("isolation", "goes without onto and previous")
            climbed = await s.promotions.climb(
                tenant(request), machine_id, body.isolation, body.driver
            )
            return Json(shapes.machine(climbed), 200, {"etag": f'"{climbed.revision}"'})
        promoted = await s.promotions.promote(
            tenant(request), machine_id, body.onto, body.previous == "destroy"
        )
        etag = {"etag": f'"{promoted.revision}"'}
        return Json(shapes.machine(promoted), 200, etag)

    return r
