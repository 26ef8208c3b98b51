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
    return [r for r in ("admin", "tenant", "runner", "read_only") if r.startswith(incomplete)]


# What other services' clients read: the prefix their keys have, then names of settings; {url} and {key} are ours.
CLIENTS: dict[str, tuple[str, dict[str, str]]] = {
    "dedalus": ("dsk", {"DEDALUS_BASE_URL": "{url}", "DEDALUS_API_KEY": "{key}"}),
    "boxd": (
        "bxk",
        {
            "BOXD_BASE_URL": "{url}",  # 0.2
            "BOXD_API_URL": "{url}",  # 0.1
            "BOXD_EXCHANGE_URL": "{url}/api/v1/auth/token",
            "BOXD_API_KEY": "{key}",
        },
    ),
    "pandastack": ("pds", {"PANDASTACK_API": "{url}", "PANDASTACK_API_KEY": "{key}"}),
    "e2b": (
        "e2b",
        {"E2B_API_URL": "{url}", "E2B_SANDBOX_URL": "{url}", "E2B_API_KEY": "{key}"},
    ),
}


def complete_client(incomplete: str) -> list[str]:
    return [name for name in CLIENTS if name.startswith(incomplete)]


@app.command()
def show(
    client_: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="CLIENT",
            help=f"As another service's client reads them: {', '.join(CLIENTS)}.",
            autocompletion=complete_client,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """The key and address in use here, for ROOST_URL and ROOST_API_KEY elsewhere, or for another service's client."""
    from roost.client._config import resolve

    config = resolve()
    if client_ is not None:
        if client_ not in CLIENTS:
            raise error(
                "VALIDATION_FAILED", f"No client {client_!r} is known: {', '.join(CLIENTS)}."
            )
        prefix, names = CLIENTS[client_]
        key = f"{prefix}_{config.api_key.rpartition('_')[2]}"
        said = {name: text.format(url=config.url, key=key) for name, text in names.items()}
        if json:
            print_json(said)
        for name, text in said.items() if not json else ():
            say(f"{name}={text}")
        return
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
            help="admin, tenant, runner or read_only; yours by default.",
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
