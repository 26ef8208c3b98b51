"""How errors are said here: as a Connect code, or as the HTTP status of ``/files``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from roost.errors import RoostError
from roost.gateway.dispatch import Problem
from roost.gateway.respond import dumps, error_headers

NOT_FOUND_MESSAGE = "The sandbox was not found"

# Connect code -> HTTP status of a unary answer
STATUS: Mapping[str, int] = {
    "canceled": 499,
    "unknown": 500,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "aborted": 409,
    "out_of_range": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "data_loss": 500,
    "unauthenticated": 401,
}
_CODES = {
    "FILE_NOT_FOUND": "not_found",
    "EXECUTION_NOT_FOUND": "not_found",
    "TERMINAL_NOT_FOUND": "not_found",
    "FILE_EXISTS": "already_exists",
    "ALREADY_EXISTS": "already_exists",
    "USER_NOT_FOUND": "unauthenticated",
    "INVALID_STATE": "failed_precondition",
    "DIRECTORY_NOT_EMPTY": "failed_precondition",
    "TIMEOUT": "deadline_exceeded",
    "UNSUPPORTED": "unimplemented",
    "PAYLOAD_TOO_LARGE": "resource_exhausted",
    "FILE_TOO_LARGE": "resource_exhausted",
    "MACHINE_DISK_FULL": "resource_exhausted",
}
_BY_STATUS = {
    400: "invalid_argument",
    401: "unauthenticated",
    403: "permission_denied",
    404: "not_found",
    405: "unimplemented",
    409: "failed_precondition",
    413: "resource_exhausted",
    416: "out_of_range",
    422: "invalid_argument",
    429: "resource_exhausted",
    501: "unimplemented",
    502: "unavailable",
    503: "unavailable",
    504: "deadline_exceeded",
    507: "resource_exhausted",
}


class Refused(Exception):
    """Said in this dialect's own words. ``code`` is Connect's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def status(self) -> int:
        """Of HTTP, where there is no Connect."""
        return 400 if self.code == "failed_precondition" else STATUS[self.code]


def gone(failure: RoostError) -> bool:
    """Whether it says that there is no such sandbox, or that it does not run: the proxy before E2B's sandboxes
    answers the same for both."""
    return failure.code in ("MACHINE_NOT_FOUND", "MACHINE_FAILED", "MACHINE_SLEEPING") or (
        failure.code == "INVALID_STATE" and "phase" in failure.details
    )


def code_of(failure: RoostError) -> str:
    return _CODES.get(failure.code) or _BY_STATUS.get(failure.status, "internal")


def refused(failure: RoostError) -> Refused:
    if gone(failure):
        return Refused("unavailable", NOT_FOUND_MESSAGE)
    return Refused(code_of(failure), failure.message)


def http_status(failure: RoostError) -> int:
    """Of ``/files`` and its like."""
    if gone(failure):
        return 502
    if failure.code in ("USER_NOT_FOUND", "AUTH_REQUIRED", "AUTH_INVALID"):
        return 401
    if failure.code in ("FILE_NOT_FOUND", "NOT_FOUND"):
        return 404
    return 400 if failure.status == 422 else failure.status


def missing(machine_id: str | None = None) -> tuple[int, dict[str, Any]]:
    """What the proxy before the sandboxes says of one that is not there."""
    body: dict[str, Any] = {"code": 502, "message": NOT_FOUND_MESSAGE}
    if machine_id is not None:
        body["sandboxId"] = machine_id
    return 502, body


def problem(failure: RoostError, request_id: str) -> Problem:
    """``Target.problem``: both clients take the number for the code it stands for."""
    if gone(failure):
        named = failure.details.get("machine_id")
        status, body = missing(named if isinstance(named, str) else None)
    else:
        status = http_status(failure)
        body = {"code": status, "message": failure.message}
    said = [each for each in error_headers(failure) if each[0] != b"www-authenticate"]
    return status, said, dumps({**body, "request_id": request_id})
