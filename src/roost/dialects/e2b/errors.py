"""Errors as E2B's API says them: ``{code, message}``, and whether asking again can help."""

from __future__ import annotations

from typing import Any

from roost.dialects.serving import headers
from roost.errors import RoostError
from roost.gateway.dispatch import Problem
from roost.gateway.respond import dumps

# What its clients tell apart by status; everything else keeps Roost's own.
_STATUS = {
    "VALIDATION_FAILED": 400,
    "INVALID_PATH": 400,
    "INVALID_CURSOR": 400,
    "DOCKERFILE_INVALID": 400,
    "RUNG_UNAVAILABLE": 400,
    "USER_NOT_FOUND": 400,
}
_RETRIED = (429, 502, 503, 504)  # by its clients, unless they are told


def status_of(failure: RoostError) -> int:
    return _STATUS.get(failure.code, failure.status)


def shape(failure: RoostError) -> dict[str, Any]:
    """Also of one that is part of an answer (a fork that did not start)."""
    return {"code": status_of(failure), "message": failure.message}


def problem(failure: RoostError, request_id: str) -> Problem:
    status = status_of(failure)
    said = [each for each in headers(failure) if each[0] != b"www-authenticate"]
    if status in _RETRIED:
        said.append((b"should-retry", b"true" if failure.retryable else b"false"))
    body = {**shape(failure), "error_code": failure.code, "request_id": request_id}
    return status, said, dumps(body)
