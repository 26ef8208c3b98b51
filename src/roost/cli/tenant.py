"""``roost tenant``: create, ls, show, set, rm."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from roost.cli._connect import client
from roost.cli._ladder import RUNGS
from roost.cli._out import Json, age, fields, note, print_json, say, table, usage_error

app = typer.Typer(
    name="tenant",
    help="Tenants and their quotas: create, ls, show, set, rm. For admins.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def complete_tenant(incomplete: str) -> list[str]:
    """Names and ids that begin so; silent where no daemon answers."""
    try:
        found = client().tenants()
    except Exception:  # a completion must never get in the way
        return []
    return [n for t in found for n in (t["name"], t["tenant_id"]) if n.startswith(incomplete)]


TenantArg = Annotated[
    str,
    typer.Argument(metavar="TENANT", help="Id or name.", autocompletion=complete_tenant),
]


def _quota(text: str) -> Any:
    return typer.Option(metavar="N|none", help=text)


Machines = Annotated[str | None, _quota("Machines, asleep or not.")]
Awake = Annotated[str | None, _quota("Machines awake at a time.")]
Vcpu = Annotated[str | None, _quota("vCPUs of machines awake.")]
Memory = Annotated[str | None, _quota("MiB of memory of machines awake.")]
Storage = Annotated[str | None, _quota("GiB of disks and snapshots.")]
Forks = Annotated[str | None, _quota("Children forked a minute.")]
Rate = Annotated[str | None, _quota("Requests a second.")]
Burst = Annotated[str | None, _quota("Requests at once.")]
Isolation = Annotated[
    str | None,
    typer.Option(
        metavar="RUNG|none",
        help="The least isolation of its machines: workspace, user, container, microvm.",
        autocompletion=lambda: [*RUNGS, "none"],
    ),
]


def quotas(**named: str | None) -> dict[str, float | None]:
    """Those that were given. Exits with 2 for what is no number."""
    found: dict[str, float | None] = {}
    for name, text in named.items():
        if text is None:
            continue
        try:
            value = None if text == "none" else float(text)
        except ValueError:
            raise usage_error(f"{text!r} is neither a number nor none.") from None
        found[name] = int(value) if value is not None and value.is_integer() else value
    return found


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="1-63 of [a-z0-9-].")],
    machines: Machines = None,
    awake: Awake = None,
    vcpu: Vcpu = None,
    memory: Memory = None,
    storage: Storage = None,
    forks: Forks = None,
    rate: Rate = None,
    burst: Burst = None,
    isolation: Isolation = None,
    json: Json = False,
) -> None:
    """Make a tenant; then a key for it: roost key create NAME --tenant TENANT."""
    named = quotas(
        machines=machines, awake_machines=awake, vcpu=vcpu, memory_mib=memory, storage_gib=storage,
        forks_per_minute=forks, requests_per_second=rate, request_burst=burst,
    )  # fmt: skip
    least = None if isolation == "none" else isolation
    made = client().create_tenant(name, quotas=named, isolation=least)
    if json:
        print_json(made)
        return
    say(made["tenant_id"])
    note(f"A key for it: roost key create first --tenant {made['name']}")


@app.command("ls")
def list_(json: Json = False) -> None:
    """List tenants."""
    found = client().tenants()
    if json:
        print_json({"items": found})
        return
    table(
        ["ID", "NAME", "MACHINES AT MOST", "ISOLATION AT LEAST", "CREATED"],
        [
            (
                t["tenant_id"],
                t["name"],
                _limit(t["quotas"].get("machines")),
                t.get("isolation") or "none",
                age(t["created_at"]),
            )
            for t in found
        ],
    )


@app.command()
def show(tenant: TenantArg, json: Json = False) -> None:
    """A tenant, its quotas and what it has of them."""
    found = client().tenant(tenant)
    if json:
        print_json(found)
        return
    fields(
        [
            ("id", found["tenant_id"]),
            ("name", found["name"]),
            ("isolation", f"{found['isolation']} at least" if found.get("isolation") else None),
            ("created", found["created_at"]),
        ]
    )
    print()
    used = found.get("used") or {}
    table(
        ["QUOTA", "USED", "LIMIT"],
        [(name, used.get(name), _limit(limit)) for name, limit in found["quotas"].items()],
    )


@app.command("set")
def set_(
    tenant: TenantArg,
    name: Annotated[str | None, typer.Option(help="Another name.")] = None,
    machines: Machines = None,
    awake: Awake = None,
    vcpu: Vcpu = None,
    memory: Memory = None,
    storage: Storage = None,
    forks: Forks = None,
    rate: Rate = None,
    burst: Burst = None,
    isolation: Isolation = None,
    json: Json = False,
) -> None:
    """Change a tenant's quotas and the least isolation of its machines; what is not named stays."""
    named = quotas(
        machines=machines, awake_machines=awake, vcpu=vcpu, memory_mib=memory, storage_gib=storage,
        forks_per_minute=forks, requests_per_second=rate, request_burst=burst,
    )  # fmt: skip
    if name is None and isolation is None and not named:
        raise usage_error("name what to change: --machines, --vcpu, --isolation, --name, ...")
    changed = client().update_tenant(tenant, name=name, quotas=named, isolation=isolation)
    if json:
        print_json(changed)
    else:
        say(changed["tenant_id"])


@app.command()
def rm(tenant: TenantArg, json: Json = False) -> None:
    """Delete a tenant that has no machines and snapshots, and its keys."""
    found = client().tenant(tenant)
    client().delete_tenant(found["tenant_id"])
    if json:
        print_json({"tenant_id": found["tenant_id"], "deleted": True})
    else:
        say(found["tenant_id"])


def _limit(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"
