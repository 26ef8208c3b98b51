"""Volumes, and the files in them, which E2B's clients reach without a sandbox by a token of the volume's own.

Theirs are shared by many writers and grow as they are filled; ours are disks of a size, that one machine has at a time
or several read-only.
"""

from __future__ import annotations

import hmac
import posixpath
import re
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Scope

from roost.api.v1.transfer import pieces
from roost.dialects.e2b.control import bodies
from roost.dialects.e2b.control.exposure import Exposure
from roost.dialects.e2b.errors import problem
from roost.dialects.serving import App, Json, Services, Streamed, body, empty, key_id, tenant
from roost.errors import AuthError, ConflictError, InvalidRequestError, NotFoundError, RoostError
from roost.gateway.dispatch import Action, Target
from roost.services import asking
from roost.services.files import FileInfo, Write
from roost.services.models import Principal, Volume
from roost.services.volume_files import Reached

SIZE_GIB = 10
CONTENT = "/volumecontent"
_KINDS = {"file": "file", "directory": "directory", "symlink": "symlink"}
_MISSING = ("FILE_NOT_FOUND", "VOLUME_NOT_FOUND", "NOT_A_DIRECTORY")
_DEPTH = 32
_ENTRIES = 10_000


class Volumes:
    def __init__(self, services: Services, exposure: Exposure) -> None:
        self._s = services
        self._exposure = exposure

    def routes(self) -> list[Route]:
        return [
            Route("/volumes", self.create, methods=["POST"]),
            Route("/volumes", self.list_, methods=["GET"]),
            Route("/volumes/{id}", self.get, methods=["GET"]),
            Route("/volumes/{id}", self.delete, methods=["DELETE"]),
        ]

    def content(self) -> Target:
        one = f"{CONTENT}/{{id}}"
        routes = [
            Route(f"{one}/path", self.stat, methods=["GET"]),
            Route(f"{one}/path", self.change, methods=["PATCH"]),
            Route(f"{one}/path", self.remove, methods=["DELETE"]),
            Route(f"{one}/dir", self.entries, methods=["GET"]),
            Route(f"{one}/dir", self.make_dir, methods=["POST"]),
            Route(f"{one}/file", self.read, methods=["GET"]),
            Route(f"{one}/file", self.write, methods=["PUT"]),
        ]
        return Target(
            "e2b-volumes",
            App(routes),
            paths=(CONTENT,),
            streams=lambda method, path: method == "PUT",
            action=_action,
            admit=self._admit,
            problem=problem,
        )

    # --- volumes --------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        asked = await body(request, bodies.NewVolume)
        made = await self._s.volumes.create(tenant(request), asked.name, SIZE_GIB, key_id(request))
        return Json(self._shape(request, made), 201)

    async def list_(self, request: Request) -> Response:
        found, cursor = [], None
        while True:
            page = await self._s.volumes.list(tenant(request), 500, cursor)
            found += [{"volumeID": each.id, "name": each.name} for each in page.items]
            cursor = page.next_cursor
            if cursor is None:
                return Json(found)

    async def get(self, request: Request) -> Response:
        return Json(self._shape(request, await self._found(request)))

    async def delete(self, request: Request) -> Response:
        volume = await self._found(request)
        await self._s.volume_files.release(volume.tenant_id, volume.id)
        await self._s.volumes.delete(volume.tenant_id, volume.id)
        return empty()

    async def _found(self, request: Request) -> Volume:
        return await self._s.volumes.get(tenant(request), request.path_params["id"])

    def _shape(self, request: Request, volume: Volume) -> dict[str, Any]:
        return {
            "volumeID": volume.id,
            "name": volume.name,
            # It lets whoever has it write: who may only read is told none.
            "token": self._token(volume.tenant_id, volume.id) if asking.may_change() else "",
            "domain": self._exposure.domain(request),
        }

    def _token(self, whose: str, volume_id: str) -> str:
        said = self._s.machines.token(volume_id, whose, "e2b-volume-v1")
        return f"vol-{whose.encode().hex()}-{said}"

    # --- what is in them ------------------------------------------------------------------------

    async def _admit(self, scope: Scope) -> Principal:
        """By the volume's token, which says whose it is. Raises AUTH_INVALID."""
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        scheme, _, offered = headers.get(b"authorization", b"").partition(b" ")
        volume_id = scope["path"].removeprefix(f"{CONTENT}/").partition("/")[0]
        parts = offered.strip().decode("latin-1").split("-")
        refused = AuthError("This is no token of this volume.")
        if scheme.lower() != b"bearer" or len(parts) != 3:
            raise refused
        try:
            whose = bytes.fromhex(parts[1]).decode()
        except ValueError:
            raise refused from None
        if not hmac.compare_digest(offered.strip(), self._token(whose, volume_id).encode()):
            raise refused
        return Principal(whose, volume_id, "e2b")

    async def stat(self, request: Request) -> Response:
        machine, base, path = await self._place(request)
        return Json(_entry(await self._info(request, machine, path), base))

    async def entries(self, request: Request) -> Response:
        machine, base, path = await self._place(request)
        depth = _whole(request, "depth", 1, 8) or 1
        found: list[dict[str, Any]] = []
        await self._walk(tenant(request), machine, path, depth, base, found)
        return Json(found)

    async def _walk(
        self,
        whose: str,
        machine: str,
        path: bytes,
        depth: int,
        base: str,
        found: list[dict[str, Any]],
    ) -> None:
        cursor = None
        while len(found) < _ENTRIES:
            page = await _known(self._s.files.list(whose, machine, path, 500, cursor))
            for each in page.items:
                found.append(_entry(each, base))
                if depth > 1 and each.kind == "directory":
                    await self._walk(whose, machine, each.path, depth - 1, base, found)
            cursor = page.next_cursor
            if cursor is None:
                return

    async def make_dir(self, request: Request) -> Response:
        machine, base, path = await self._place(request)
        force = request.query_params.get("force") == "true"
        mode = _whole(request, "mode", 0, 0o7777)
        try:
            await _known(
                self._s.files.make_dir(tenant(request), machine, path, parents=force, mode=mode)
            )
        except RoostError as failure:
            if failure.code != "FILE_EXISTS" or not force:
                raise
        await self._own(request, machine, path)
        return Json(_entry(await self._info(request, machine, path), base), 201)

    async def read(self, request: Request) -> Response:
        reached, path = await self._reached(request)
        whose = tenant(request)
        found = await _known(self._s.files.read(whose, reached.machine_id, path))
        headers = {"content-length": str(found.length)}
        data = self._s.volume_files.during(whose, reached, found.data)
        return Streamed(data, 200, headers, "application/octet-stream")

    async def write(self, request: Request) -> Response:
        reached, path = await self._reached(request)
        whose = tenant(request)
        spec = Write(path, mode=_whole(request, "mode", 0, 0o7777), owner=_owner(request))
        data = self._s.volume_files.during(whose, reached, pieces(request))
        info = await self._s.files.write(whose, reached.machine_id, spec, data)
        return Json(_entry(info, reached.path), 201)

    async def change(self, request: Request) -> Response:
        machine, base, path = await self._place(request)
        asked = await body(request, bodies.Attributes, optional=True)
        owner = _of(asked.uid, asked.gid)
        await _known(
            self._s.files.set_attributes(
                tenant(request), machine, path, mode=asked.mode, owner=owner
            )
        )
        return Json(_entry(await self._info(request, machine, path), base))

    async def remove(self, request: Request) -> Response:
        machine, base, path = await self._place(request)
        if path.decode(errors="surrogateescape") == base:
            raise ConflictError("The volume's own directory stays: delete the volume.")
        await _known(self._s.files.remove(tenant(request), machine, path, recursive=True))
        return empty()

    async def _own(self, request: Request, machine: str, path: bytes) -> None:
        if owner := _owner(request):
            await self._s.files.set_attributes(tenant(request), machine, path, owner=owner)

    async def _info(self, request: Request, machine: str, path: bytes) -> FileInfo:
        found = self._s.files.stat(tenant(request), machine, path, follow=False)
        info: FileInfo = await _known(found)
        return info

    async def _place(self, request: Request) -> tuple[str, str, bytes]:
        reached, path = await self._reached(request)
        return reached.machine_id, reached.path, path

    async def _reached(self, request: Request) -> tuple[Reached, bytes]:
        """The machine, where the volume is there, and the path asked for there: never one beside the volume. (Links in
        it lead where they lead, but only in that machine.) Raises VOLUME_NOT_FOUND, INVALID_PATH."""
        reached = await self._s.volume_files.reach(tenant(request), request.path_params["id"])
        asked = request.query_params.get("path", "/")
        if "\0" in asked:
            raise InvalidRequestError("A path has no NUL in it.", code="INVALID_PATH")
        inner = posixpath.normpath("/" + asked)
        whole = reached.path + ("" if inner in ("/", "//") else "/" + inner.lstrip("/"))
        return reached, whole.encode()


