"""``roost logs``: a machine's life, or the daemon's log file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from roost.cli._connect import complete_machine, find
from roost.cli._inert import plain
from roost.cli._out import Json, print_json, table, usage_error
from roost.cli.exec import show_said
from roost.client._config import data_dir
from roost.errors import error

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command()
def logs(
    machine: Annotated[
        str | None, typer.Argument(metavar="[MACHINE]", autocompletion=complete_machine)
    ] = None,
    execution: Annotated[
        str | None,
        typer.Argument(
            metavar="[EXECUTION]",
            help="What this one said: its id, or start for what the template starts.",
            autocompletion=lambda: ["start"],
        ),
    ] = None,
    daemon: Annotated[bool, typer.Option("--daemon", help="The daemon's own log.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="The last so many.")] = 100,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as it comes (EXECUTION, --daemon).")
    ] = False,
    json: Json = False,
) -> None:
    """A machine's life (transitions, failures), what one of its executions said, or the daemon's log."""
    if (machine is None) != daemon:
        raise usage_error("name a machine, or --daemon.")
    if daemon:
        _daemon(data_dir() / "logs" / "daemon.log", lines, follow, json)
        return
    if execution is not None:
        show_said(find(machine or "").executions.get(execution), follow, json)
        return
    items = find(machine or "").logs()[-lines:] if lines else []
    if json:
        print_json({"items": items})
        return
    table(
        ["TIME", "EVENT", "MESSAGE"],
        [(i.get("at"), i.get("event"), i.get("message")) for i in items],
        empty="Nothing yet.",
    )


def _daemon(path: Path, lines: int, follow: bool, json: bool) -> None:
    if not path.exists():
        raise error("NOT_FOUND", f"There is no log at {path}. Start the daemon: roost up")
    if json:
        print_json({"path": str(path), "lines": tail(path, lines)})
        return
    for line in tail(path, lines):
        print(plain(line))
    if not follow:
        return
    with open(path, errors="replace") as log:
        log.seek(0, 2)
        try:
            while True:
                if line := log.readline():
                    print(plain(line.rstrip("\n")), flush=True)
                else:
                    time.sleep(0.2)
        except KeyboardInterrupt:
            return


def tail(path: Path, lines: int, limit: int = 1 << 20) -> list[str]:
    """The last lines of a file, read from its last ``limit`` bytes."""
    if lines <= 0:
        return []
    with open(path, "rb") as file:
        end = file.seek(0, 2)
        file.seek(max(0, end - limit))
        text = file.read(limit).decode("utf-8", "replace")
    return text.splitlines()[-lines:]
