"""Options that say what a machine may reach, the same for every command that makes one."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from roost.cli._out import usage_error

MODES = ["open", "allowlist", "off"]


def complete_mode() -> list[str]:
    return MODES


Mode = Annotated[
    str | None,
    typer.Option(
        "--egress",
        metavar="MODE",
        help="What it may reach: open, allowlist, off.",
        autocompletion=complete_mode,
    ),
]
Allow = Annotated[
    list[str],
    typer.Option(
        "--allow",
        metavar="ENTRY",
        help="A name, *.name, address or network, with :PORTS. Repeatable.",
    ),
]
Observe = Annotated[bool, typer.Option("--observe", help="List all that it tries to reach.")]


def asked(mode: str | None, allow: list[str], observe: bool) -> str | dict[str, Any] | None:
    """As ``Machine.create(egress=...)`` takes it; ``--allow`` alone is an allowlist."""
    check_mode(mode)
    if not allow and not observe:
        return mode
    body: dict[str, Any] = {"observe": observe}
    if mode is not None:
        body["mode"] = mode
    if allow:
        body["allow"] = allow
    return body


def check_mode(mode: str | None) -> None:
    if mode is not None and mode not in MODES:
        raise usage_error(f"{mode!r} is none of {', '.join(MODES)}.")
