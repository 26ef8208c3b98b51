"""Files over HTTP: bodies pass through in pieces, at the pace of the slower side."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from datetime import UTC
from email.utils import format_datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from roost.api.v1 import answers, bodies, routes, shapes, transfer
from roost.api.v1.parse import Range, body_path, byte_range, invalid, mode, query_path
from roost.api.v1.services import Services, caller, tenant
from roost.errors import RoostError, error
from roost.gateway.respond import Events, Json, Streamed, event, primed
from roost.services.files import FileEvent, FileInfo, Write

PathQuery = Annotated[str | None, Query(max_length=8192, description="Absolute, UTF-8.")]
B64Query = Annotated[str | None, Query(max_length=8192, description="Instead of path: base64.")]
ModeQuery = Annotated[str | None, Query(pattern=r"^[0-7]{3,5}$", examples=["0644"])]
OwnerQuery = Annotated[str | None, Query(max_length=130, description='"user" or "user:group".')]
Limit = Annotated[int, Query(ge=1, le=500)]
Cursor = Annotated[str | None, Query(max_length=8192)]
Offset = Annotated[int | None, Query(ge=0, le=1 << 50)]
BYTES: dict[str, Any] = {
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
}
TAR: dict[str, Any] = {
    "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}}
}
SSE: dict[str, Any] = {
    "content": answers.EVENTS,
    "description": "Events: ready, created, modified, removed, moved, attributes, overflow, error.",
}


def router(s: Services) -> APIRouter:
    r = routes.router("/v1/machines/{machine_id}/files", "files")

    @r.get("", response_class=Response, responses={200: BYTES, 206: BYTES})
    async def read(
        request: Request, machine_id: str, path: PathQuery = None, path_b64: B64Query = None
    ) -> Response:
        asked = byte_range(request.headers.get("range"))
        where = asked or Range()
        who, name = tenant(request), query_path(request)
        if where.suffix == 0:
            raise _unsatisfiable((await s.files.stat(who, machine_id, name)).size)
        reading = await s.files.read(
            who, machine_id, name, where.offset, where.length, where.suffix or 0
        )
        headers = _headers(reading.info)
        status = 200
        if asked is not None:
            size = max(reading.info.size, reading.offset + reading.length)
            if reading.length == 0:
                await reading.data.aclose()
                raise _unsatisfiable(size)
            end = reading.offset + reading.length - 1
            headers["content-range"] = f"bytes {reading.offset}-{end}/{size}"
            status = 206
        headers["content-length"] = str(reading.length)
        return Streamed(reading.data, status, headers, "application/octet-stream")

    @r.head("", response_class=Response, responses={200: {"description": "Its headers."}})
    async def head(
        request: Request, machine_id: str, path: PathQuery = None, path_b64: B64Query = None
    ) -> Response:
        info = await s.files.stat(tenant(request), machine_id, query_path(request))
        if info.kind != "file":
            raise _not_a_file(info)
        headers = _headers(info)
        headers["content-type"] = "application/octet-stream"
        headers["content-length"] = str(info.size)
        response = Response(status_code=200)
        response.raw_headers = [(k.encode(), v.encode("latin-1")) for k, v in headers.items()]
        return response

    @r.put("", response_model=answers.FileInfo, openapi_extra={"requestBody": BYTES})
    async def write(
        request: Request,
        machine_id: str,
        path: PathQuery = None,
        path_b64: B64Query = None,
        mode_: Annotated[ModeQuery, Query(alias="mode")] = None,
        owner: OwnerQuery = None,
        make_parents: bool = True,
        append: bool = False,
        create_new: bool = False,
        offset: Offset = None,
        sync: bool = False,
    ) -> Response:
        spec = Write(
            path=query_path(request),
            mode=mode(mode_),
            owner=owner or "",
            make_parents=make_parents,
            append=append,
            create_new=create_new,
            offset=offset,
            sync=sync,
        )
        data = transfer.pieces(request)
        info = await s.files.write(tenant(request), machine_id, spec, data)
        return Json(shapes.file_info(info))

    @r.delete("", status_code=204, response_class=Response)
    async def remove(
        request: Request,
        machine_id: str,
        path: PathQuery = None,
        path_b64: B64Query = None,
        recursive: bool = False,
    ) -> Response:
        await s.files.remove(tenant(request), machine_id, query_path(request), recursive)
        return Response(status_code=204)

    @r.patch("", response_model=answers.FileInfo)
    async def set_attributes(
        request: Request, machine_id: str, body: bodies.SetAttributes
    ) -> Response:
        mtime = body.mtime
        if mtime is not None:
            mtime = mtime.replace(tzinfo=UTC) if mtime.tzinfo is None else mtime
            if not 1970 <= mtime.year < 2262:
                raise invalid("mtime", "from 1970 to 2261")
        info = await s.files.set_attributes(
            tenant(request),
            machine_id,
            body_path("path", body.path, body.path_b64),
            mode(body.mode),
            body.owner or "",
            mtime,
            body.recursive,
        )
        return Json(shapes.file_info(info))

    @r.get("/stat", response_model=answers.FileInfo)
    async def stat(
        request: Request,
        machine_id: str,
        path: PathQuery = None,
        path_b64: B64Query = None,
        follow: bool = True,
    ) -> Response:
        info = await s.files.stat(tenant(request), machine_id, query_path(request), follow)
        return Json(shapes.file_info(info))

    @r.get("/list", response_model=answers.Page[answers.FileInfo])
    async def list_(
        request: Request,
        machine_id: str,
        path: PathQuery = None,
        path_b64: B64Query = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        found = await s.files.list(tenant(request), machine_id, query_path(request), limit, cursor)
        return Json(shapes.page(found, shapes.file_info))

    @r.post("/mkdir", status_code=201, response_model=answers.FileInfo)
    async def make_dir(request: Request, machine_id: str, body: bodies.MakeDirectory) -> Response:
        info = await s.files.make_dir(
            tenant(request),
            machine_id,
            body_path("path", body.path, body.path_b64),
            body.parents,
            mode(body.mode),
            body.owner or "",
        )
        return Json(shapes.file_info(info), 201)

    @r.post("/move", response_model=answers.FileInfo)
    async def move(request: Request, machine_id: str, body: bodies.Move) -> Response:
        info = await s.files.move(
            tenant(request),
            machine_id,
            body_path("source", body.source, body.source_b64),
            body_path("destination", body.destination, body.destination_b64),
            body.overwrite,
        )
        return Json(shapes.file_info(info))

    @r.get("/tar", response_class=Response, responses={200: TAR})
    async def tar_out(
        request: Request, machine_id: str, path: PathQuery = None, path_b64: B64Query = None
    ) -> Response:
        data = await s.files.tar_out(tenant(request), machine_id, query_path(request))
        return Streamed(await primed(data), 200, None, "application/x-tar")

    @r.put("/tar", response_model=answers.Unpacked, openapi_extra={"requestBody": TAR})
    async def tar_in(
        request: Request,
        machine_id: str,
        path: PathQuery = None,
        path_b64: B64Query = None,
        owner: OwnerQuery = None,
    ) -> Response:
        entries, size = await s.files.tar_in(
            tenant(request),
            machine_id,
            query_path(request),
            transfer.decoded(request),
            owner or "",
        )
        return Json({"entries": entries, "bytes": size})

    @r.get("/watch", response_class=Response, responses={200: SSE})
    async def watch(
        request: Request,
        machine_id: str,
        path: PathQuery = None,
        path_b64: B64Query = None,
        recursive: bool = True,
    ) -> Response:
        events = await s.files.watch(tenant(request), machine_id, query_path(request), recursive)
        return Events(
            await primed(_watched(events)), caller(request).request_id, caller(request).principal
        )

    return r


async def _watched(events: AsyncGenerator[FileEvent, None]) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(events):
        async for each in events:
            yield event(each.kind, shapes.file_event(each))


def _headers(info: FileInfo) -> dict[str, str]:
    at = info.mtime.replace(microsecond=0)
    return {
        "x-roost-mode": f"{info.mode:04o}",
        "x-roost-owner": _latin(f"{info.owner}:{info.group}"),
        "last-modified": format_datetime(at, usegmt=True),
        "etag": info.etag,
        "accept-ranges": "bytes",
        "x-content-type-options": "nosniff",  # what a machine wrote is shown as nothing else
    }


def _latin(text: str) -> str:
    """Fit for a header: names come from the machine."""
    return "".join(c if " " <= c <= "~" else "?" for c in text[:200])


def _unsatisfiable(size: int) -> RoostError:
    return error(
        "RANGE_NOT_SATISFIABLE",
        f"The file has {size} bytes; the range lies beyond them.",
        details={"size": size},
    )


def _not_a_file(info: FileInfo) -> RoostError:
    if info.kind == "directory":
        return error("IS_A_DIRECTORY", "The path is a directory.")
    return error("FILE_KIND_REFUSED", "The path is neither a file nor a directory.")