def _action(scope: Scope) -> Action | None:
    if scope.get("path_params") is None:
        return None
    return Action(f"e2b_volume_{scope['path'].rpartition('/')[2]}"[:64], False)


async def _known(work: Any) -> Any:
    """What is missing is missing, also below what is no directory."""
    try:
        return await work
    except RoostError as failure:
        if failure.code not in _MISSING:
            raise
        raise NotFoundError(failure.message, code="FILE_NOT_FOUND") from None


def _entry(info: FileInfo, base: str) -> dict[str, Any]:
    path = info.path.decode(errors="replace").removeprefix(base) or "/"
    found = {
        "name": info.name.decode(errors="replace") if path != "/" else "/",
        "type": _KINDS.get(info.kind, "unknown"),
        "path": path,
        "size": info.size,
        "mode": info.mode & 0o7777,
        "uid": info.uid,
        "gid": info.gid,
        "atime": info.mtime,
        "mtime": info.mtime,
        "ctime": info.mtime,
    }
    if info.link_target:
        found["target"] = info.link_target.decode(errors="replace")
    return found


def _owner(request: Request) -> str:
    return _of(_whole(request, "uid", 0, 1 << 31), _whole(request, "gid", 0, 1 << 31))


def _of(uid: int | None, gid: int | None) -> str:
    if uid is None and gid is None:
        return ""
    return f"{uid or 0}:{gid if gid is not None else uid or 0}"


def _whole(request: Request, name: str, least: int, most: int) -> int | None:
    text = request.query_params.get(name)
    if text is None or text == "":
        return None
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII) or not least <= int(text) <= most:
        raise InvalidRequestError(f"{name} is from {least} to {most}.", details={"field": name})
    return int(text)
