"""Ports of sandboxes: all are shown at ``{port}-{id}.{domain}``, to everybody or to who has the traffic token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request

from roost.dialects.serving import Services
from roost.errors import ConflictError, RoostError
from roost.services.models import Machine
from roost.services.places import Places
from roost.services.ports import EVERY, Ports

_ASLEEP = ("INVALID_STATE", "MACHINE_SLEEPING", "MACHINE_NOT_FOUND")


class Exposure:
    def __init__(self, services: Services) -> None:
        self._ports = services.ports

    async def begin(self, tenant: str, machine_id: str, public: bool | None) -> None:
        """``public`` None: as it is; of one that was not made here, whose owner showed no ports, to who has the
        traffic token."""
        if self._ports.every(machine_id) is not None:
            return
        visibility = "public" if public else "private"
        try:
            await self._ports.create(tenant, machine_id, EVERY, visibility=visibility)
        except ConflictError as failure:  # somebody else was faster
            if failure.code != "ALREADY_EXISTS":
                raise

    def public(self, machine_id: str) -> bool:
        found = self._ports.every(machine_id)
        return found is not None and found.public

    def token(self, machine: Machine) -> str | None:
        """``trafficAccessToken``."""
        return self._ports.pass_of(machine.id)

    def domain(self, request: Request) -> str:
        """Below which sandboxes have their hosts: that of the control plane's own host, where it is ``api.`` of it."""
        host = request.headers.get("host", "")
        if self._ports.places.label(host) == "api":
            return host.partition(".")[2]
        return self._ports.places.below

    @staticmethod
    def said_by(ports: Ports) -> Callable[[str, RoostError], tuple[int, dict[str, Any]] | None]:
        """For previews: how a refusal is said at the hosts of machines that show every port. Besides what E2B says
        there is what we say."""

        def said(label: str, failure: RoostError) -> tuple[int, dict[str, Any]] | None:
            place = Places.read(label)
            if place is None or not ports.shows_every(label):
                return None
            status, message = _said(failure, ports.at(label) is not None)
            wire = {**failure.to_wire(), "sandboxId": place.machine_id, "port": place.port}
            return status, {**wire, "code": status, "message": message}

        return said


def _said(failure: RoostError, there: bool) -> tuple[int, str]:
    if not there or failure.code in _ASLEEP:
        return 502, "The sandbox was not found"
    if failure.code == "PORT_CLOSED":
        return 502, "The sandbox is running but port is not open"
    if failure.code in ("AUTH_REQUIRED", "AUTH_INVALID"):
        return 403, (
            "Sandbox is secured with traffic access token. The header 'e2b-traffic-access-token' is missing or wrong"
        )
    return failure.status, failure.message
