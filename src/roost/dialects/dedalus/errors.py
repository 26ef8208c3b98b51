"""Failures as this client reads them: the native words, and whether its own retries are worth it.

By itself it asks again twice after 408, 409, 429 and every 5xx; ``x-should-retry`` overrules that, so that what
cannot help is not waited for.
"""

from __future__ import annotations

import math
from typing import Any

from roost.errors import RoostError
from roost.gateway.respond import Headers, dumps, error_headers


def problem(failure: RoostError, request_id: str) -> tuple[int, Headers, bytes]:
    details = {**failure.details, "request_id": request_id}
    body: dict[str, Any] = {
        "error_code": failure.code,
        "message": failure.message,
        "retryable": failure.retryable,
        "details": details,
    }
    headers = error_headers(failure)
    headers.append((b"x-should-retry", b"true" if failure.retryable else b"false"))
    wait = failure.details.get("retry_after_s")
    if failure.retryable and isinstance(wait, int | float):
        body["retry_after_ms"] = max(1, math.ceil(wait * 1000))
        headers.append((b"retry-after-ms", b"%d" % body["retry_after_ms"]))
    try:
        return failure.status, headers, dumps(body)
    except (TypeError, ValueError):
        return failure.status, headers, dumps({**body, "details": {"request_id": request_id}})
