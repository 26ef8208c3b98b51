"""Failures, whoever found them, as the one error shape."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from roost.api.v1.answers import Problem
from roost.api.v1.services import caller
from roost.errors import InvalidRequestError, NotFoundError, RoostError, error
from roost.gateway import access, respond

_TEXT = {
    400: "The request cannot be read.",
    401: "No key, or none of ours.",
    403: "Not allowed.",
    404: "Missing, or another tenant's.",
    405: "Not with this method.",
    409: "The state does not allow it.",
    412: "Not at this revision.",
    413: "Too large.",
    416: "Not in this file.",
    422: "The request asks for what cannot be.",
    429: "A limit is reached.",
    431: "Headers too large.",
    500: "Roost failed.",
    501: "This rung cannot.",
    502: "The machine failed.",
    503: "Full, stopping or short of a dependency.",
    504: "Not in time.",
    507: "A disk is full.",
}


def declare(document: dict[str, Any]) -> None:
    """In the API's document, for every call: the gateway and the services can answer with any of them. Not as the
    routes' own ``responses``, of which each makes a model: a second at every start."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    made = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(made.pop("$defs", {}))
    schemas[Problem.__name__] = made
    for frameworks in ("HTTPValidationError", "ValidationError"):
        schemas.pop(frameworks, None)
    body = {"application/json": {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, text in _TEXT.items():
                operation["responses"][str(status)] = {"description": text, "content": body}


def install(app: FastAPI) -> None:
    app.add_exception_handler(RoostError, _roost)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def answer(failure: RoostError, request: Request) -> Response:
    who = caller(request)
    who.error_code = failure.code
    failure = access.told(failure, who.principal)
    response = Response(respond.error_body(failure, who.request_id), failure.status)
    response.raw_headers = [
        (b"content-length", str(len(response.body)).encode()),
        *respond.error_headers(failure),
    ]
    return response


async def _roost(request: Request, failure: Exception) -> Response:
    assert isinstance(failure, RoostError)
    return answer(failure, request)


async def _invalid(request: Request, failure: Exception) -> Response:
    """Says where and what, never what was sent: it may be a secret."""
    assert isinstance(failure, RequestValidationError)
    found = [
        {"field": ".".join(str(part) for part in each["loc"])[:200], "message": each["msg"][:300]}
        for each in failure.errors()[:20]
    ]
    if any(each["type"] == "json_invalid" for each in failure.errors()):
        wrong: RoostError = error(
            "INVALID_BODY", "The body is not JSON.", details={"errors": found}
        )
    else:
        first = found[0] if found else {"field": "request", "message": "invalid"}
        wrong = InvalidRequestError(
            f"{first['field']}: {first['message']}", details={"errors": found}
        )
    return answer(wrong, request)


async def _http(request: Request, failure: Exception) -> Response:
    assert isinstance(failure, HTTPException)
    path = request.scope["path"][:200]
    if failure.status_code == 404:
        return answer(NotFoundError(f"Nothing is served at {path}."), request)
    if failure.status_code == 405:
        allow = (failure.headers or {}).get("Allow", "")
        method = request.method[:20]
        wrong = error(
            "METHOD_NOT_ALLOWED", f"{method} is not served at {path}.", details={"allow": allow}
        )
        return answer(wrong, request)
    return answer(error("INVALID_BODY", "The body is not JSON that can be read."), request)


async def _unexpected(request: Request, failure: Exception) -> Response:
    return answer(respond.unexpected(failure, caller(request).request_id), request)
