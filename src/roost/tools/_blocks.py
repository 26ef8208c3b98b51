"""What providers' answers are made of: dicts, or objects of their SDKs, read alike."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from roost.errors import AuthError, RoostError
from roost.tools._errors import ToolFailure

# What no model can mend: it is raised to whoever runs the loop.
FATAL = frozenset({"DAEMON_UNREACHABLE", "SHUTTING_DOWN", "MACHINE_NOT_FOUND"})


def field(block: object, name: str, default: Any = None) -> Any:
    if isinstance(block, Mapping):
        return block.get(name, default)
    return getattr(block, name, default)


def arguments(given: object) -> dict[str, Any]:
    """A call's arguments, which come as an object or as its JSON. Raises ToolFailure."""
    if isinstance(given, str):
        try:
            given = json.loads(given or "{}")
        except (ValueError, RecursionError):
            raise ToolFailure("The arguments are not JSON.") from None
    if not isinstance(given, Mapping):
        raise ToolFailure("The arguments are no object.")
    return dict(given)


def text(given: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """Raises ToolFailure where it is missing or no text."""
    value = given.get(name, default)
    if value is None:
        value = default
    if not isinstance(value, str):
        raise ToolFailure(f"{name} is missing." if value is None else f"{name} is no text.")
    return value


def integer(given: Mapping[str, Any], name: str, default: int | None = None) -> int | None:
    """Raises ToolFailure where it is there and no whole number."""
    value = given.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise ToolFailure(f"{name} is no whole number.")
    return value


def seconds(given: Mapping[str, Any], name: str, most: float) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise ToolFailure(f"{name} is a number of seconds above 0 and at most {most:g}.")
    return float(value)


def encoded(picture: bytes) -> str:
    return base64.b64encode(picture).decode("ascii")


def fatal(failure: RoostError) -> bool:
    return isinstance(failure, AuthError) or failure.code in FATAL
