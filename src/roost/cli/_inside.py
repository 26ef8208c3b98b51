"""Options that say what a machine may ask of its daemon itself, the same for every command that makes one."""

from __future__ import annotations

from typing import Annotated

import typer

from roost.cli._out import usage_error

WHAT = ["expose", "publish", "fork", "sleep"]


def complete_allowed() -> list[str]:
    return WHAT


AllowInside = Annotated[
    list[str],
    typer.Option(
        "--allow-inside",
        metavar="WHAT",
        help="What it may ask itself: expose, publish, fork, sleep. Repeatable.",
        autocompletion=complete_allowed,
    ),
]


def allowed(what: list[str]) -> list[str] | None:
    """As ``Machine.create(allow_inside=...)`` takes it; "a,b" is two."""
    named = [each for part in what for each in part.split(",") if each]
    for each in named:
        if each not in WHAT:
            raise usage_error(f"{each!r} is none of {', '.join(WHAT)}.")
    return named or None
