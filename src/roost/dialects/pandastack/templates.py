"""Templates, and builds of them from a Dockerfile or from an image of a registry."""

from __future__ import annotations

import asyncio
import contextlib
import io
import tarfile
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import IO, Any

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Message

from roost.api.v1.services import Services, caller, key_id, tenant
from roost.dialects import serving
from roost.dialects.pandastack import shapes
from roost.dialects.pandastack.streams import Lines, events
from roost.errors import InvalidRequestError, LimitError
from roost.gateway.respond import Json
from roost.services.build_log import Event
from roost.services.builds import StartBuild

BUILD = "/v1/templates/build"
MAX_BODY = 64 << 20
MAX_FILES = 2000
MAX_FIELDS = 100
AT_ONCE = 4  # forms of one tenant that are read: they lie on the host's disk meanwhile
_PIECE = 256 * 1024
_SILENCE_S = 0.3  # of a log that is not followed, and its build goes on


class Templates:
    def __init__(self, services: Services) -> None:
        self._s = services
        self._forms: Counter[str] = Counter()  # being read, by tenant

    def routes(self) -> list[BaseRoute]:
        at = "/v1/templates"
        return [
            Route(at, self.list, methods=["GET"]),
            Route(BUILD, self.build, methods=["POST"]),
            Route(f"{at}/builds", self.builds, methods=["GET"]),
            Route(f"{at}/builds/{{build}}", self.get_build, methods=["GET"]),
            Route(f"{at}/builds/{{build}}/logs", self.log, methods=["GET"]),
            Route(f"{at}/{{name}}", self.get, methods=["GET"]),
            Route(f"{at}/{{name}}", self.delete, methods=["DELETE"]),
        ]

    async def list(self, request: Request) -> Response:
        found = await self._s.templates.list(tenant(request))
        return Json([shapes.template(each) for each in found])

    async def get(self, request: Request) -> Response:
        named = request.path_params["name"]
        found = await self._s.templates.get(tenant(request), named)
        return Json(shapes.template(found, named))

    async def delete(self, request: Request) -> Response:
        await self._s.templates.delete(tenant(request), request.path_params["name"])
        return Response(status_code=204)

    async def build(self, request: Request) -> Response:
        who = tenant(request)
        if self._forms[who] >= AT_ONCE:
            raise LimitError(
                f"{AT_ONCE} builds are being sent, the most there may be at once: retry later.",
                code="LIMIT_EXCEEDED",
            )
        self._forms[who] += 1
        try:
            form = await _form(request)
            try:
                return await self._build(request, form)
            finally:
                await form.close()
        finally:
            self._forms[who] -= 1
            if not self._forms[who]:
                del self._forms[who]

    async def _build(self, request: Request, form: FormData) -> Response:
        texts = {name: value for name, value in form.items() if isinstance(value, str)}
        files = {name: value for name, value in form.items() if isinstance(value, UploadFile)}
        size_mb = _number(texts, "size_mb")
        dockerfile = texts.get("dockerfile")
        if dockerfile is None and (image := texts.get("image_ref")) is not None:
            if not image.isprintable() or len(image.split()) != 1:
                raise InvalidRequestError("image_ref: an image's name.")
            dockerfile = f"FROM {image}\n"
        if dockerfile is None:
            if "rootfs" in files:
                raise serving.not_served(
                    "builds from an archive of a root file system",
                    "Build from a Dockerfile, or register an image.",
                )
            raise InvalidRequestError("dockerfile or image_ref: one of them.")
        who = tenant(request)
        asked = StartBuild(
            tags=(texts.get("name", ""),),
            dockerfile=dockerfile,
            roost_toml=_size(texts),
            created_by=key_id(request),
        )
        made, waits = await self._s.builds.start(who, asked)
        if waits:
            with tempfile.TemporaryFile() as packed:
                await asyncio.to_thread(_pack, files, packed)
                made = await self._s.builds.give(who, made.id, _pieces(packed))
        return Json(shapes.build(made, size_mb), 202)

    async def builds(self, request: Request) -> Response:
        page = await self._s.builds.list(tenant(request), None, 500, None)
        return Json([shapes.build(each) for each in page.items])

    async def get_build(self, request: Request) -> Response:
        found = await self._s.builds.get(tenant(request), request.path_params["build"])
        return Json(shapes.build(found))

    async def log(self, request: Request) -> Response:
        heard = await self._s.builds.follow(tenant(request), request.path_params["build"])
        follow = request.query_params.get("follow", "") in ("1", "true")
        return events(_lines(heard, follow), caller(request))


