"""What a dialect is given by the gateway: errors in its own shape, callers that it knows otherwise."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Scope

from roost.dialects import serving
from roost.errors import AuthError, RoostError
from roost.gateway.dispatch import Problem, Target
from roost.services.models import Principal
from tests.unit.api.kit import Served
from tests.unit.api.kit import serving as serving_


class Asked(BaseModel):
    count: int


async def _count(request: Request) -> Response:
    asked = await serving.body(request, Asked)
    return serving.Json({"count": asked.count, "tenant": serving.tenant(request)})


async def _missing(request: Request) -> Response:
    raise serving.not_served("ghosts", "Use people.")


async def _broken(request: Request) -> Response:
    raise ValueError("a secret")


def _problem(failure: RoostError, request_id: str) -> Problem:
    body = json.dumps({"oops": failure.code, "text": failure.message}).encode()
    return failure.status, serving.headers(failure), body


async def _admit(scope: Scope) -> Principal | None:
    said = dict(scope["headers"]).get(b"x-other")
    if said == b"wrong":
        raise AuthError("That token proves nothing.")
    return None if said is None else Principal("t-other", "none", "")


APP = serving.App(
    [
        Route("/count", _count, methods=["POST"]),
        Route("/ghosts", _missing),
        Route("/broken", _broken),
    ]
)
TARGET = Target("odd", APP, paths=("",), problem=_problem, admit=_admit)


@pytest.fixture
async def odd(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving_(tmp_path, None, dialects=[lambda services: TARGET]) as found:
        yield found


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/count", {"count": "many"}, 422, "VALIDATION_FAILED"),
        ("POST", "/count", None, 400, "INVALID_BODY"),
        ("GET", "/count", None, 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/nothing", None, 404, "NOT_FOUND"),
        ("GET", "/ghosts", None, 501, "UNSUPPORTED"),
        ("GET", "/broken", None, 500, "INTERNAL"),
    ],
)
async def test_every_failure_has_the_dialects_shape(
    odd: Served, method: str, path: str, body: object, status: int, code: str
) -> None:
    answer = await odd.http.request(method, path, json=body)
    assert (answer.status_code, answer.json()["oops"]) == (status, code)
    assert "secret" not in answer.text and "many" not in answer.text
    assert answer.headers.get("allow") == ("POST" if status == 405 else None)


async def test_so_has_what_the_gateway_refuses(odd: Served) -> None:
    async with odd.client(None) as nobody:
        answer = await nobody.post("/count", json={"count": 1})
        assert (answer.status_code, answer.json()["oops"]) == (401, "AUTH_REQUIRED")
        answer = await nobody.post("/count", headers={"x-other": "wrong"})
        assert (answer.status_code, answer.json()["oops"]) == (401, "AUTH_INVALID")


async def test_a_dialect_may_know_its_callers_otherwise(odd: Served) -> None:
    async with odd.client(None) as nobody:
        answer = await nobody.post("/count", json={"count": 1}, headers={"x-other": "right"})
    assert answer.json() == {"count": 1, "tenant": "t-other"}
    answer = await odd.http.post("/count", json={"count": 2})
    assert answer.json() == {"count": 2, "tenant": "tenant-a"}
