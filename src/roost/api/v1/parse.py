"""What FastAPI cannot say: durations, revisions, bytes in text, signals, ranges."""

from __future__ import annotations

import base64
import binascii
import re
import signal
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request

from roost.api.v1 import bodies
from roost.egress.policy import Policy
from roost.engine.tools import Tools
from roost.errors import ConflictError, InvalidRequestError
from roost.units import parse_duration

_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII | re.IGNORECASE)
_FAR = 10**18  # beyond the end of any file


def invalid(field: str, message: str, code: str = "VALIDATION_FAILED") -> InvalidRequestError:
    return InvalidRequestError(f"{field}: {message}", code=code, details={"field": field})


def utc(field: str, at: datetime) -> datetime:
    """A time that names no zone is UTC. Raises VALIDATION_FAILED for one that no calendar has there."""
    try:
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (OverflowError, ValueError):
        raise invalid(field, "not a time that can be told") from None


def until(ttl: Any, expires_at: datetime | None) -> datetime | None:
    """When something ends, said as one of the two. Raises VALIDATION_FAILED."""
    if ttl is not None and expires_at is not None:
        raise invalid("ttl", "either ttl or expires_at")
    if expires_at is not None:
        return utc("expires_at", expires_at)
    seconds = parse_duration(ttl)
    return None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)


def policy(body: str | bodies.Egress | None) -> Policy | None:
    """Raises VALIDATION_FAILED."""
    if body is None or isinstance(body, str):
        return None if body is None else Policy.read(body)
    said: dict[str, Any] = {"observe": body.observe}
    if "allow" in body.model_fields_set:
        said["allow"] = body.allow
    if body.mode is not None:
        said["mode"] = body.mode
    return Policy.read(said)


def tools(body: str | bodies.Tools | None) -> Tools:
    """Raises VALIDATION_FAILED."""
    if body is None or isinstance(body, str):
        return Tools.read(body or "off")
    named = body.model_dump(exclude_unset=True)
    return Tools.read(named)


def if_match(request: Request) -> int | None:
    """The revision of ``If-Match``; None where there is none or it is ``*``. Raises REVISION_MISMATCH for what
    can be no revision of ours."""
    value = request.headers.get("if-match")
    if value is None or value.strip() == "*":
        return None
    digits = value.strip().removeprefix("W/").strip('"')
    if not (digits.isascii() and digits.isdigit() and len(digits) < 16):
        raise ConflictError("If-Match: not a revision of this machine.", code="REVISION_MISMATCH")
    return int(digits)


def decode_b64(field: str, value: str) -> bytes:
    """Raises VALIDATION_FAILED."""
    try:
        return base64.b64decode(value, validate=True)
    except (ValueError, binascii.Error):
        raise invalid(field, "not base64") from None


def body_path(field: str, text: str | None, b64: str | None) -> bytes:
    """The path of a body's ``field`` or ``field_b64``."""
    if (text is None) == (b64 is None):
        raise invalid(field, f"either {field} or {field}_b64", "INVALID_PATH")
    if b64 is not None:
        return decode_b64(f"{field}_b64", b64)
    assert text is not None
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise invalid(field, "not Unicode text", "INVALID_PATH") from None


def query_path(request: Request) -> bytes:
    """The path of ``?path=`` or ``?path_b64=``; what is not UTF-8 is refused, not repaired."""
    found: dict[str, str] = {}
    try:
        query = request.scope["query_string"].decode("ascii")
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=100)
    except ValueError:
        raise invalid("path", "not UTF-8; send other bytes as path_b64", "INVALID_PATH") from None
    for name, value in pairs:
        if name in ("path", "path_b64"):
            if name in found:
                raise invalid("path", "more than one", "INVALID_PATH")
            found[name] = value
    return body_path("path", found.get("path"), found.get("path_b64"))


def mode(text: str | None) -> int | None:
    return None if text is None else int(text, 8) & 0o7777


def signal_number(value: int | str) -> int:
    """15, "15", "TERM" or "SIGTERM". Raises VALIDATION_FAILED."""
    if isinstance(value, str):
        name = value.strip().upper()
        if name.isascii() and name.isdigit() and len(name) < 4:
            number = int(name)
        else:
            known = signal.Signals.__members__.get(name if name.startswith("SIG") else f"SIG{name}")
            if known is None:
                raise invalid("signal", "no such signal")
            number = int(known)
    else:
        number = value
    if not 1 <= number <= 64:
        raise invalid("signal", "from 1 to 64")
    return number


@dataclass(frozen=True, slots=True)
class Range:
    """The bytes asked for: ``length`` 0 is to the end; ``suffix`` the last so many, None where it is no suffix."""

    offset: int = 0
    length: int = 0
    suffix: int | None = None


def byte_range(value: str | None) -> Range | None:
    """None: all of it, also for ranges of a kind that need not be served (several, other units, nonsense)."""
    match = _RANGE.fullmatch((value or "").replace(" ", ""))
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        return Range(suffix=_place(match[2]))
    first = _place(match[1])
    if not match[2]:
        return Range(first)
    last = _place(match[2])
    return None if last < first else Range(first, last - first + 1)


def _place(digits: str) -> int:
    return _FAR if len(digits.lstrip("0")) > 18 else int(digits)