async def _lines(
    heard: AsyncGenerator[tuple[int, Event], None], follow: bool
) -> AsyncGenerator[bytes, None]:
    """Plain text, a line each, then the end."""
    lines = Lines()
    async with contextlib.aclosing(heard):
        while True:
            try:
                async with asyncio.timeout(None if follow else _SILENCE_S):
                    _, each = await anext(heard)
            except (StopAsyncIteration, TimeoutError):
                break
            text = _said(each)
            for line in lines.take(text.replace("\r", "\n")):
                yield f"data: {line}\n\n".encode()
    if rest := lines.rest():
        yield f"data: {rest}\n\n".encode()
    yield b"event: done\ndata: end\n\n"


def _said(each: Event) -> str:
    match each.get("event"):
        case "step":
            if "instruction" not in each:
                return ""
            return f"Step {each.get('step')}/{each.get('steps')}: {each['instruction']}\n"
        case "log":
            return str(each.get("text", ""))
        case "end":
            failure = each.get("error")
            why = failure.get("message", "") if isinstance(failure, Mapping) else ""
            return f"Build {each.get('status', 'ended')}{f': {why}' if why else ''}\n"
    return ""


async def _form(request: Request) -> FormData:
    """Raises INVALID_BODY, PAYLOAD_TOO_LARGE."""
    counted = Request(request.scope, _bounded(request))
    try:
        return await counted.form(max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=2 << 20)
    except MultiPartException as failure:
        raise InvalidRequestError(str(failure.message)[:300], code="INVALID_BODY") from failure


def _bounded(request: Request) -> Any:
    size = fields = 0
    kind = request.headers.get("content-type", "")
    parts = kind.lower().startswith("multipart/")  # whose fields are counted where they are read

    async def receive() -> Message:
        nonlocal size, fields
        message = await request.receive()
        body = message.get("body", b"")
        size += len(body)
        fields += 0 if parts else body.count(b"&")
        if fields >= MAX_FIELDS:
            raise InvalidRequestError(
                f"A form has {MAX_FIELDS} fields at most.", code="INVALID_BODY"
            )
        if size > MAX_BODY:
            raise InvalidRequestError(
                f"A build's files are {MAX_BODY >> 20} MiB at most; archives of root file systems are not served: "
                "build from a Dockerfile.",
                code="PAYLOAD_TOO_LARGE",
            )
        return message

    return receive


def _number(texts: Mapping[str, str], name: str) -> int | None:
    text = texts.get(name)
    if text is None or text == "":
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 8):
        raise InvalidRequestError(f"{name}: a whole number.", details={"field": name})
    return int(text)


def _size(texts: Mapping[str, str]) -> str | None:
    """Of the machines made from it."""
    said = {"vcpu": _number(texts, "cpu"), "memory_mib": _number(texts, "memory_mb")}
    known = [f"{name} = {value}" for name, value in said.items() if value is not None]
    return f"size = {{ {', '.join(known)} }}\n" if known else None


def _pack(files: Mapping[str, UploadFile], into: IO[bytes]) -> None:
    with tarfile.open(fileobj=into, mode="w") as tar:
        for name, file in files.items():
            file.file.seek(0, io.SEEK_END)
            info = tarfile.TarInfo(name)
            info.size = file.file.tell()
            info.mode = 0o644
            file.file.seek(0)
            tar.addfile(info, file.file)
    into.seek(0)


async def _pieces(packed: IO[bytes]) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(packed.read, _PIECE):
        yield piece
