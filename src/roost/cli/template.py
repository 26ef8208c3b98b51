"""``roost template``: ls, show, build."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from roost.cli._connect import client
from roost.cli._inert import plain
from roost.cli._out import Json, age, console, fields, note, print_json, say, size, table

app = typer.Typer(
    name="template",
    help="Templates machines start from: ls, show, build.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Name = Annotated[str, typer.Argument(metavar="NAME")]


@app.command("ls")
def list_(json: Json = False) -> None:
    """List templates."""
    found = client().templates()
    if json:
        print_json({"items": found})
        return
    table(
        ["NAME", "STATUS", "SIZE", "DIGEST", "UPDATED"],
        [
            (
                t["name"],
                t["status"],
                size(t.get("size_bytes")),
                (t.get("digest") or "-")[:19],
                age(t.get("updated_at")),
            )
            for t in found
        ],
    )


@app.command()
def show(name: Name, json: Json = False) -> None:
    """Everything about one template."""
    found = client().template(name)
    if json:
        print_json(found)
        return
    fields((key, value) for key, value in found.items() if key != "config")
    fields((f"config.{key}", value) for key, value in (found.get("config") or {}).items())


@app.command()
def build(
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Also where it is ready.")] = False,
    json: Json = False,
) -> None:
    """Build a shipped recipe."""
    made = follow(client().build_template(name, force=force), f"template {name}", quiet=json)
    if json:
        print_json(made)
    else:
        say(f"{made.get('name', name)} {made.get('status')} {made.get('digest') or ''}".rstrip())


def follow(events: Iterable[dict[str, Any]], title: str, *, quiet: bool = False) -> dict[str, Any]:
    """Shows the progress of a build on stderr; the template at its end."""
    if quiet or not sys.stderr.isatty():
        return _lines(events, title, quiet)
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[message]}", markup=False),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=100, message="")
        for event in events:
            if "template" in event:
                return dict(event["template"])
            bar.update(
                task,
                completed=event.get("percent"),
                total=100 if event.get("percent") is not None else None,
                description=f"{title}: {plain(event.get('stage') or '')}",
                message=plain(event.get("message") or "")[-60:],
            )
    return {}


def _lines(events: Iterable[dict[str, Any]], title: str, quiet: bool) -> dict[str, Any]:
    stage = None
    for event in events:
        if "template" in event:
            return dict(event["template"])
        if not quiet and event.get("stage") != stage:
            stage = event.get("stage")
            note(f"{title}: {stage} {event.get('message') or ''}".rstrip())
    return {}
