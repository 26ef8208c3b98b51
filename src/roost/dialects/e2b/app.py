"""E2B for the gateway: its control plane by its keys, and what comes without one (files by signed URLs)."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Scope

from roost.api.v1.transfer import pieces
from roost.dialects.e2b.access import ENVD_PORT, Access
from roost.dialects.e2b.control.exposure import Exposure
from roost.dialects.e2b.control.sandboxes import Sandboxes
from roost.dialects.e2b.control.snapshots import Snapshots
from roost.dialects.e2b.control.templates import FILES, Templates
from roost.dialects.e2b.control.volumes import Volumes
from roost.dialects.e2b.envd import app as envd
from roost.dialects.e2b.errors import problem
from roost.dialects.e2b.kernel import PORT as KERNEL_PORT
from roost.dialects.e2b.kernel import Kernel
from roost.dialects.serving import App, Services, empty, not_served
from roost.gateway.dispatch import Action, Target
from roost.gateway.metrics import resource_of
from roost.preview.plane import Plane
from roost.services.models import Principal
from roost.services.places import Places

PREFIX = "e2b"
_HOSTS = ("api", "sandbox")


def targets(services: Services) -> list[Target]:
    access = Access(services.machines, services.ports.places)
    exposure = Exposure(services)
    sandboxes = Sandboxes(services, access, exposure)
    volumes = Volumes(services, exposure)
    control = App(
        [
            *sandboxes.routes(),
            *Snapshots(services, sandboxes).routes(),
            *Templates(services, sandboxes).routes(),
            *volumes.routes(),
            *_secrets(),
        ]
    )
    domain = services.ports.places.domain
    shared, kernel = envd.target(services, access), Kernel(services, access).target()
    return [
        Target("e2b", control, paths=("",), prefixes=(PREFIX,), problem=problem, action=_action),
        _files(services),
        volumes.content(),
        replace(shared, name="e2b-envd-host", hosts=(f"{ENVD_PORT}-*.{domain}",), paths=("",)),
        replace(kernel, name="e2b-kernel-host", hosts=(f"{KERNEL_PORT}-*.{domain}",), paths=("",)),
        shared,
        kernel,
    ]


def previews(plane: Plane) -> None:
    """Hosts below the domain that are not previews, and what is said of ports as E2B says it."""
    plane.elsewhere = elsewhere
    plane.said = Exposure.said_by(plane.ports)


def elsewhere(label: str) -> bool:
    """Whether a host below the domain is the control plane's or what is spoken inside a sandbox."""
    if label in _HOSTS:
        return True
    place = Places.read(label) if label.startswith("499") else None
    return place is not None and place.port in (ENVD_PORT, KERNEL_PORT)


def _pass(scope: Scope) -> str:
    """It is in the query, which no log has."""
    query: dict[str, str] = dict(parse_qsl(scope["query_string"].decode("latin-1")))
    return query.get("pass", "")


def _files(services: Services) -> Target:
    async def put(request: Request) -> Response:
        whose, digest = services.build_files.read_pass(_pass(request.scope))
        await services.build_files.put(whose, digest, pieces(request))
        return empty(200)

    async def admit(scope: Scope) -> Principal:
        whose, digest = services.build_files.read_pass(_pass(scope))
        return Principal(whose, f"e2b-files-{digest[:16]}", PREFIX)

    return Target(
        "e2b-files",
        App([Route(FILES, put, methods=["PUT"])]),
        paths=(FILES,),
        streams=lambda method, path: method == "PUT",
        admit=admit,
        problem=problem,
    )


def _secrets() -> list[Route]:
    async def none(request: Request) -> Response:
        raise not_served(
            "secrets of a team",
            "Secrets are a machine's: PUT /v1/machines/{id}/secrets/{name}; they are put into requests to its hosts.",
        )

    methods = ["GET", "POST", "DELETE"]
    return [Route("/secrets", none, methods=methods), Route("/secrets/{id}", none, methods=methods)]


def _action(scope: Scope) -> Action | None:
    """Of the control plane's calls, for the audit log."""
    params = scope.get("path_params")
    if params is None:
        return None
    name = f"e2b_{resource_of(scope['path'])}"
    return Action(name, True, params.get("machine_id"))
