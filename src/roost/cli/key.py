"""``roost key``: show, ls, create, rm (or revoke)."""

from __future__ import annotations

from typing import Annotated

import typer

from roost.cli._connect import client
from roost.cli._out import Json, age, note, print_json, say, table
from roost.cli.tenant import complete_tenant
from roost.errors import error

app = typer.Typer(
    name="key",
    help="API keys: show, ls, create, rm (or revoke).",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def complete_key(incomplete: str) -> list[str]:
    """Ids and names that begin so; silent where no daemon answers."""
    try:
        found = client().keys()
    except Exception:  # a completion must never get in the way
        return []
    return [n for k in found for n in (k["name"], k["key_id"]) if n.startswith(incomplete)]


Tenant = Annotated[
    str | None,
    typer.Option(
        metavar="TENANT",
        help="Of this tenant (id or name); an admin's to name.",
        autocompletion=complete_tenant,
    ),
]
KeyArg = Annotated[
    str,
    typer.Argument(
        metavar="KEY", help="A key's id, or its unique name.", autocompletion=complete_key
    ),
]


def complete_role(incomplete: str) -> list[str]:
    return [r for r in ("admin", "tenant", "read_only") if r.startswith(incomplete)]


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
def list_(tenant: Tenant = None, json: Json = False) -> None:
    """List keys; the keys themselves are not kept anywhere."""
    found = client().keys(tenant=tenant)
    if json:
        print_json({"items": found})
        return
    table(
        ["ID", "NAME", "ROLE", "CREATED", "LAST USED", "EXPIRES"],
        [
            (
                k["key_id"],
                k["name"],
                k.get("role"),
                age(k["created_at"]),
                age(k.get("last_used_at")),
                k.get("expires_at") or "never",
            )
            for k in found
        ],
    )


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for.")],
    role: Annotated[
        str | None,
        typer.Option(
            metavar="ROLE",
            help="admin, tenant or read_only; yours by default.",
            autocompletion=complete_role,
        ),
    ] = None,
    ttl: Annotated[
        str | None, typer.Option(metavar="TIME", help="Until it expires: 12h, 30d. Default: never.")
    ] = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Make a key. It is shown once."""
    made = client().create_key(name, role=role, ttl=ttl, tenant=tenant)
    if json:
        print_json(made)
        return
    say(made["key"])
    note("Shown only now.")


@app.command("revoke", hidden=True)
@app.command("rm")
def rm(key: KeyArg, tenant: Tenant = None, json: Json = False) -> None:
    """Take a key away; what uses it is refused from now on, and what it has open is closed."""
    keys = client().keys(tenant=tenant)
    found = [k for k in keys if k["key_id"] == key] or [k for k in keys if k["name"] == key]
    if len(found) != 1:
        what = f"There are {len(found)} keys" if found else "There is no key"
        raise error("KEY_NOT_FOUND", f"{what} {key!r}.")
    client().revoke_key(found[0]["key_id"])
    if json:
        print_json({"key_id": found[0]["key_id"], "revoked": True})
    else:
        say(found[0]["key_id"])
