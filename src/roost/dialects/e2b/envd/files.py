"""``/files``: one file down; one or more up, raw or as a form; several composed into one. Gzip both ways.

Whether a signature stands for a token is said before (``access``).
"""

from __future__ import annotations

import asyncio
import mimetypes
import posixpath
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from email.utils import format_datetime
from typing import Any, TypeAlias
from urllib.parse import quote

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from roost.api.v1 import transfer
from roost.api.v1.parse import Range, byte_range
from roost.api.v1.services import Services, caller
from roost.dialects.e2b.envd.accounts import Account, Accounts
from roost.dialects.e2b.envd.connect import told
from roost.dialects.e2b.envd.entries import text
from roost.dialects.e2b.envd.metadata import Metadata, noted
from roost.dialects.e2b.envd.parts import Part, Parts, boundary
from roost.dialects.e2b.envd.place import Place, place, user_of
from roost.dialects.e2b.envd.refusals import Refused, gone, http_status, missing
from roost.dialects.serving import body
from roost.errors import RoostError, error
from roost.gateway.respond import Json, Streamed
from roost.services.files import FileInfo, Write

MAX_SOURCES = 1000
Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]
_SPACE = "not enough disk space available"


class Compose(BaseModel):
    source_paths: list[str]
    destination: str
    username: str | None = None


class FileRoutes:
    def __init__(self, services: Services, accounts: Accounts, metadata: Metadata) -> None:
        self._files = services.files
        self._accounts = accounts
        self._metadata = metadata

    def routes(self) -> list[Route]:
        return [
            Route("/files", answered(self.download), methods=["GET"]),
            Route("/files", answered(self.upload), methods=["POST"]),
            Route("/files/compose", answered(self.compose), methods=["POST"]),
        ]

    async def download(self, request: Request) -> Response:
        where = place(request)
        account = await self._account(request, where)
        path = account.path(request.query_params.get("path", ""))
        asked = byte_range(request.headers.get("range"))
        part = asked or Range()
        if part.suffix == 0:
            raise _beyond()
        try:
            reading = await self._files.read(
                where.tenant, where.machine_id, path, part.offset, part.length, part.suffix or 0
            )
        except RoostError as failure:
            raise _about(path, failure) from None
        headers = _headers(reading.info, path)
        if asked is not None:
            size = max(reading.info.size, reading.offset + reading.length)
            if reading.length == 0:
                await reading.data.aclose()
                raise _beyond()
            end = reading.offset + reading.length - 1
            headers["content-range"] = f"bytes {reading.offset}-{end}/{size}"
        elif _wants_gzip(request):
            headers["content-encoding"] = "gzip"
            return Streamed(_packed(reading.data), 200, headers)
        headers["content-length"] = str(reading.length)
        return Streamed(reading.data, 200 if asked is None else 206, headers)

    async def upload(self, request: Request) -> Response:
        where = place(request)
        notes = noted(request.headers.items())
        account = await self._account(request, where)
        named = request.query_params.get("path", "")
        limit = boundary(request.headers.get("content-type", ""))
        data = transfer.decoded(request)
        if limit is None:
            if not named:
                raise Refused("invalid_argument", "path is required for a raw upload")
            written = [await self._write(where, account, account.path(named), data, notes)]
            return Json(written)
        written = []
        async for each in Parts(data, limit).all():
            if each.name != "file":
                continue
            if named and written:
                raise Refused("invalid_argument", "a form with a path in its URL has one file")
            path = account.path(named or _filename(each))
            written.append(await self._write(where, account, path, each.data, notes))
        return Json(written)

    async def compose(self, request: Request) -> Response:
        where = place(request)
        asked = await body(request, Compose)
        account = await self._accounts.of(where, asked.username or user_of(request))
        if not 0 < len(asked.source_paths) <= MAX_SOURCES:
            raise Refused("invalid_argument", f"source_paths: from 1 to {MAX_SOURCES}")
        sources = [account.path(each) for each in asked.source_paths]
        to = account.path(asked.destination)
        written = await self._write(where, account, to, self._joined(where, sources), {})
        for source in dict.fromkeys(sources):
            if source != to:
                await self._files.remove(where.tenant, where.machine_id, source)
                await self._metadata.removed(where, source)
        return Json(written)

    # --- helpers --------------------------------------------------------------------------------

    async def _account(self, request: Request, where: Place) -> Account:
        name = request.query_params.get("username") or user_of(request)
        return await self._accounts.of(where, name)

    async def _write(
        self,
        where: Place,
        account: Account,
        path: bytes,
        data: AsyncGenerator[bytes, None],
        notes: Mapping[str, str],
    ) -> dict[str, Any]:
        spec = Write(path, owner=account.owner, make_parents=True)
        try:
            await self._files.write(where.tenant, where.machine_id, spec, data)
        except RoostError as failure:
            raise _about(path, failure) from None
        finally:
            await data.aclose()
        await self._metadata.wrote(where, path, notes)
        said: dict[str, Any] = {"name": text(posixpath.basename(path)), "type": "file"}
        return {**said, "path": text(path), **({"metadata": dict(notes)} if notes else {})}

    async def _joined(self, where: Place, sources: list[bytes]) -> AsyncGenerator[bytes, None]:
        for source in sources:
            try:
                reading = await self._files.read(where.tenant, where.machine_id, source)
            except RoostError as failure:
                raise _about(source, failure) from None
            try:
                async for piece in reading.data:
                    yield piece
            finally:
                await reading.data.aclose()


