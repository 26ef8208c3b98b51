"""Files: raw bytes at ``/fs?path=``, directories and what a path is beside them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from roost.api.v1 import transfer
from roost.api.v1.services import Services, tenant
from roost.dialects.pandastack import shapes
from roost.errors import InvalidRequestError
from roost.gateway.respond import Json, Streamed
from roost.services.files import Write

ENTRIES = 10_000  # of a listing; beyond it is truncated
_PAGE = 500


class Files:
    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[BaseRoute]:
        at = "/v1/sandboxes/{id}/fs"
        return [
            Route(at, self.read, methods=["GET"]),
            Route(at, self.write, methods=["PUT", "POST"]),
            Route(at, self.remove, methods=["DELETE"]),
            Route(f"{at}/dir", self.entries, methods=["GET"]),
            Route(f"{at}/dir", self.make_dir, methods=["PUT", "POST"]),
            Route(f"{at}/stat", self.stat, methods=["GET"]),
        ]

    async def read(self, request: Request) -> Response:
        reading = await self._s.files.read(tenant(request), _id(request), _path(request))
        return Streamed(
            reading.data,
            200,
            {"content-length": str(reading.length)},
            "application/octet-stream",
        )

    async def write(self, request: Request) -> Response:
        spec = Write(path=_path(request))
        data = transfer.pieces(request)
        info = await self._s.files.write(tenant(request), _id(request), spec, data)
        size = info.size
        return Json({"path": info.path.decode(errors="replace"), "bytes": size, "size": size})

    async def remove(self, request: Request) -> Response:
        recursive = request.query_params.get("recursive", "") in ("1", "true")
        await self._s.files.remove(tenant(request), _id(request), _path(request), recursive)
        return Response(status_code=204)

    async def entries(self, request: Request) -> Response:
        who, machine_id, path = tenant(request), _id(request), _path(request, "/")
        found = []
        cursor: str | None = None
        while True:
            page = await self._s.files.list(who, machine_id, path, _PAGE, cursor)
            found += [shapes.entry(each) for each in page.items]
            cursor = page.next_cursor
            if cursor is None or len(found) >= ENTRIES:
                break
        said = {"path": path.decode(errors="replace"), "entries": found}
        return Json(said if cursor is None else {**said, "truncated": True})

    async def make_dir(self, request: Request) -> Response:
        info = await self._s.files.make_dir(tenant(request), _id(request), _path(request))
        return Json(shapes.entry(info), 201)

    async def stat(self, request: Request) -> Response:
        info = await self._s.files.stat(tenant(request), _id(request), _path(request))
        return Json(shapes.entry(info))


def _id(request: Request) -> str:
    named: str = request.path_params["id"]
    return named


def _path(request: Request, default: str = "") -> bytes:
    path = request.query_params.get("path", default)
    if not path:
        raise InvalidRequestError("path: an absolute path.", details={"field": "path"})
    return path.encode()
