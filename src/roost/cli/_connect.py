"""From what people type to machines: id, the start of an id, key or name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from roost.errors import RoostError, error

if TYPE_CHECKING:
    from roost import Client, Machine

ID = re.compile(r"[a-z0-9]{26,40}")
PREFIX = 4


def client() -> Client:
    from roost.client._sync._client import default_client

    return default_client()


def approvals_page() -> str:
    """Where people decide in a browser, with a key that they type in there."""
    return f"{client().url}/approvals"


def find(name: str) -> Machine:
    """Raises NotFoundError, or InvalidRequestError where several could be meant."""
    from roost import Machine

    if ID.fullmatch(name):
        try:
            return Machine.get(name)
        except RoostError as exc:
            if exc.code != "MACHINE_NOT_FOUND":
                raise
    try:
        return Machine.get(key=name)
    except RoostError as exc:
        if exc.code not in ("MACHINE_NOT_FOUND", "VALIDATION_FAILED"):
            raise
    every = Machine.list()
    found = [m for m in every if m.name == name]
    if not found and len(name) >= PREFIX:
        found = [m for m in every if m.id.startswith(name)]
    if len(found) > 1:
        ids = ", ".join(m.id for m in found[:5])
        raise error("VALIDATION_FAILED", f"{name!r} could be any of {len(found)} machines: {ids}.")
    if not found:
        raise error("MACHINE_NOT_FOUND", f"There is no machine {name!r}.")
    return found[0]


def complete_machine(incomplete: str) -> list[str]:
    """Ids, keys and names that begin so; silent where no daemon answers."""
    from roost import Machine

    try:
        machines = Machine.list(limit=500)
    except Exception:  # a completion must never get in the way
        return []
    names = [n for m in machines for n in (m.key, m.name, m.id) if n]
    return [n for n in names if n.startswith(incomplete)]


MachineArg = Annotated[
    str,
    typer.Argument(
        metavar="MACHINE",
        help="Id, start of an id, key or name.",
        autocompletion=complete_machine,
    ),
]
MachineArgs = Annotated[
    list[str],
    typer.Argument(metavar="MACHINE...", autocompletion=complete_machine),
]


def pairs(values: list[str], what: str) -> dict[str, str]:
    """``["a=b"]`` as a mapping. Raises InvalidRequestError."""
    made = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not name or not equals:
            raise error("VALIDATION_FAILED", f"{what} takes NAME=VALUE, not {value!r}.")
        made[name] = rest
    return made
