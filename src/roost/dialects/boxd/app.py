"""Over HTTP: a key for a token."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from roost.dialects.serving import App, Json, body
from roost.errors import RoostError
from roost.gateway import respond
from roost.gateway.dispatch import Problem, Target
from roost.services.exchange import Exchange

PATH = "/api/v1/auth/token"


class Asked(BaseModel):
    model_config = ConfigDict(hide_input_in_errors=True)
    api_key: str


def target(exchange: Exchange) -> Target:
    async def token(request: Request) -> Response:
        asked = await body(request, Asked)
        given = await exchange.give(asked.api_key)
        return Json(
            {"token": given.token, "expires_at": given.expires_at},
            headers={"cache-control": "no-store"},
        )

    app = App([Route(PATH, token, methods=["POST"])])
    return Target("boxd", app, paths=(PATH,), public=frozenset({PATH}), problem=_problem)


def _problem(failure: RoostError, request_id: str) -> Problem:
    said = {"error": failure.message, "code": failure.code, "request_id": request_id}
    return failure.status, respond.error_headers(failure), respond.dumps(said)
