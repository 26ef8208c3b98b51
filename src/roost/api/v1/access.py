"""What the gateway must know of the native API's paths: which are the admin's, which tell a machine's own status,
and what each call is in the audit log."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute
from starlette.types import Scope

from roost.api.v1 import routes
from roost.gateway.dispatch import Action
from roost.gateway.metrics import resource_of

_ADMIN = re.compile(r"/metrics|/v1/tenants(/.*)?", re.DOTALL)
_ADMIN_POST = re.compile(r"/v1/templates/[^/]+/build")  # of shipped recipes: everybody's
_OWN = re.compile(r"/v1/machines/([a-z0-9]{26,40})(/status/stream)?")
_INSIDE = re.compile(
    r"/v1/machines/\{machine_id\}/((executions|terminals|files|browser|computer|code)(/.*)?|ports/[^/]+/connect)"
)
_USE = re.compile(
    r"/v1/machines/[a-z0-9]{26,40}/((executions|terminals|files|browser|computer|code)(/.*)?|ports/[^/]+/connect|wake)",
    re.DOTALL,
)
_SOCKET = re.compile(r"/v1/machines/([^/]+)/(executions|terminals|ports)/[^/]+/(?:stream|connect)")


def admin(method: str, path: str) -> bool:
    """``GET /v1/host`` is everybody's: it answers to a tenant what is no secret of the host (``Host.public``)."""
    if _ADMIN.fullmatch(path):
        return True
    return method not in ("GET", "HEAD") and _ADMIN_POST.fullmatch(path) is not None


def inside(path: str) -> bool:
    """What uses a machine, and waking it for that."""
    return _USE.fullmatch(path) is not None


def own(path: str) -> str | None:
    """The machine whose own status this is."""
    match = _OWN.fullmatch(path)
    return match[1] if match else None


class Actions:
    """``of`` is told requests that were routed, and some that were refused before. ``declared``: the calls there are."""

    def __init__(self, declared: Iterable[BaseRoute]) -> None:
        self._known = [
            (method, route.path_regex, route.path, routes.operation(route))
            for route in declared
            if isinstance(route, APIRoute) and route.include_in_schema
            for method in route.methods or ()
        ]

    def of(self, scope: Scope) -> Action | None:
        route = scope.get("route")
        if route is None:
            return self._refused(scope.get("method", "WEBSOCKET"), scope["path"])
        methods = getattr(route, "methods", None)  # none of a WebSocket's
        if methods and scope.get("method") not in methods:  # a path there is, a call there is not
            return None
        path = route.path
        tags = getattr(route, "tags", None)
        name = f"{tags[0] if tags else resource_of(path)}_{route.name.strip('_')}"
        machine_id = scope.get("path_params", {}).get("machine_id")
        return Action(name, _INSIDE.fullmatch(path) is None, machine_id)

    def _refused(self, method: str, path: str) -> Action | None:
        if method == "WEBSOCKET":
            match = _SOCKET.fullmatch(path)
            return Action(f"{match[2]}_socket", False, match[1]) if match else None
        for known, pattern, template, name in self._known:
            if known == method and (match := pattern.fullmatch(path)):
                return Action(
                    name, _INSIDE.fullmatch(template) is None, match.groupdict().get("machine_id")
                )
        return None
