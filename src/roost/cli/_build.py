"""A build as people see it: its steps as they go, and what it says."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roost.cli._inert import Inert, plain
from roost.cli._out import console, note, usage_error
from roost.errors import RoostError

if TYPE_CHECKING:
    from roost import Build

MAX_SECRET = 64 * 1024


def secrets(values: Sequence[str]) -> dict[str, str]:
    """``["id=x,src=FILE"]`` as values by id; without ``src`` the variable ``env``, else the one named like the id."""
    found = {}
    for value in values:
        parts = dict(part.partition("=")[::2] for part in value.split(","))
        parts.pop("type", None)
        name = parts.pop("id", "")
        source = parts.pop("src", None) or parts.pop("source", None)
        variable = parts.pop("env", None)
        if not name or parts:
            raise usage_error(f"--secret {value!r}: id=ID,src=FILE or id=ID,env=NAME")
        if source is None:
            variable = variable or name
            if variable not in os.environ:
                raise usage_error(
                    f"--secret {name}: there is no variable {variable}; name a file: src=FILE"
                )
            found[name] = os.environ[variable]
            continue
        try:
            with Path(source).expanduser().open("rb") as file:
                found[name] = file.read(MAX_SECRET + 1).decode()
        except UnicodeDecodeError as failure:
            raise usage_error(f"--secret {name}: {source} is no text") from failure
    return found


def credentials(file: Path | None) -> dict[str, dict[str, str]]:
    """By registry, of a file as `skopeo login`, `podman login` and `docker login` write it (containers-auth.json(5))."""
    if file is None:
        return {}
    found = {}
    try:
        for host, each in json.loads(file.expanduser().read_bytes())["auths"].items():
            if each.get("auth"):
                login = base64.b64decode(each["auth"], validate=True).decode()
                username, _, password = login.partition(":")
                found[host] = {"username": username, "password": password}
    except (ValueError, KeyError, TypeError, AttributeError) as failure:
        raise usage_error(
            f'--authfile {file}: no {{"auths": {{HOST: {{"auth": ...}}}}}}'
        ) from failure
    if not found:
        raise usage_error(f"--authfile {file}: no password is in it (a helper may keep it)")
    return found


def watch(
    names: Sequence[str],
    path: Path,
    file: Path | None,
    build_args: Mapping[str, str],
    given: Mapping[str, str],
    logins: Mapping[str, Mapping[str, str]],
    driver: str | None,
    no_cache: bool,
    keep_failed: bool,
    shown: str,
) -> dict[str, Any]:
    """Builds and shows it: "live", "plain" or "quiet"; the template. Interrupted, the build is cancelled."""
    from roost import Build

    made = Build.start(
        names[0],
        None if file is not None else path,
        dockerfile=file,
        context=path if file is not None else None,
        tags=names[1:],
        build_args=build_args,
        secrets=given,
        credentials=logins,
        driver=driver,
        no_cache=no_cache,
        keep_failed=keep_failed,
    )
    view = {"live": _live, "plain": _plain}.get(shown)
    try:
        if view is None:
            made.wait()
        else:
            view(made)
        return made.template().to_json()
    except KeyboardInterrupt:
        note("cancelling the build")
        made.cancel()
        raise
    except RoostError as failure:
        if shown != "plain":
            show_output(failure)
        if machine := failure.details.get("machine_id"):
            note(f"roost shell {machine}")
        raise


def show_output(failure: RoostError) -> None:
    """The last that the step said which failed."""
    if output := failure.details.get("output"):
        for line in ("--- the last it said", *str(output).splitlines(), "---"):
            note(line)


def _title(event: Mapping[str, Any]) -> str:
    return f"[{event['step']}/{event['steps']}] {event['instruction']}"


def _plain(made: Build) -> None:
    """Everything, as it comes."""
    inert = Inert() if sys.stderr.isatty() else None
    at_start = True
    for event in made.events():
        if event["event"] == "log":
            sys.stderr.write(inert.feed(event["text"]) if inert else event["text"])
            at_start = event["text"].endswith("\n")
        elif event["event"] == "step":
            if not at_start:
                sys.stderr.write("\n")
                at_start = True
            if "instruction" in event:
                cached = " (cached)" if event["status"] == "cached" else ""
                note(f"{_title(event)}{cached}")
            elif event.get("duration_ms", 0) >= 100:
                note(f"[{event['step']}] done in {event['duration_ms'] / 1000:.1f} s")
        sys.stderr.flush()


def _live(made: Build) -> None:
    """A line a step, and below them what the step under way says."""
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.table import Table
    from rich.text import Text

    screen = console(stderr=True)
    title, said, begun = "waiting", "", time.monotonic()

    def picture() -> Table:
        grid = Table.grid(padding=(0, 1))
        passed = f"{time.monotonic() - begun:.0f} s"
        grid.add_row(
            Spinner("dots"), Text(title[:100], overflow="ellipsis", no_wrap=True), Text(passed)
        )
        if said:
            grid.add_row("", Text(said[-200:], style="dim", overflow="ellipsis", no_wrap=True), "")
        return grid

    with Live(get_renderable=picture, console=screen, transient=True, refresh_per_second=5) as live:
        for event in made.events():
            if event["event"] == "log":
                lines = [line for line in _last(event["text"]) if line.strip()]
                said = plain(lines[-1]) if lines else said
            elif event["event"] == "step" and "instruction" in event:
                title, said, begun = plain(_title(event)), "", time.monotonic()
                if event["status"] != "running":
                    live.console.print(f"{event['status']:>8}  {title[:150]}")
            elif event["event"] == "step":
                took = event.get("duration_ms", 0) / 1000
                live.console.print(f"{took:>6.1f} s  {title[:150]}")


def _last(text: str) -> Iterator[str]:
    with contextlib.suppress(IndexError):
        yield text.replace("\r", "\n").rstrip("\n").rsplit("\n", 1)[-1]
