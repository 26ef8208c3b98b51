"""What a tool tells the model where it could not do what was asked."""

from __future__ import annotations

from roost.errors import RoostError


class ToolFailure(Exception):
    """The model can read this, and mend it or do something else."""


def told(failure: ToolFailure | RoostError) -> str:
    """One or two lines: what happened, its code, what to do."""
    if isinstance(failure, ToolFailure):
        return str(failure)
    text = f"{failure.message} [{failure.code}]"
    if remedy := failure.details.get("remedy"):
        text += f" {remedy}"
    elif failure.retryable:
        text += " This may pass: try again."
    return text
