"""What every dialect over HTTP needs: routes whose failures go up to the gateway, which says them in the dialect's own
shape (``Target.problem``), and bodies that are read strictly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from roost.api.v1.services import Services, caller, key_id, principal, tenant
from roost.errors import InvalidRequestError, NotFoundError, RoostError, UnsupportedError, error
from roost.gateway import respond
from roost.gateway.respond import Json, Streamed

__all__ = [
    "App",
    "Json",
    "Services",
    "Streamed",
    "body",
    "caller",
    "empty",
    "key_id",
    "not_served",
    "principal",
    "tenant",
]

M = TypeVar("M", bound=BaseModel)


class App:
    """ASGI. Every failure leaves as a ``RoostError``, those of routing too; the first route that matches serves."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self.routes = tuple(routes)
        self._router: ASGIApp = Router(routes, redirect_slashes=False, default=_missing)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # without one, a route answers a wrong method itself
        try:
            await self._router(scope, receive, send)
        except RoostError as failure:
            caller(HTTPConnection(scope)).error_code = failure.code
            raise
        except HTTPException as failure:
            raise _of_http(scope, failure) from None


async def body(request: Request, model: type[M], *, optional: bool = False) -> M:
    """The JSON body as ``model``, whatever its content type says. ``optional``: an empty one is ``{}``.

    Raises INVALID_BODY, VALIDATION_FAILED; neither says what was sent, which may be a secret."""
    raw = await request.body()
    if not raw.strip() and optional:
        raw = b"{}"
    try:
        return model.model_validate(json.loads(raw))
    except ValidationError as failure:
        found = [
            {"field": ".".join(str(part) for part in e["loc"])[:200], "message": e["msg"][:300]}
            for e in failure.errors(include_input=False, include_url=False)[:20]
        ]
        first = found[0]
        raise InvalidRequestError(
            f"{first['field'] or 'body'}: {first['message']}", details={"errors": found}
        ) from None
    except (ValueError, RecursionError):
        raise InvalidRequestError("The body is not JSON.", code="INVALID_BODY") from None


def empty(status: int = 204) -> Response:
    return Response(status_code=status)


def not_served(what: str, instead: str = "") -> UnsupportedError:
    """For a call of the foreign API that Roost does not have."""
    return UnsupportedError(f"Roost does not serve {what}.{' ' if instead else ''}{instead}")


def headers(failure: RoostError) -> respond.Headers:
    """Of an error in any dialect: its type, when to come again, which methods there are."""
    return respond.error_headers(failure)


async def _missing(scope: Scope, receive: Receive, send: Send) -> None:
    raise NotFoundError(f"Nothing is served at {scope['path'][:200]}.")


def _of_http(scope: Scope, failure: HTTPException) -> RoostError:
    if failure.status_code == 405:
        allow: Any = (failure.headers or {}).get("Allow", "")
        return error(
            "METHOD_NOT_ALLOWED",
            f"{scope.get('method', '')[:20]} is not served at {scope['path'][:200]}.",
            details={"allow": allow},
        )
    if failure.status_code == 404:
        return NotFoundError(f"Nothing is served at {scope['path'][:200]}.")
    return InvalidRequestError("The request cannot be read.", code="INVALID_BODY")
