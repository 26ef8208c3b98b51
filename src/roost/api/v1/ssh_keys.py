"""Where SSH is answered, and which public keys may come in."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from roost.api.v1 import answers, bodies, routes, shapes
from roost.api.v1.services import Services, tenant
from roost.gateway.respond import Json


class SshKeyList(answers.Answer):
    items: list[answers.SshKey]
    next_cursor: None


def router(s: Services) -> APIRouter:
    r = routes.router("/v1", "ssh")

    @r.get("/ssh", response_model=answers.Ssh)
    async def ssh(request: Request) -> Response:
        return Json(s.ssh.describe())

    @r.get("/ssh-keys", response_model=SshKeyList)
    async def keys(request: Request) -> Response:
        found = await s.ssh_keys.list(tenant(request))
        return Json({"items": [shapes.ssh_key(each) for each in found], "next_cursor": None})

    @r.post("/ssh-keys", status_code=201, response_model=answers.SshKey)
    async def add_key(request: Request, body: bodies.AddSshKey) -> Response:
        made = await s.ssh_keys.add(tenant(request), body.public_key, body.name)
        return Json(shapes.ssh_key(made), 201)

    @r.delete("/ssh-keys/{key_id}", status_code=204, response_class=Response)
    async def remove_key(request: Request, key_id: str) -> Response:
        await s.ssh_keys.remove(tenant(request), key_id)
        return Response(status_code=204)

    return r
