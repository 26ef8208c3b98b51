"""Which ports of a sandbox are listened on. What is behind them is the preview plane's: by host, and below
``/v1/sandboxes/{id}/proxy/{port}``."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from roost.api.v1.services import Services, tenant
from roost.gateway.respond import Json


class Ports:
    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[BaseRoute]:
        return [Route("/v1/sandboxes/{id}/ports", self.list, methods=["GET"])]

    async def list(self, request: Request) -> Response:
        found = await self._s.listening.list(tenant(request), request.path_params["id"])
        shown = [
            {"port": each.port, "protocol": "tcp", "addresses": each.addresses} for each in found
        ]
        return Json({"ports": shown})
