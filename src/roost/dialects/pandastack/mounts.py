"""Volumes a sandbox is made with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from roost.dialects import serving
from roost.dialects.pandastack import bodies


def of(asked: Sequence[bodies.Mount] | None) -> dict[str, Any]:
    """Of ``CreateMachine``."""
    if asked:
        raise serving.not_served("volumes here yet")
    return {}
