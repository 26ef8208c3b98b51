"""Instants of machines: fork, rollback, and ``roost snapshot`` create, ls, show, rm, export, import."""

from __future__ import annotations

from typing import Annotated

import typer

from roost.cli._connect import MachineArg, find, pairs
from roost.cli._egress import Allow, Mode, Observe, asked
from roost.cli._inside import AllowInside, allowed
from roost.cli._out import Json, age, fields, note, print_json, say, size, table
from roost.cli._transfer import Output, Source, progress, to_stdout
from roost.cli.machines import Labels, Name, Ttl, show_made

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
group = typer.Typer(
    help="Snapshots of machines: create, ls, show, rm, export, import.",
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
    secrets: Annotated[
        bool, typer.Option("--secrets", help="MACHINE's secrets are theirs, too.")
    ] = False,
    egress: Mode = None,
    allow: Allow = [],  # noqa: B006
    observe: Observe = False,
    allow_inside: AllowInside = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Make machines that go on from MACHINE's instant; prints their ids. MACHINE runs on."""
    made = find(machine).fork(
        count=count,
        name=name,
        labels=pairs(label, "--label") or None,
        ttl=ttl,
        inherit_secrets=secrets or None,
        egress=asked(egress, allow, observe),
        allow_inside=allowed(allow_inside),
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


@group.command("export")
def export_(
    snapshot: SnapshotArg,
    output: Output,
    memory: Annotated[
        bool,
        typer.Option(
            "--memory", help="With its processes; only this installation can go on from them."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Write SNAPSHOT to one file, compressed."""
    from roost import Snapshot

    found = Snapshot.get(snapshot)
    with progress(f"export {found.name or found.id}") as heard:
        if output == "-":
            to_stdout(found.read(memory=memory), heard)
            return
        count = found.export(output, memory=memory, progress=heard)
    if json:
        print_json({"file": output, "bytes": count, "snapshot_id": found.id})
    else:
        note(f"{output}: {size(count)}")


@group.command("import")
def import_(
    file: Source,
    name: Annotated[str | None, typer.Option(help="A name of its own.")] = None,
    trusted: Annotated[
        bool,
        typer.Option(
            "--trusted",
            help="An admin knows where FILE comes from: containers may use its disk, and its memory is gone on from.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Make a snapshot of a FILE that `export` wrote; prints its id.

    Without --trusted its disk, which somebody else wrote, is used in microVMs alone."""
    from roost import Snapshot

    with progress(f"import {file.name}", file.stat().st_size) as heard:
        made = Snapshot.load(file, name=name, trusted=trusted, progress=heard)
    if json:
        print_json(made.to_json())
    else:
        say(made.id)
