"""``roost tree``: which machines and snapshots came of which."""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated, Any

import typer

from roost.cli._connect import client, complete_machine, find
from roost.cli._inert import plain
from roost.cli._out import Json, age, console, note, print_json

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)

Nodes = list[dict[str, Any]]


@app.command()
def tree(
    machine: Annotated[
        str | None,
        typer.Argument(
            metavar="[MACHINE]",
            help="Those it came of, itself, all that came of it. Default: all.",
            autocompletion=complete_machine,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Draw which machines and snapshots came of which."""
    nodes = client().tree(None if machine is None else find(machine).id)
    if json:
        print_json({"items": nodes})
    elif not nodes:
        note("No machines. Make one: roost create")
    else:
        _draw(nodes)


def _draw(nodes: Nodes) -> None:
    from rich.text import Text
    from rich.tree import Tree

    known = {node["id"] for node in nodes}
    below: defaultdict[str | None, Nodes] = defaultdict(list)
    for node in nodes:
        below[_above(node, known)].append(node)
    out = console()
    for root in below[None]:
        drawn = Tree(Text(label(root)))
        pending = [(root, drawn)]
        while pending:
            node, at = pending.pop()
            for child in below[node["id"]]:
                pending.append((child, at.add(Text(label(child)))))
        out.print(drawn)


def _above(node: dict[str, Any], known: set[str]) -> str | None:
    """The snapshot it was made from where that is still there, else its parent."""
    for above in (node["from_snapshot_id"], node["parent_id"]):
        if above in known and above != node["id"]:
            return str(above)
    return None


def label(node: dict[str, Any]) -> str:
    """One line."""
    called = " ".join(plain(node[each]) for each in ("key", "name") if node[each])
    if node["kind"] == "snapshot":
        return f"snapshot {called or node['id']}  {age(node['created_at'])}"
    phase = f"{node['phase']} ({node['tier']})" if node["tier"] else str(node["phase"])
    took = f"  in place of {node['replaces']}" if node["replaces"] else ""
    return (
        f"{node['id']}  {called + '  ' if called else ''}{phase}  {age(node['created_at'])}{took}"
    )
