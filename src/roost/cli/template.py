"""``roost template``: ls, show, build, tag, rm, gc, export, import."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from roost.cli import _template_file
from roost.cli._build import credentials, secrets, show_output, watch
from roost.cli._connect import client, pairs
from roost.cli._inert import plain
from roost.cli._ladder import complete_container
from roost.cli._out import (
    Json,
    age,
    console,
    fields,
    note,
    print_json,
    say,
    size,
    table,
    usage_error,
)
from roost.errors import RoostError

app = typer.Typer(
    name="template",
    help="Templates machines start from: ls, show, build, tag, rm, gc, export, import.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def complete_template(incomplete: str) -> list[str]:
    """Names, silent where no daemon answers."""
    try:
        found = client().templates()
    except Exception:  # a completion must never get in the way
        return []
    names = [tag.removesuffix(":latest") for each in found for tag in each["tags"]]
    return [name for name in names if name.startswith(incomplete)]


Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="NAME, NAME:TAG, NAME@DIGEST or id.",
        autocompletion=complete_template,
    ),
]


@app.command("ls")
def list_(
    unnamed: Annotated[
        bool, typer.Option("--all", "-a", help="Also those that have lost their names.")
    ] = False,
    json: Json = False,
) -> None:
    """List templates."""
    from roost import Template

    found = [each.to_json() for each in Template.list(unnamed=unnamed)]
    if json:
        print_json({"items": found})
        return
    table(
        ["NAME", "STATUS", "SIZE", "DIGEST", "UPDATED"],
        [
            (
                ", ".join(tag.removesuffix(":latest") for tag in t["tags"]) or "-",
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
    fields(
        (key, ", ".join(value) if key == "tags" else value)
        for key, value in found.items()
        if key != "config"
    )
    fields((f"config.{key}", value) for key, value in (found.get("config") or {}).items())


@app.command()
def tag(
    name: Name,
    other: Annotated[str, typer.Argument(metavar="OTHER", help="NAME or NAME:TAG; it moves here.")],
    json: Json = False,
) -> None:
    """Another name of a template."""
    from roost import Template

    made = Template.get(name).tag(other)
    if json:
        print_json(made.to_json())
    else:
        say(f"{other} is {made.digest}")


@app.command()
def rm(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", autocompletion=complete_template)
    ],
    json: Json = False,
) -> None:
    """Take names away; with its last name a template goes, unless something still needs it."""
    from roost.client._wire import segment

    done = []
    for name in names:
        answer = client().request("DELETE", f"/v1/templates/{segment(name)}").json()
        done.append({"name": name, **answer})
        if not json:
            say(f"{name} {'deleted' if answer['deleted'] else 'is not its name any more'}")
    if json:
        print_json(done)


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    older_than: Annotated[
        str,
        typer.Option("--older-than", metavar="TIME", help="Not used for so long: 0, 90s, 2h, 7d."),
    ] = "1d",
    json: Json = False,
) -> None:
    """Delete what builds left: templates without a name that nothing needs, layers, logs."""
    done = client().collect_templates(older_than=_seconds(older_than), dry_run=dry_run)
    if json:
        print_json(done)
        return
    would = "would go" if dry_run else "gone"
    say(
        f"{would}: {len(done['templates'])} templates, {done['layers']} layers ({size(done['bytes'])}), "
        f"{done['builds']} builds"
    )


def _seconds(text: str) -> int:
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    if not number.isdecimal():
        raise usage_error(f"{text!r} is no time: 0, 90s, 30m, 2h, 7d")
    return int(number) * units[unit]


@app.command()
def build(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="What it is called (NAME or NAME:TAG), or a shipped recipe.",
            autocompletion=complete_template,
        ),
    ] = None,
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PATH]", help="The directory with the Dockerfile and what it copies (.)."
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", metavar="FILE", help="The Dockerfile, if it is elsewhere."),
    ] = None,
    tags: Annotated[
        list[str] | None, typer.Option("--tag", "-t", metavar="NAME[:TAG]", help="A further name.")
    ] = None,
    build_arg: Annotated[
        list[str] | None,
        typer.Option("--build-arg", metavar="NAME=VALUE", help="For an ARG."),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            "--secret",
            metavar="id=ID,src=FILE",
            help="For RUN --mount=type=secret; or id=ID,env=NAME.",
        ),
    ] = None,
    authfile: Annotated[
        Path | None,
        typer.Option(
            "--authfile",
            metavar="FILE",
            help="Passwords of registries, as skopeo login --authfile FILE writes it.",
        ),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Run every step, also what did not change.")
    ] = False,
    driver: Annotated[
        str | None,
        typer.Option(
            "--driver",
            help="Of the machine it is built in (a container's).",
            autocompletion=complete_container,
        ),
    ] = None,
    keep_failed: Annotated[
        bool, typer.Option("--keep-failed", help="Keep the machine of a step that fails.")
    ] = False,
    plain_: Annotated[
        bool, typer.Option("--plain", help="The whole log as text, also on a terminal.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Of a shipped recipe: also where it is ready.")
    ] = False,
    json: Json = False,
) -> None:
    """Build a Dockerfile to a template, or a shipped recipe."""
    named = list(tags or [])
    if name is not None and path is None and _is_place(name, named):
        path, name = Path(name), None
    elsewhere = path is not None or file is not None or build_arg or secret or authfile or tags
    if name is not None and not elsewhere and (force or _shipped(name)):
        if keep_failed:
            raise usage_error(
                "--keep-failed: a shipped recipe is nobody's, and so is its machine; "
                "build a copy of it: roost template build -t NAME PATH"
            )
        made = follow(
            client().build_template(name, force=force or no_cache, driver=driver),
            f"template {name}",
            quiet=json,
            lines=plain_,
        )
    else:
        if name is not None:
            named.insert(0, name)
        if not named:
            raise usage_error("say what it is called: roost template build NAME [PATH], or -t NAME")
        made = watch(
            named,
            path if path is not None else Path.cwd(),
            file,
            pairs(build_arg or [], "--build-arg"),
            secrets(secret or []),
            credentials(authfile),
            driver,
            no_cache,
            keep_failed,
            shown="quiet" if json else "plain" if plain_ or not sys.stderr.isatty() else "live",
        )
    if json:
        print_json(made)
    else:
        say(f"{made.get('name', name)} {made.get('status')} {made.get('digest') or ''}".rstrip())


def _is_place(text: str, named: list[str]) -> bool:
    """Whether what stands first is a path, since names come by ``-t``."""
    return text in (".", "..") or "/" in text or (bool(named) and Path(text).is_dir())


def _shipped(name: str) -> bool:
    try:
        return bool(client().template(name).get("shipped"))
    except RoostError as failure:
        if failure.status not in (404, 422):
            raise
        return False


def follow(
    events: Iterable[dict[str, Any]], title: str, *, quiet: bool = False, lines: bool = False
) -> dict[str, Any]:
    """Shows the progress of a build on stderr; the template at its end."""
    try:
        if quiet or lines or not sys.stderr.isatty():
            return _lines(events, title, quiet)
        return _bar(events, title)
    except RoostError as failure:
        show_output(failure)
        raise


def _bar(events: Iterable[dict[str, Any]], title: str) -> dict[str, Any]:
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


app.command("export")(_template_file.export)
app.command("import")(_template_file.import_)
