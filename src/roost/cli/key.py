"""``roost key``: show, ls, create, revoke."""

from __future__ import annotations

from typing import Annotated

import typer

from roost.cli._connect import client
from roost.cli._out import Json, age, note, print_json, say, table
from roost.errors import error

app = typer.Typer(
    name="key",
    help="API keys: show, ls, create, revoke.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command()
def show(json: Json = False) -> None:
    """The key and address in use here, for ROOST_URL and ROOST_API_KEY elsewhere."""
    from roost.client._config import resolve

    config = resolve()
    if json:
        print_json({"url": config.url, "api_key": config.api_key})
        return
    say(f"ROOST_URL={config.url}")
    say(f"ROOST_API_KEY={config.api_key}")


@app.command("ls")
def list_(json: Json = False) -> None:
    """List keys; the keys themselves are not kept anywhere."""
    found = client().keys()
    if json:
        print_json({"items": found})
        return
    table(
        ["ID", "NAME", "CREATED", "LAST USED"],
        [(k["key_id"], k["name"], age(k["created_at"]), age(k.get("last_used_at"))) for k in found],
    )


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for.")],
    json: Json = False,
) -> None:
    """Make a key. It is shown once."""
    made = client().create_key(name)
    if json:
        print_json(made)
        return
    say(made["key"])
    note("Shown only now.")


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A key's id, or its unique name.")],
    json: Json = False,
) -> None:
    """Take a key away; what uses it is refused from now on."""
    keys = client().keys()
    found = [k for k in keys if k["key_id"] == key] or [k for k in keys if k["name"] == key]
    if len(found) != 1:
        what = f"There are {len(found)} keys" if found else "There is no key"
        raise error("KEY_NOT_FOUND", f"{what} {key!r}.")
    client().revoke_key(found[0]["key_id"])
    if json:
        print_json({"key_id": found[0]["key_id"], "revoked": True})
    else:
        say(found[0]["key_id"])
