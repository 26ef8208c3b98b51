"""``roost inside``: what a machine may ask of its daemon itself, and changing it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from roost.cli._connect import MachineArg, find
from roost.cli._inside import allowed, complete_allowed
from roost.cli._out import Json, fields, print_json, usage_error

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command()
def inside(
    machine: MachineArg,
    allow: Annotated[
        list[str],
        typer.Option(
            metavar="WHAT",
            help="Allow expose, publish, fork, sleep too. Repeatable.",
            autocompletion=complete_allowed,
        ),
    ] = [],  # noqa: B006
    deny: Annotated[
        list[str],
        typer.Option(
            metavar="WHAT",
            help="Allow it no more. Repeatable.",
            autocompletion=complete_allowed,
        ),
    ] = [],  # noqa: B006
    deny_all: Annotated[bool, typer.Option("--deny-all", help="Allow none of it.")] = False,
    forks: Annotated[
        int | None, typer.Option(min=0, max=1000, help="Copies it may make of itself in its life.")
    ] = None,
    json: Json = False,
) -> None:
    """What a machine's own programs may ask by `roost` inside it, beyond looking at it.

    Without options it is shown. What is changed holds from the next request on.
    """
    found = find(machine)
    more, less = allowed(allow) or [], allowed(deny) or []
    if deny_all and (more or less):
        raise usage_error("--deny-all is all there is to say.")
    changes: dict[str, Any] = {}
    if more or less or deny_all:
        before = [] if deny_all else [*found.inside["allow"], *more]
        changes["allow_inside"] = [each for each in dict.fromkeys(before) if each not in less]
    if forks is not None:
        changes["inside_forks"] = forks
    if changes:
        found.update(**changes)
    if json:
        print_json(found.inside)
        return
    fields(
        [
            ("may", ", ".join(found.inside["allow"]) or "look at itself"),
            ("forks", f"{found.inside['forked']} of {found.inside['forks']} made"),
        ]
    )
