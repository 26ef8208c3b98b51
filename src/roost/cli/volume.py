"""``roost volume``: disks of their own: create, ls, show, rm."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from roost.cli._out import Json, age, fields, print_json, say, table

if TYPE_CHECKING:
    from roost import Volume

app = typer.Typer(
    help="Disks that outlive machines: create, ls, show, rm.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def complete_volume(incomplete: str) -> list[str]:
    """Names and ids that begin so; silent where no daemon answers."""
    from roost import Volume

    try:
        found = Volume.list(limit=500)
    except Exception:  # a completion must never get in the way
        return []
    return [n for v in found for n in (v.name, v.id) if n.startswith(incomplete)]


VolumeArg = Annotated[
    str, typer.Argument(metavar="VOLUME", help="Name or id.", autocompletion=complete_volume)
]


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Your own unique name for it.")],
    size: Annotated[
        int | None, typer.Option("--size", metavar="GIB", min=1, help="At most so large (10).")
    ] = None,
    json: Json = False,
) -> None:
    """Make an empty volume; mount it with: roost create --volume NAME:/path"""
    from roost import Volume

    made = Volume.create(name, size_gib=size)
    if json:
        print_json(made.to_json())
        return
    say(made.id)
    if sys.stdout.isatty():
        _list([made])


@app.command("ls")
@app.command("list", hidden=True)
def list_(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Names only.")] = False,
    json: Json = False,
) -> None:
    """List volumes, newest first."""
    from roost import Volume

    found = Volume.list()
    if json:
        print_json({"items": [v.to_json() for v in found]})
    elif quiet:
        for volume in found:
            say(volume.name)
    else:
        _list(found)


def _list(volumes: list[Volume]) -> None:
    table(
        ["ID", "NAME", "SIZE", "FOR", "MACHINES", "AGE"],
        [
            (
                v.id,
                v.name,
                f"{v.size_gib} GiB",
                "microVMs" if v.raw_written else "any",
                _machines(v),
                age(v.to_json().get("created_at")),
            )
            for v in volumes
        ],
        empty="No volumes. Make one: roost volume create NAME",
    )


def _machines(volume: Volume) -> str | None:
    found = [
        f"{each['machine_id']}{' (ro)' if each['read_only'] else ''}" for each in volume.attachments
    ]
    more = f" and {len(found) - 2} more" if len(found) > 2 else ""
    return ", ".join(found[:2]) + more if found else None


@app.command()
def show(volume: VolumeArg, json: Json = False) -> None:
    """Everything about one volume, and which machines have it."""
    from roost import Volume

    v = Volume.get(volume)
    if json:
        print_json(v.to_json())
        return
    fields(
        [
            ("id", v.id),
            ("name", v.name),
            ("size", f"{v.size_gib} GiB"),
            ("for", "microVMs alone: one had it read-write" if v.raw_written else "any rung"),
            *(
                (
                    "machine",
                    f"{each['machine_id']} at {each['path']}"
                    + (", read-only" if each["read_only"] else ""),
                )
                for each in v.attachments
            ),
            ("created", v.to_json().get("created_at")),
        ]
    )


@app.command("rm")
@app.command("delete", hidden=True)
def rm(
    volumes: Annotated[
        list[str], typer.Argument(metavar="VOLUME...", autocompletion=complete_volume)
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
    json: Json = False,
) -> None:
    """Delete volumes and what is in them.

    Asks first on a terminal, unless --yes.
    """
    from roost import Volume

    found = [Volume.get(name) for name in volumes]
    if not yes and not json and sys.stdin.isatty() and sys.stdout.isatty():
        _list(found)
        if not typer.confirm(f"Delete {len(found)} with all that is in them?"):
            raise typer.Exit(1)
    done = []
    for volume in found:
        volume.delete()
        done.append(volume.to_json())
        if not json:
            say(volume.name)
    if json:
        print_json({"items": done})
