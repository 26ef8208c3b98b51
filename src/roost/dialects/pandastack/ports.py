"""Ports of a sandbox: those that are listened on, and those that were given a label.

A label is metadata, ``port.8000``: it shows nothing that is not shown without it. What is behind a port is the preview
plane's, by host and below ``/v1/sandboxes/{id}/proxy/{port}``.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from roost.api.v1.services import Services, tenant
from roost.dialects import serving
from roost.dialects.pandastack import bodies
from roost.dialects.pandastack.sandboxes import present
from roost.errors import InvalidRequestError
from roost.gateway.respond import Json
from roost.services.models import Machine, PatchMachine

_LABEL = "port."


class Ports:
    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[BaseRoute]:
        at = "/v1/sandboxes/{id}/ports"
        return [
            Route(at, self.list, methods=["GET"]),
            Route(at, self.label, methods=["POST"]),
            Route(f"{at}/{{port}}", self.unlabel, methods=["DELETE"]),
        ]

    async def list(self, request: Request) -> Response:
        machine = await present(self._s, request)
        labels = _labels(machine)
        listened = await self._s.listening.list(tenant(request), machine.id)
        addresses = {each.port: each.addresses for each in listened}
        return Json(
            [
                {
                    **_shown(machine, port, labels.get(port)),
                    "listening": port in addresses,
                    "addresses": addresses.get(port, []),
                }
                for port in sorted(labels.keys() | addresses.keys())
            ]
        )

    async def label(self, request: Request) -> Response:
        asked = await serving.body(request, bodies.Port)
        machine = await present(self._s, request)
        await self._put(request, machine, asked.port, asked.label or "service")
        return Json(_shown(machine, asked.port, asked.label or "service"), 201)

    async def unlabel(self, request: Request) -> Response:
        named = request.path_params["port"]
        if not (named.isascii() and named.isdecimal() and len(named) < 6):
            raise InvalidRequestError("port: a whole number.", details={"field": "port"})
        await self._put(request, await present(self._s, request), int(named), None)
        return Response(status_code=204)

    async def _put(self, request: Request, machine: Machine, port: int, label: str | None) -> None:
        labels = {k: v for k, v in machine.labels.items() if k != f"{_LABEL}{port}"}
        if label is not None:
            labels[f"{_LABEL}{port}"] = label
        await self._s.machines.patch(tenant(request), machine.id, PatchMachine(labels=labels))


def _shown(machine: Machine, port: int, label: str | None) -> dict[str, object]:
    said: dict[str, object] = {
        "port": port,
        "source": "detected" if label is None else "user",
        "proxy_url": f"/v1/sandboxes/{machine.id}/proxy/{port}/",
    }
    if label is not None:
        said["label"] = label
    return said


def _labels(machine: Machine) -> dict[int, str]:
    return {
        int(number): label
        for name, label in machine.labels.items()
        if name.startswith(_LABEL) and (number := name.removeprefix(_LABEL)).isdecimal()
    }
