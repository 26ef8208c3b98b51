"""``roost down``: stops the daemon; with ``--purge`` removes everything Roost made on this host."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from roost.cli import _daemon
from roost.cli._out import Json, note, print_json, say, usage_error

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command()
def down(
    purge: Annotated[
        bool, typer.Option("--purge", help="Destroy every machine and remove all data.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing (--purge).")] = False,
    json: Json = False,
) -> None:
    """Stop the daemon; machines go on, and the next one adopts them.

    With --purge: every machine, disk, template, key and log of Roost on this host is removed.
    """
    from roost.client._config import data_dir

    _daemon.local_url()
    if purge and not yes:
        if not sys.stdin.isatty():
            raise usage_error("--purge destroys every machine on this host: add --yes.")
        note(f"Every machine, disk, template, key and log below {data_dir()} will be gone.")
        if not typer.confirm("Remove everything?"):
            raise typer.Exit(1)
    stopped = _daemon.stop()
    if purge:
        _purge(json)
    if json:
        print_json({"stopped": stopped, "purged": purge})
    elif purge:
        say("Everything this daemon made on this host is removed.")
    elif stopped:
        say("The daemon is stopped. Its machines go on; `roost up` takes them up again.")
    else:
        say("No daemon runs.")


def _purge(quiet: bool) -> None:
    import asyncio

    from roost.purge import purge
    from roost.settings import Settings

    asyncio.run(purge(Settings.model_validate({}), (lambda _: None) if quiet else note))
