"""Port 49999 of sandboxes, as ``e2b-code-interpreter`` speaks to it, answered by the ``Code`` service.

    POST   /execute                  lines of JSON: stdout, stderr, result, error, number_of_executions
    GET    /contexts                 POST /contexts   DELETE /contexts/{id}   POST /contexts/{id}/restart

Code is run for the sandbox's token. Contexts are asked for without one: then by whoever may see its ports.
"""

from __future__ import annotations

import contextlib
import hmac
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Scope

from roost import ids
from roost.dialects.e2b.access import Access, action, awake, guest, principal, sandbox_id
from roost.dialects.e2b.control.bodies import Asked
from roost.dialects.e2b.envd.refusals import problem
from roost.dialects.serving import App, Json, Services, Streamed, body, empty, not_served, tenant
from roost.errors import AuthError, ConflictError, NotFoundError
from roost.gateway.dispatch import Target
from roost.gateway.respond import dumps
from roost.services.code import MAX_TIMEOUT_S, Event, Raised, RunCode, Shown, Text
from roost.services.models import Machine, Principal

PORT = 49999
HOME = "/home/user"
PATHS = ("/execute", "/contexts")
_KNOWN = 10_000  # contexts whose language and directory are remembered
_KEYS = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
}


class Execute(Asked):
    code: str
    context_id: str | None = Field(None, alias="context_id")
    language: str | None = None
    env_vars: dict[str, str] | None = Field(None, alias="env_vars")


class NewContext(Asked):
    language: str | None = None
    cwd: Annotated[str, Field(max_length=4096)] | None = None  # it is remembered


class Kernel:
    def __init__(self, services: Services, access: Access) -> None:
        self._s = services
        self._access = access
        self._contexts: OrderedDict[tuple[str, str], tuple[str, str]] = OrderedDict()

    def target(self) -> Target:
        routes = [
            Route("/execute", self.execute, methods=["POST"]),
            Route("/contexts", self.contexts, methods=["GET"]),
            Route("/contexts", self.create, methods=["POST"]),
            Route("/contexts/{id}", self.delete, methods=["DELETE"]),
            Route("/contexts/{id}/restart", self.restart, methods=["POST"]),
        ]
        return Target(
            "e2b-kernel",
            App(routes),
            paths=PATHS,
            action=action,
            admit=self._admit,
            problem=problem,
        )

    async def _admit(self, scope: Scope) -> Principal:
        """Raises MACHINE_NOT_FOUND, AUTH_REQUIRED, AUTH_INVALID."""
        named = self._access.named(scope)
        machine = awake(await self._access.find("" if named is None else named.sandbox_id))
        headers = dict(scope["headers"])
        offered: bytes = headers.get(b"x-access-token", b"")
        if offered:
            if hmac.compare_digest(offered, self._access.token(machine).encode()):
                return principal(machine)
            raise AuthError("unauthorized access, please provide a valid access token")
        if scope["path"] != "/execute" and self._shown(machine, headers):
            return guest(machine)
        raise AuthError(
            "unauthorized access, please provide a valid access token", code="AUTH_REQUIRED"
        )

    def _shown(self, machine: Machine, headers: dict[bytes, bytes]) -> bool:
        every = self._s.ports.every(machine.id)
        if every is None or every.public:
            return every is not None
        token = headers.get(b"e2b-traffic-access-token", b"").decode("latin-1")
        expires = self._s.ports.link_expires(every, token)
        return expires is not None and expires > self._s.machines.clock.now().timestamp()

    # --- code -----------------------------------------------------------------------------------

    async def execute(self, request: Request) -> Response:
        asked = await body(request, Execute)
        if asked.env_vars:
            raise not_served(
                "variables of one run of code", "Set them in the code, or when the sandbox is made."
            )
        machine = sandbox_id(request)
        language, context = asked.language or "python", ""
        if asked.context_id:
            context = asked.context_id
            language = (await self._context(request, machine, context))[0]
        spec = RunCode(asked.code, language, context, MAX_TIMEOUT_S)
        events = self._s.code.stream(tenant(request), machine, spec)
        first = await anext(events)  # what is refused is refused with a status
        return Streamed(_lines(first, events), 200, media_type="application/x-ndjson")

    # --- contexts -------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        asked = await body(request, NewContext, optional=True)
        machine, name = sandbox_id(request), ids.new()
        language, cwd = asked.language or "python", asked.cwd or HOME
        python = language.lower() in ("python", "python3")
        if asked.cwd and not python:
            raise not_served(
                f"a working directory of a {language[:32]} context", "Change it in the code."
            )
        begin = f"__import__('os').chdir({cwd!r})" if python else ""
        ran = await self._s.code.run(
            tenant(request), machine, RunCode(begin or " ", language, name, 60.0)
        )
        if ran.raised is not None:
            await self._s.code.delete(tenant(request), machine, name)
            raise ConflictError(f"{ran.raised.name}: {ran.raised.value}")
        self._contexts[machine, name] = (language, cwd)
        if len(self._contexts) > _KNOWN:
            self._contexts.popitem(last=False)
        return Json({"id": name, "language": language, "cwd": cwd}, 201)

    async def contexts(self, request: Request) -> Response:
        machine = sandbox_id(request)
        found = await self._s.code.contexts(tenant(request), machine)
        return Json(
            [
                {
                    "id": each.name,
                    "language": each.language,
                    "cwd": self._contexts.get((machine, each.name), ("", HOME))[1],
                }
                for each in found
            ]
        )

    async def delete(self, request: Request) -> Response:
        machine, name = sandbox_id(request), request.path_params["id"]
        await self._s.code.delete(tenant(request), machine, name)
        self._contexts.pop((machine, name), None)
        return empty()

    async def restart(self, request: Request) -> Response:
        machine, name = sandbox_id(request), request.path_params["id"]
        language, cwd = await self._context(request, machine, name)
        await self._s.code.restart(tenant(request), machine, name)
        if (machine, name) in self._contexts and language.lower() in ("python", "python3"):
            begin = RunCode(f"__import__('os').chdir({cwd!r})", language, name, 60.0)
            await self._s.code.run(tenant(request), machine, begin)
        return empty(200)

    async def _context(self, request: Request, machine: str, name: str) -> tuple[str, str]:
        """(language, directory). Raises NOT_FOUND."""
        known = self._contexts.get((machine, name))
        if known is not None:
            return known
        for each in await self._s.code.contexts(tenant(request), machine):
            if each.name == name:
                return each.language, HOME
        raise NotFoundError(f"Context {name[:64]} not found")


async def _lines(first: Event, events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    count: int | None = None
    async with contextlib.aclosing(events):
        said = _said(first)
        if said is not None:
            yield dumps(said) + b"\n"
        async for each in events:
            count = getattr(each, "execution_count", count)
            said = _said(each)
            if said is not None:
                yield dumps(said) + b"\n"
    if count is not None:
        yield dumps({"type": "number_of_executions", "execution_count": count}) + b"\n"


def _said(event: Event) -> dict[str, Any] | None:
    match event:
        case Text(stream, text):
            return {"type": stream, "text": text, "timestamp": time.time_ns()}
        case Shown(main, data):
            known = {_KEYS[kind]: value for kind, value in data.items() if kind in _KEYS}
            extra = {kind: value for kind, value in data.items() if kind not in _KEYS}
            return {"type": "result", "is_main_result": main, **known, "extra": extra}
        case Raised(name, value, traceback):
            return {"type": "error", "name": name, "value": value, "traceback": traceback}
    return None
