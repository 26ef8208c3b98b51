"""``roost version`` and ``roost completion``."""

from __future__ import annotations

import contextlib
import os
from typing import Annotated, Any

import typer

from roost import __version__
from roost.cli._out import Json, print_json, say
from roost.errors import RoostError

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command()
def version(json: Json = False) -> None:
    """Versions of this command and of the daemon (null where none answers)."""
    from roost.cli._connect import client

    daemon: dict[str, Any] = {}
    with contextlib.suppress(RoostError):
        daemon = client().host()["daemon"]
    if json:
        print_json({"version": __version__, "daemon": daemon.get("version")})
        return
    say(f"roost {__version__}")
    say(
        f"daemon {daemon.get('version')} at {daemon.get('url')}"
        if daemon
        else "daemon: none answers"
    )


@app.command()
def completion(
    shell: Annotated[
        str | None, typer.Argument(help="bash, zsh, fish; this one by default.")
    ] = None,
) -> None:
    """Print a shell's completion script; `roost --install-completion` installs it."""
    from typer._completion_shared import get_completion_script

    name = shell or os.path.basename(os.environ.get("SHELL") or "bash")
    script = get_completion_script(prog_name="roost", complete_var="_ROOST_COMPLETE", shell=name)
    print(script)
