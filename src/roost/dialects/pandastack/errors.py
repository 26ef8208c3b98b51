"""Errors as PandaStack's clients read them: ``{"error": "text"}``, and a status that says whether to send it again.

They resend a create or a fork after 503 or 429 with Retry-After, and after 507, and take each of those for a promise that
nothing was made: a machine that was made and failed is a plain 500.
"""

from __future__ import annotations

from roost.errors import RoostError
from roost.gateway import respond

_STATUS = {
    422: 400,
    504: 500,  # a 500 whose text has "timeout" is their SandboxTimeout
}
_GONE = ("destroying", "destroyed")
_REFUSED = frozenset({429, 503, 507})


def problem(failure: RoostError, request_id: str) -> tuple[int, respond.Headers, bytes]:
    """For ``Target.problem``."""
    status = _STATUS.get(failure.status, failure.status)
    if failure.code == "INVALID_STATE" and failure.details.get("phase") in _GONE:
        status = 404
    headers = respond.error_headers(failure)
    if status in _REFUSED and "machine_id" in failure.details:
        status = 500
        headers = [each for each in headers if each[0] != b"retry-after"]
    return status, headers, respond.dumps({"error": text(failure)})


def text(failure: RoostError) -> str:
    """Their clients know a timeout by that word."""
    if failure.code == "TIMEOUT" and "timeout" not in failure.message.lower():
        return f"timeout: {failure.message}"
    return failure.message
