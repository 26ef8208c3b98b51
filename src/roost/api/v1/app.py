"""The application: routers, errors, and a document that says all of it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

import roost
from roost import web
from roost.api.v1 import (
    access,
    answers,
    approvals,
    audit,
    browser,
    code,
    computer,
    connect,
    egress,
    executions,
    exports,
    files,
    host,
    keys,
    lineage,
    machines,
    ports,
    problems,
    processes,
    routes,
    secrets,
    snapshots,
    ssh_keys,
    templates,
    tenants,
    terminals,
    tools,
    usage,
    volumes,
)
from roost.api.v1.services import Services, only_admin
from roost.gateway.dispatch import Target
from roost.gateway.respond import Json
from roost.services.models import Principal
from roost.services.tickets import Tickets

PUBLIC = frozenset({"/healthz", "/openapi.json", "/docs", *web.PATHS})
_STREAMED = re.compile(
    r"/v1/machines/[^/]+/(files(/tar)?|executions/[^/]+/stdin)|/v1/builds/[^/]+/context"
)
_SENT = "/v1/snapshots/import"
_TERMINAL = re.compile(r"/v1/machines/([^/]+)/terminals/([^/]+)/stream")


def streams(method: str, path: str) -> bool:
    """Whether the body of such a request is read by its handler."""
    if method not in ("PUT", "POST"):
        return False
    if path == _SENT:
        return method == "POST"
    match = _STREAMED.fullmatch(path)
    return match is not None and (method == "POST") == path.endswith("/stdin")


def native(app: FastAPI, tickets: Tickets) -> Target:
    """As the gateway serves it: below every path that is nobody else's."""
    actions = access.Actions(app.routes)

    async def admit(scope: Scope) -> Principal | None:
        match = _TERMINAL.fullmatch(scope["path"])
        if match is None or scope["type"] != "websocket":
            return None
        return await tickets.admit(match[1], match[2], QueryParams(scope["query_string"]))

    return Target(
        "native",
        app,
        paths=("",),
        public=PUBLIC,
        streams=streams,
        admin=access.admin,
        inside=access.inside,
        own=access.own,
        action=actions.of,
        admit=admit,
    )


def create_app(s: Services) -> FastAPI:
    app = FastAPI(
        title="Roost",
        version=roost.__version__,
        description="A machine for every agent to come home to.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        strict_content_type=False,
        generate_unique_id_function=routes.operation,
    )
    problems.install(app)
    # Machines before files: /v1/machines/by-key/files is a machine's key, not a machine's files.
    things = (
        executions, terminals, connect, machines, lineage, egress, files, keys, ports, secrets, exports, snapshots,
        volumes, ssh_keys, tenants, audit, usage, templates, host, browser, computer, code, processes,
        tools, approvals,
    )  # fmt: skip
    # The routes themselves: a router that is included makes each of them a second time, and is searched for each call.
    for router in (*(make.router(s) for make in things), templates.builds(s), ports.listening(s)):
        app.router.routes.extend(router.routes)

    @app.get("/healthz", tags=["host"], response_model=answers.Health)
    async def healthz() -> Response:
        return Json({"status": "ok"})

    @app.get(
        "/metrics",
        tags=["host"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics(request: Request) -> Response:
        only_admin(request)
        return Response(await s.metrics.render(), media_type="text/plain; version=0.0.4")

    @app.get("/openapi.json", include_in_schema=False)
    async def document(request: Request) -> Response:
        return Json(openapi(app))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(_DOCS, media_type="text/html")

    for path in web.PATHS:
        app.get(path, include_in_schema=False)(_page(*web.read(path)))
    return app


def _page(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def page() -> Response:
        return Response(content, headers=web.HEADERS, media_type=kind)

    return page


def openapi(app: FastAPI) -> dict[str, Any]:
    """The document, with the ways to send a key."""
    if app.openapi_schema is None:
        schema = FastAPI.openapi(app)
        problems.declare(schema)
        schema.setdefault("components", {})["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        schema["security"] = [{"bearer": []}, {"key": []}]
        for path in PUBLIC & set(schema["paths"]):
            for operation in schema["paths"][path].values():
                operation["security"] = []
        app.openapi_schema = schema
    return app.openapi_schema


# No scripts from elsewhere: the page reads the document and lists it.
_DOCS = """<!doctype html><meta charset="utf-8"><title>Roost API</title>
<style>body{font:15px/1.5 system-ui;margin:2rem auto;max-width:60rem}code{background:#eee;padding:0 .3em}</style>
<h1>Roost API</h1><p>The whole document: <a href="/openapi.json">/openapi.json</a></p><ul id="l"></ul>
<script>fetch("/openapi.json").then(r=>r.json()).then(d=>{const l=document.getElementById("l");
for(const[p,o]of Object.entries(d.paths))for(const[m,x]of Object.entries(o)){const i=document.createElement("li"),
c=document.createElement("code");c.textContent=m.toUpperCase()+" "+p;i.append(c," "+(x.summary||""));l.append(i)}})
</script>
"""
