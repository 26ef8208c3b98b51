"""The routes, and what stands before them: PandaStack's own paths, and all of /v1 for keys called ``pds_...``."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Scope

from roost.api.v1.services import Services
from roost.dialects import serving
from roost.dialects.pandastack import errors
from roost.dialects.pandastack.account import Account
from roost.dialects.pandastack.code import Sessions
from roost.dialects.pandastack.commands import Commands
from roost.dialects.pandastack.files import Files
from roost.dialects.pandastack.logs import Logs
from roost.dialects.pandastack.ports import Ports
from roost.dialects.pandastack.sandboxes import Sandboxes
from roost.dialects.pandastack.snapshots import Snapshots
from roost.dialects.pandastack.templates import BUILD, Templates
from roost.dialects.pandastack.terminals import Terminals
from roost.dialects.pandastack.volumes import Volumes
from roost.gateway.dispatch import Action, Target

PREFIX = "pds"
_FILE = re.compile(r"/v1/sandboxes/[^/]+/fs")
_SANDBOX = re.compile(r"/v1/sandboxes/([a-z0-9]{26,40})(?:/(.+))?")
_WORD = re.compile(r"[a-z-]+")
_NOT_SERVED = {
    "apps": "apps",
    "databases": "databases",
    "functions": "functions",
    "schedules": "schedules",
    "github": "GitHub previews",
    "preview-repos": "GitHub previews",
    "pricing": "prices",
    "invites": "invitations",
}
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
# What goes on in a machine, and not with it.
_INSIDE = ("exec", "fs", "repl", "ssh")


def targets(services: Services) -> tuple[Target, Target]:
    """By path for every key, and by key for every path of it."""
    things = (
        Sandboxes, Commands, Terminals, Files, Sessions, Snapshots, Ports, Logs, Account, Templates,
        Volumes,
    )  # fmt: skip
    routes: list[BaseRoute] = [each for make in things for each in make(services).routes()]
    app = serving.App([*routes, *_refusals()])

    def target(name: str, paths: tuple[str, ...], prefixes: tuple[str, ...]) -> Target:
        return Target(
            name, app, paths, prefixes=prefixes, streams=streams, action=action,
            problem=errors.problem,
        )  # fmt: skip

    return (
        target("pandastack", ("/v1",), (PREFIX,)),
        target("pandastack-sandboxes", ("/v1/sandboxes",), ()),
    )


def streams(method: str, path: str) -> bool:
    """Whether the body of such a request is read by its handler."""
    if method == "POST" and path == BUILD:
        return True
    return method in ("PUT", "POST") and _FILE.fullmatch(path) is not None


def action(scope: Scope) -> Action | None:
    """What a call is in the audit log."""
    method, path = scope.get("method", "WEBSOCKET"), scope["path"]
    match = _SANDBOX.fullmatch(path)
    if match is None:
        named = path.removeprefix("/v1/").replace("/", ".")[:40]
        return Action(f"pandastack.{method.lower()}.{named}", True)
    words = [each for each in (match[2] or "").split("/") if _WORD.fullmatch(each)]
    what = ".".join(words)  # no ports, no ids of sessions
    inside = what.split(".")[0] in _INSIDE
    name = f"pandastack.{method.lower()}.sandboxes{f'.{what}' if what else ''}"
    return Action(name, not inside, match[1])


def _refusals() -> list[BaseRoute]:
    made: list[BaseRoute] = []
    for part, what in _NOT_SERVED.items():
        refuse = _refusal(what)
        made += [
            Route(f"/v1/{part}", refuse, methods=_METHODS),
            Route(f"/v1/{part}/{{rest:path}}", refuse, methods=_METHODS),
        ]
    for part in ("invites", "participants"):
        refuse = _refusal("invitations to sandboxes")
        made.append(Route(f"/v1/sandboxes/{{id}}/{part}", refuse, methods=_METHODS))
        made.append(Route(f"/v1/sandboxes/{{id}}/{part}/{{rest:path}}", refuse, methods=_METHODS))
    return made


def _refusal(what: str) -> Callable[[Request], Awaitable[Response]]:
    async def refuse(request: Request) -> Response:
        raise serving.not_served(what)

    return refuse
