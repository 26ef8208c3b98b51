"""Options that say where on the ladder a machine stands, the same for every command that makes one."""

from __future__ import annotations

from typing import Annotated

import typer

from roost.cli._connect import client

RUNGS = ["workspace", "user", "container", "microvm"]


def complete_isolation() -> list[str]:
    return ["auto", *RUNGS]


def complete_driver(incomplete: str) -> list[str]:
    """Drivers of this host that begin so, of rungs that the caller may use; silent where no daemon answers."""
    return [name for name, _ in _drivers() if name.startswith(incomplete)]


def complete_container(incomplete: str) -> list[str]:
    """As ``complete_driver``, of containers alone."""
    return [
        name for name, rung in _drivers() if rung == "container" and name.startswith(incomplete)
    ]


def _drivers() -> list[tuple[str, str]]:
    try:
        found = client().capabilities()["rungs"]
        return [(r["driver"], r["isolation"]) for r in found if r["available"] and r["allowed"]]
    except Exception:  # a completion must never get in the way
        return []


Isolation = Annotated[
    str | None,
    typer.Option(
        metavar="RUNG",
        help="auto, workspace, user, container, microvm.",
        autocompletion=complete_isolation,
    ),
]
Driver = Annotated[
    str | None,
    typer.Option(
        help="A driver by name (see roost doctor).",
        autocompletion=complete_driver,
    ),
]
