"""What this client asks, read: bodies, queries, durations."""

from __future__ import annotations

import re
from datetime import date
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import HTTPConnection

from roost.errors import bad
from roost.units import MAX_SECONDS

PAGE = 100
MAX_PAGE = 500
_DURATION = re.compile(r"(?:\d{1,9}(?:w|d|h|m|s))+", re.ASCII)
_PART = re.compile(r"(\d+)(w|d|h|m|s)", re.ASCII)
_SECONDS = {"w": 604_800, "d": 86_400, "h": 3600, "m": 60, "s": 1}
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


class Body(BaseModel):
    """What it does not know is let be, as that service does: a newer client may say more."""

    model_config = ConfigDict(extra="ignore", strict=True)


class CreateMachine(Body):
    """``template``, ``isolation`` and ``driver`` are Roost's own, for ``extra_body``."""

    vcpu: float | None = None
    memory_mib: int | None = None
    storage_gib: int | None = None
    autosleep: str | int | None = None
    template: str = "base"
    isolation: str = "auto"
    driver: str | None = None


class UpdateMachine(Body):
    vcpu: float | None = None
    memory_mib: int | None = None
    storage_gib: int | None = None
    autosleep: str | int | None = None


class CreateExecution(Body):
    command: list[str] = Field(min_length=1)
    cwd: str | None = None
    env: dict[str, str] = Field(default_factory=dict)
    stdin: str | None = None
    timeout_ms: int | None = None


class CreateTerminal(Body):
    width: int
    height: int
    shell: str | None = None
    cwd: str | None = None
    env: dict[str, str] = Field(default_factory=dict)


class CreatePort(Body):
    port: int
    protocol: Literal["http", "https"] = "http"
    visibility: Literal["public", "private", "org"] = "private"


class CreateSsh(Body):
    public_key: str


def autosleep(text: str | int) -> int | None:
    """Seconds of ``30s``, ``7d3h4s``, ``"1800"``; None for ``never`` and 0, which is how never is told back. Raises
    VALIDATION_FAILED."""
    said = str(text).strip()
    if said == "never":
        return None
    seconds = -1
    if said.isascii() and said.isdigit() and len(said) < 13:
        seconds = int(said)
    elif len(said) <= 64 and _DURATION.fullmatch(said):
        seconds = sum(int(number) * _SECONDS[unit] for number, unit in _PART.findall(said))
    if not 0 <= seconds <= MAX_SECONDS:
        raise bad("autosleep", 'is like 30s, 30m, 2h, 7d3h4s, "1800" or never')
    return seconds or None


def page(connection: HTTPConnection) -> tuple[int, str | None]:
    """How many, and from where. Raises VALIDATION_FAILED."""
    said = connection.query_params.get("limit") or str(PAGE)
    if not (said.isascii() and said.isdigit() and len(said) < 10 and int(said) >= 1):
        raise bad("limit", f"is from 1 to {MAX_PAGE}")
    return min(int(said), MAX_PAGE), connection.query_params.get("cursor") or None


def day(connection: HTTPConnection, name: str) -> date | None:
    """Raises VALIDATION_FAILED."""
    said = connection.query_params.get(name)
    if not said:
        return None
    try:
        if not _DAY.fullmatch(said):
            raise ValueError
        return date.fromisoformat(said)
    except ValueError:
        raise bad(name, "is a day like 2026-01-31") from None
