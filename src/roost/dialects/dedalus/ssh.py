"""SSH sessions. Each is a public key of the tenant's: it opens every machine of theirs, and is open until it is deleted.

The server proves itself by its host key and signs no certificates, so a session has no ``host_trust`` and no
``user_certificate``: who connects signs with the private half.
"""

from __future__ import annotations

import builtins

from starlette.requests import Request
from starlette.responses import Response

from roost.dialects.dedalus import asked, shapes
from roost.dialects.serving import Json, Services, body, tenant
from roost.errors import ConflictError, UnsupportedError, error
from roost.services import ssh_keys
from roost.services.ssh_keys import SshKey

NAME = "dedalus session"  # of a key that was added by a session


class Ssh:
    def __init__(self, services: Services) -> None:
        self._s = services

    async def create(self, request: Request) -> Response:
        said = await body(request, asked.CreateSsh)
        who = tenant(request)
        await self._require(request)
        try:
            made = await self._s.ssh_keys.add(who, said.public_key, NAME)
        except ConflictError:
            print_ = ssh_keys.fingerprint(ssh_keys.parse(said.public_key)[0])
            known = [k for k in await self._s.ssh_keys.list(who) if k.fingerprint == print_]
            if not known:
                raise
            made = known[0]
        return Json(self._shape(request, made))

    async def list(self, request: Request) -> Response:
        asked.page(request)
        await self._require(request)
        return Json(shapes.page([self._shape(request, each) for each in await self._all(request)]))

    async def retrieve(self, request: Request) -> Response:
        return Json(self._shape(request, await self._find(request)))

    async def delete(self, request: Request) -> Response:
        found = await self._find(request)
        if found.name != NAME:
            raise ConflictError("This key was not added by a session: remove it as an SSH key.")
        await self._s.ssh_keys.remove(tenant(request), found.id)
        return Json(self._shape(request, found, "closed"))

    async def _find(self, request: Request) -> SshKey:
        await self._require(request)
        which = str(request.path_params["session_id"])
        for each in await self._all(request, every=True):
            if each.id == which:
                return each
        raise error("NOT_FOUND", "There is no such SSH session.")

    async def _all(self, request: Request, every: bool = False) -> builtins.list[SshKey]:
        found = await self._s.ssh_keys.list(tenant(request))
        return [each for each in found if every or each.name == NAME]

    async def _require(self, request: Request) -> None:
        """Raises MACHINE_NOT_FOUND, UNSUPPORTED."""
        await self._s.machines.get(tenant(request), _machine(request))
        if self._s.ssh.port is None:
            raise UnsupportedError("SSH is off on this host.")

    def _shape(self, request: Request, key: SshKey, status: str = "ready") -> shapes.Object:
        host = self._s.ssh.host
        if host in (None, "0.0.0.0", "::"):  # noqa: S104
            host = request.url.hostname or "localhost"
        port = self._s.ssh.port or 0
        return shapes.ssh_session(key, _machine(request), str(host), port, status)


def _machine(request: Request) -> str:
    return str(request.path_params["machine_id"])