def answered(endpoint: Endpoint) -> Endpoint:
    """Failures as ``{code, message}``."""

    async def wrapped(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Refused as failure:
            return Json({"code": failure.status, "message": failure.message}, failure.status)
        except RoostError as failure:
            shown = told(request, failure)
            if gone(shown):
                status, said = missing(caller(request).machine_id)
                return Json(said, status)
            status = http_status(shown)
            return Json({"code": status, "message": shown.message}, status)

    return wrapped


def _beyond() -> RoostError:
    return error("RANGE_NOT_SATISFIABLE", "the range lies beyond the file's end")


def _about(path: bytes, failure: RoostError) -> RoostError | Refused:
    """In the words of E2B's daemon, where clients may look at them."""
    shown = text(path)
    if failure.code in ("FILE_NOT_FOUND", "NOT_A_DIRECTORY"):
        return Refused("not_found", f"path '{shown}' does not exist")
    if failure.code == "IS_A_DIRECTORY":
        return Refused("invalid_argument", f"path '{shown}' is a directory")
    if failure.code == "FILE_KIND_REFUSED":
        return Refused("invalid_argument", f"path '{shown}' is not a regular file")
    if failure.code == "MACHINE_DISK_FULL":
        failure.message = _SPACE
    return failure


def _filename(part: Part) -> str:
    if not part.filename:
        raise Refused("invalid_argument", "a file of the form has no name")
    return part.filename


def _headers(info: FileInfo, path: bytes) -> dict[str, str]:
    """What comes from a machine is no page of ours: it runs nothing in a browser, whatever it says it is."""
    name = posixpath.basename(path)
    kind = mimetypes.guess_type(text(name))[0] or "application/octet-stream"
    return {
        "content-type": kind,
        "content-disposition": f"inline; filename*=UTF-8''{quote(name)}",
        "content-security-policy": "sandbox",
        "x-content-type-options": "nosniff",
        "last-modified": format_datetime(info.mtime.replace(microsecond=0), usegmt=True),
        "accept-ranges": "bytes",
        "vary": "Accept-Encoding",
    }


def _wants_gzip(request: Request) -> bool:
    """Where nothing else is asked for: a client that could also unpack gzip is spared both halves of the work."""
    offered = request.headers.get("accept-encoding", "").replace(" ", "").lower()
    return offered in ("gzip", "gzip;q=1", "gzip;q=1.0")


async def _packed(data: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    packer = zlib.compressobj(5, zlib.DEFLATED, 31)
    try:
        async for piece in data:
            if out := await asyncio.to_thread(packer.compress, piece):
                yield out
        yield packer.flush()
    finally:
        await data.aclose()
