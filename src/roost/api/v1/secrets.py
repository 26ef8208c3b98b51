"""Secrets of machines over HTTP. No answer has a value."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from roost.api.v1 import answers, bodies, routes, shapes
from roost.api.v1.services import Services, tenant
from roost.gateway.respond import Json
from roost.secrets import SecretSpec

Name = Annotated[str, Path(max_length=64)]


class Secrets(answers.Answer):
    items: list[answers.Secret]
    next_cursor: None


def specified(body: bodies.PutSecret, name: str) -> SecretSpec:
    return SecretSpec(
        name=name,
        value=body.value,
        hosts=body.hosts,
        header=body.header,
        format=body.format,
        placeholder=body.placeholder,
        in_body=body.in_body,
    )


def router(s: Services) -> APIRouter:
    r = routes.router("/v1/machines/{machine_id}/secrets", "secrets")

    @r.get("", response_model=Secrets)
    async def list_(request: Request, machine_id: str) -> Response:
        found = await s.secrets.list(tenant(request), machine_id)
        return Json({"items": [shapes.secret(each) for each in found], "next_cursor": None})

    @r.put("/{name}", response_model=answers.Secret, responses={201: {"model": answers.Secret}})
    async def put(
        request: Request, machine_id: str, name: Name, body: bodies.PutSecret
    ) -> Response:
        found, new = await s.secrets.put(tenant(request), machine_id, specified(body, name))
        return Json(shapes.secret(found), 201 if new else 200)

    @r.delete("/{name}", status_code=204, response_class=Response)
    async def delete(request: Request, machine_id: str, name: Name) -> Response:
        await s.secrets.delete(tenant(request), machine_id, name)
        return Response(status_code=204)

    return r
