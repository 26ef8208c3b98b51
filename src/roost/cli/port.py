"""Ports shown outside: ``roost port`` add, ls, rm, and ``roost open``."""

from __future__ import annotations

from typing import Annotated

import typer

from roost.cli._connect import MachineArg, find
from roost.cli._out import Json, age, browse, print_json, say, table
from roost.units import parse_duration

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
group = typer.Typer(
    help="Ports shown outside: add, ls, rm.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(group, name="port")

PortArg = Annotated[int, typer.Argument(metavar="PORT", min=1, max=65535)]
ShownArg = Annotated[
    int,
    typer.Argument(metavar="PORT", min=0, max=65535, help="0: every port not shown by itself."),
]


@group.command()
def add(
    machine: MachineArg,
    port: ShownArg,
    public: Annotated[
        bool, typer.Option("--public", help="For everybody, without a token.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its host is NAME.DOMAIN; one of the daemon.")
    ] = None,
    tcp: Annotated[
        bool, typer.Option("--tcp", help="No HTTP: roost port-forward reaches it.")
    ] = False,
    json: Json = False,
) -> None:
    """Show a port of a machine outside; prints its URL. 0: every port that has no row of its own."""
    made = find(machine).ports.create(
        port,
        visibility="public" if public else "private",
        name=name,
        protocol="tcp" if tcp else "http",
    )
    if json:
        print_json(made)
    else:
        say(made["url"] or (f"{port}/tcp" if tcp else "every port"))


@group.command("list", hidden=True)
@group.command("ls")
def list_(
    machine: MachineArg,
    listening: Annotated[
        bool, typer.Option("--listening", help="Those that programs in it listen on instead.")
    ] = False,
    json: Json = False,
) -> None:
    """List the ports of a machine that are shown."""
    ports = find(machine).ports
    found = ports.listening() if listening else ports.list()
    if json:
        print_json({"items": found})
        return
    if listening:
        table(["PORT", "ADDRESSES"], [(str(p["port"]), " ".join(p["addresses"])) for p in found])
        return
    table(
        ["PORT", "PROTOCOL", "VISIBILITY", "NAME", "URL", "CREATED"],
        [
            (
                str(p["port"]),
                p["protocol"],
                p["visibility"],
                p["name"] or "",
                p["url"] or "",
                age(p["created_at"]),
            )
            for p in found
        ],
    )


@group.command()
def rm(machine: MachineArg, port: ShownArg, json: Json = False) -> None:
    """Show a port no more; what is open there ends."""
    found = find(machine)
    found.ports.delete(port)
    if json:
        print_json({"machine_id": found.id, "port": port, "removed": True})
    else:
        say(str(port))


@app.command("open")
def open_(
    machine: MachineArg,
    port: PortArg,
    ttl: Annotated[
        str, typer.Option(metavar="TIME", help="How long the link is good for: 30m, 7d.")
    ] = "1h",
    print_only: Annotated[
        bool, typer.Option("--print", help="Print the URL and open no browser.")
    ] = False,
    json: Json = False,
) -> None:
    """Open a port in the browser, shown privately where it was not; prints the URL, a private port's with a link."""
    found = find(machine)
    about = found.ports.ensure(port)
    if about["visibility"] == "public":
        url = found.url(port)
    else:
        url = found.link(port, ttl=parse_duration(ttl) or 3600)
    if json:
        print_json({**about, "url": url})
        return
    say(url)
    if not print_only:
        browse(url)
