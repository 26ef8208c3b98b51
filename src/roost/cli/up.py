"""``roost up``: from nothing to a first machine; what is done already is skipped."""

from __future__ import annotations

import os
import time
from typing import Annotated, Any

import typer

from roost.cli import _daemon
from roost.cli._connect import client
from roost.cli._inert import plain
from roost.cli._out import Json, note, print_json, say
from roost.client._config import data_dir
from roost.errors import AuthError, NotFoundError, error

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)

TEMPLATE = "base"
KEY = "first"
GREETING = "uname -srm; . /etc/os-release; echo $PRETTY_NAME; echo $(nproc) CPU, $(free -m | awk '/Mem/{print $2}') MiB"


@app.command()
def up(
    machine: Annotated[
        bool, typer.Option("--machine/--no-machine", help="Make a first machine and use it.")
    ] = True,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Be the daemon, until it is stopped.")
    ] = False,
    install_service: Annotated[
        bool, typer.Option("--install-service", help="Install the systemd unit first.")
    ] = False,
    json: Json = False,
) -> None:
    """Start the daemon, bake the base template, make a first machine.

    Safe to repeat: what is done already is skipped.
    """
    url = _daemon.local_url()
    if install_service:
        _daemon.install_service()
    if foreground:
        _daemon.foreground()
    begun = time.monotonic()
    started = not _daemon.healthy(url)
    if started:
        _daemon.start()
    else:
        _ours(url)
    if unheard := _daemon.unheard():
        note(
            f"The daemon runs with another value of {', '.join(unheard)} than is set here, or without: settings are "
            f"read when it starts. To change them: {_daemon.restart_hint()}"
        )
    if not json:
        took = f"started in {time.monotonic() - begun:.1f} s" if started else "runs already"
        say(f"daemon    {took}, {url}")
    template = _template(json) if _has_disks() else None
    if template is not None and not json:
        say(f"template  {TEMPLATE} is {template['status']}")
    done: dict[str, Any] = {"url": url, "started": started, "template": template}
    if machine:
        done |= _machine(json)
    if json:
        print_json(done)


def _ours(url: str) -> None:
    """Raises PORT_IN_USE where what answers there takes no key of ours and does not run on our directories."""
    try:
        client().host()
    except AuthError as exc:
        descriptor = _daemon.find()
        if descriptor is not None:
            os.close(descriptor)
            raise
        raise error(
            "PORT_IN_USE",
            f"A daemon answers at {url} that is not of {data_dir()}: another user's, perhaps. Give yours a port of "
            "its own, or set ROOST_API_KEY to a key of that one's.",
            details={"remedy": "export ROOST_PORT=7686; roost up"},
        ) from exc


def _has_disks() -> bool:
    """Whether what machines get by default begins with a template; a workspace has the host's programs."""
    host = client().host()
    rung = next((r for r in host["rungs"] if r["driver"] == host["default_driver"]), None)
    return rung is None or bool((rung["capabilities"] or {}).get("disk_image", True))


def _template(quiet: bool) -> dict[str, Any]:
    from roost.cli.template import follow

    try:
        found = client().template(TEMPLATE)
        if found["status"] == "ready":
            return found
    except NotFoundError:
        pass
    if not quiet:
        note(f"Building the template {TEMPLATE}: once, a minute or two.")
    made = follow(client().build_template(TEMPLATE), f"template {TEMPLATE}", quiet=quiet)
    return made or client().template(TEMPLATE)


def _machine(quiet: bool) -> dict[str, Any]:
    from roost import Machine

    begun = time.monotonic()
    first = Machine.ensure(KEY)
    ensured = time.monotonic()
    result = first.exec(GREETING, timeout=60)
    if not quiet:
        say(
            f"machine   {KEY} ({first.id}) ready in {ensured - begun:.2f} s, "
            f"{first.isolation.get('claim')}"
        )
        for line in result.stdout.splitlines():
            print(f"          {plain(line)}")
        print(
            "\nNext:\n"
            f"  roost shell {KEY}              a terminal in it\n"
            f"  roost exec {KEY} ls -la /      a command\n"
            "  roost ensure user-42           another machine, kept under a key of yours\n"
            "  roost doctor                   what isolates them here"
        )
    return {"machine": first.to_json(), "stdout": result.stdout, "exit_code": result.exit_code}
