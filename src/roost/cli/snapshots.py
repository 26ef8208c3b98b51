"""Instants of machines: fork, rollback, and ``roost snapshot`` create, ls, show, rm."""

from __future__ import annotations

from typing import Annotated

import typer

from roost.cli._connect import MachineArg, find, pairs
from roost.cli._out import Json, age, fields, print_json, say, size, table
from roost.cli.machines import Labels, Name, Ttl, show_made

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
group = typer.Typer(
    help="Snapshots of machines: create, ls, show, rm.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(group, name="snapshot")


def complete_snapshot(incomplete: str) -> list[str]:
    """Names and ids that begin so; silent where no daemon answers."""
    from roost import Snapshot

    try:
        found = Snapshot.list(limit=500)
    except Exception:  # a completion must never get in the way
        return []
    return [n for s in found for n in (s.name, s.id) if n and n.startswith(incomplete)]


SnapshotArg = Annotated[
    str,
    typer.Argument(metavar="SNAPSHOT", help="Id or name.", autocompletion=complete_snapshot),
]


@app.command()
def fork(
    machine: MachineArg,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=100, help="So many.")] = 1,
    name: Name = None,
    label: Labels = [],  # noqa: B006
    ttl: Ttl = None,
    json: Json = False,
) -> None:
    """Make machines that go on from MACHINE's instant; prints their ids. MACHINE runs on."""
    made = find(machine).fork(
        count=count, name=name, labels=pairs(label, "--label") or None, ttl=ttl
    )
    show_made(made if isinstance(made, list) else [made], json)


@app.command()
def rollback(machine: MachineArg, snapshot: SnapshotArg, json: Json = False) -> None:
    """Take MACHINE back to a SNAPSHOT of its own; what it did since is gone."""
    found = find(machine).rollback(snapshot)
    if json:
        print_json(found.to_json())
    else:
        say(f"{found.id} {found.phase}")


@group.command()
def create(
    machine: MachineArg,
    name: Annotated[str | None, typer.Option(help="A name of its own.")] = None,
    json: Json = False,
) -> None:
    """Keep MACHINE as it is now; prints the snapshot's id. The machine runs on."""
    made = find(machine).snapshot(name)
    if json:
        print_json(made.to_json())
    else:
        say(made.id)


@group.command("ls")
def list_(
    machine: Annotated[str | None, typer.Option(help="Of this machine only.")] = None,
    json: Json = False,
) -> None:
    """List snapshots, newest first."""
    from roost import Snapshot

    found = Snapshot.list(machine_id=None if machine is None else find(machine).id)
    if json:
        print_json({"items": [s.to_json() for s in found]})
        return
    table(
        ["ID", "NAME", "MACHINE", "MEMORY", "SIZE", "AGE"],
        [
            (
                s.id,
                s.name,
                s.machine_id,
                "quarantined" if s.status == "quarantined" else "yes" if s.memory else "disk only",
                size(s.size_bytes),
                age(s.to_json().get("created_at")),
            )
            for s in found
        ],
        empty="No snapshots. Make one: roost snapshot create MACHINE",
    )


@group.command()
def show(snapshot: SnapshotArg, json: Json = False) -> None:
    """Everything about one snapshot."""
    from roost import Snapshot

    found = Snapshot.get(snapshot).to_json()
    if json:
        print_json(found)
    else:
        fields(list(found.items()))


@group.command()
def rm(
    snapshots: Annotated[
        list[str],
        typer.Argument(metavar="SNAPSHOT...", autocompletion=complete_snapshot),
    ],
    json: Json = False,
) -> None:
    """Delete snapshots; machines made from them live on."""
    from roost import Snapshot

    done = []
    for name in snapshots:
        found = Snapshot.get(name)
        found.delete()
        done.append(found.to_json())
        if not json:
            say(found.id)
    if json:
        print_json({"items": done})
