"""``roost ssh-key``: add, list, rm."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from roost.cli._connect import client
from roost.cli._out import Json, age, print_json, say, table
from roost.errors import error

app = typer.Typer(
    name="ssh-key",
    help="Public keys that may come in over SSH: add, list, rm.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
MAX_BYTES = 16384


def complete_key(incomplete: str) -> list[str]:
    """Ids and names that begin so; silent where no daemon answers."""
    try:
        found = client().ssh_keys()
    except Exception:  # a completion must never get in the way
        return []
    return [n for k in found for n in (k["name"], k["ssh_key_id"]) if n.startswith(incomplete)]


@app.command()
def add(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A .pub file; - reads one from stdin.")
    ],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Default: the key's comment.")
    ] = None,
    json: Json = False,
) -> None:
    """Let the holder of a key into your machines."""
    text = sys.stdin.read(MAX_BYTES) if file == "-" else Path(file).expanduser().read_text()
    made = client().add_ssh_key(text.strip(), name=name)
    if json:
        print_json(made)
    else:
        say(f"{made['ssh_key_id']}  {made['fingerprint']}  {made['name']}")


@app.command("ls", hidden=True)
@app.command("list")
def list_(json: Json = False) -> None:
    """List keys."""
    found = client().ssh_keys()
    if json:
        print_json({"items": found})
        return
    table(
        ["ID", "NAME", "FINGERPRINT", "CREATED", "LAST USED"],
        [
            (
                k["ssh_key_id"],
                k["name"],
                k["fingerprint"],
                age(k["created_at"]),
                age(k.get("last_used_at")),
            )
            for k in found
        ],
    )


@app.command()
def rm(
    key: Annotated[
        str,
        typer.Argument(
            metavar="KEY",
            help="A key's id, fingerprint or unique name.",
            autocompletion=complete_key,
        ),
    ],
    json: Json = False,
) -> None:
    """Take a key away; sessions that came in with it end."""
    keys = client().ssh_keys()
    found = [k for k in keys if key in (k["ssh_key_id"], k["fingerprint"])]
    found = found or [k for k in keys if k["name"] == key]
    if len(found) != 1:
        what = f"There are {len(found)} SSH keys" if found else "There is no SSH key"
        raise error("KEY_NOT_FOUND", f"{what} {key!r}.")
    client().remove_ssh_key(found[0]["ssh_key_id"])
    if json:
        print_json({"ssh_key_id": found[0]["ssh_key_id"], "removed": True})
    else:
        say(found[0]["ssh_key_id"])
