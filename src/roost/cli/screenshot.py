"""``roost screenshot``: what is on a machine's screen, or in its browser."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from roost.cli._connect import MachineArg, find
from roost.cli._out import Json, note, print_json, say, usage_error
from roost.errors import RoostError

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command()
def screenshot(
    machine: MachineArg,
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="FILE", help="PNG, or JPEG by its name; - is stdout."
        ),
    ] = "screenshot.png",
    browser: Annotated[
        bool, typer.Option("--browser", help="Of the browser's page, where there is a screen, too.")
    ] = False,
    full_page: Annotated[
        bool, typer.Option("--full-page", help="Of the page at its full length.")
    ] = False,
    scale: Annotated[
        float, typer.Option(min=0.05, max=1.0, help="Of the screen: 0.5 is half of each side.")
    ] = 1.0,
    json: Json = False,
) -> None:
    """Save a picture of a machine's screen (template desktop), or of its browser's page (template browser)."""
    if output == "-" and sys.stdout.isatty():
        raise usage_error("a picture is nothing for a terminal: give a file to -o, or a pipe.")
    found = find(machine)
    kind = "jpeg" if output.lower().endswith((".jpg", ".jpeg")) else "png"
    from_browser = browser or full_page or kind == "jpeg"
    if not from_browser:
        try:
            data = found.computer.screenshot(scale=scale)
        except RoostError as failure:
            if failure.code != "UNSUPPORTED":
                raise
            from_browser = True  # it has no screen
    if from_browser:
        data = found.browser.screenshot(full_page=full_page, format=kind)
    if output == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
        return
    Path(output).write_bytes(data)
    if json:
        of = "browser" if from_browser else "screen"
        print_json({"machine_id": found.id, "path": output, "of": of, "bytes": len(data)})
    elif sys.stdout.isatty():
        note(f"{len(data)} bytes")
        say(output)
    else:
        say(output)
