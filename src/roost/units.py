"""Durations as people write them: ``30s``, ``5m``, ``2h``, ``7d``, ``300``, ``"never"``."""

from __future__ import annotations

import math
import re

from roost.errors import InvalidRequestError

MAX_SECONDS = 10 * 365 * 86_400
_FORM = re.compile(r"(\d{1,12})(s|m|h|d)?", re.ASCII)
_SECONDS = {None: 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_duration(value: str | int | float | None, allow_never: bool = False) -> int | None:
    """Whole seconds, at least 1; None for None, and for ``"never"`` where that is allowed.

    Raises InvalidRequestError (VALIDATION_FAILED) for anything else.
    """
    if value is None or (allow_never and value == "never"):
        return None
    seconds: int | None = None
    if isinstance(value, str):
        match = _FORM.fullmatch(value.strip())
        if match:
            seconds = int(match[1]) * _SECONDS[match[2]]
    elif isinstance(value, int) and not isinstance(value, bool):
        seconds = value
    elif isinstance(value, float) and math.isfinite(value) and value.is_integer():
        seconds = int(value)
    if seconds is None or not 1 <= seconds <= MAX_SECONDS:
        never = ', or "never"' if allow_never else ""
        raise InvalidRequestError(
            f'{str(value)[:40]!r} is not a duration: write whole seconds or "30s", "5m", "2h", "7d"'
            f" (1 s to 10 years){never}."
        )
    return seconds
