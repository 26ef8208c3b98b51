"""Code sessions: a kernel of the machine's each, whose language its id says."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from roost import ids
from roost.api.v1.services import Services, tenant
from roost.dialects import serving
from roost.dialects.pandastack import bodies
from roost.errors import NotFoundError, TimeoutExpired
from roost.gateway.respond import Json
from roost.services.code import Result, RunCode, check_context

TIMEOUT_S = 30.0
_ID = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]{0,31})\.([a-z2-7]{26})")


class Sessions:
    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[BaseRoute]:
        at = "/v1/sandboxes/{id}/repl/sessions"
        one = f"{at}/{{session}}"
        return [
            Route(at, self.create, methods=["POST"]),
            Route(at, self.list, methods=["GET"]),
            Route(one, self.delete, methods=["DELETE"]),
            Route(f"{one}/run", self.run, methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        """Its kernel starts with the first code; that there can be one is found now."""
        asked = await serving.body(request, bodies.Session, optional=True)
        named = f"{asked.language}.{ids.new()}"
        check_context(named)
        who, machine_id = tenant(request), request.path_params["id"]
        await self._s.code.run(who, machine_id, RunCode("", asked.language, named))
        return Json({"id": named, "language": asked.language}, 201)

    async def list(self, request: Request) -> Response:
        found = await self._s.code.contexts(tenant(request), request.path_params["id"])
        shown = [{"id": each.name, "language": each.language, "busy": each.busy} for each in found]
        return Json(shown)

    async def run(self, request: Request) -> Response:
        asked = await serving.body(request, bodies.Run)
        named, language = _session(request)
        seconds = TIMEOUT_S if asked.timeout_ms is None else asked.timeout_ms / 1000
        spec = RunCode(asked.code, language, named, seconds)
        began = time.perf_counter()
        found = await self._s.code.run(tenant(request), request.path_params["id"], spec)
        if found.ended.status == "expired":
            raise TimeoutExpired(f"execution timeout after {seconds:g}s")
        ms = round((time.perf_counter() - began) * 1000)
        return Json({**_shown(found), "duration_ms": ms})

    async def delete(self, request: Request) -> Response:
        named, _ = _session(request)
        await self._s.code.delete(tenant(request), request.path_params["id"], named)
        return Response(status_code=204)


def _session(request: Request) -> tuple[str, str]:
    """(context, language). Raises NOT_FOUND."""
    named = request.path_params["session"]
    match = _ID.fullmatch(named)
    if match is None:
        raise NotFoundError(f"There is no session {named[:80]!r}.")
    return named, match[1]


def _shown(found: Result) -> dict[str, Any]:
    said: dict[str, Any] = {
        "results": [
            {
                kind: data if isinstance(data, str) else json.dumps(data)
                for kind, data in each.data.items()
            }
            for each in found.results
        ],
        "stdout": found.stdout,
        "stderr": found.stderr,
        "exit": 0 if found.ended.status == "ok" else 1,
    }
    if found.raised is not None:
        raised = found.raised
        said["error"] = raised.traceback or f"{raised.name}: {raised.value}"
    elif found.ended.status != "ok":
        said["error"] = f"The kernel {found.ended.status}."
    return said
