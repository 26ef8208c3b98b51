"""``roost template export`` and ``import``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from roost.cli._connect import client
from roost.cli._out import Json, note, print_json, say, size
from roost.cli._transfer import Output, Source, progress, to_stdout


def _complete(incomplete: str) -> list[str]:
    from roost.cli.template import complete_template

    return complete_template(incomplete)


Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="NAME, NAME:TAG, a digest or an id.", autocompletion=_complete
    ),
]


def export(name: Name, output: Output, json: Json = False) -> None:
    """Write template NAME to one file: an OCI image (oci-archive) that any rung, and other tools, can use."""
    from roost import Template

    found = Template.get(name, client=client())
    with progress(f"export {name}") as heard:
        if output == "-":
            to_stdout(found.read(), heard)
            return
        count = found.export(output, progress=heard)
    if json:
        print_json({"file": output, "bytes": count, "template_id": found.id})
    else:
        note(f"{output}: {size(count)}")


def import_(
    file: Source,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="NAME or NAME:TAG; without it the file's.")
    ] = None,
    json: Json = False,
) -> None:
    """Make a template of a FILE that `export` wrote, or of any image as a tar (oci-archive, docker save).

    It is unpacked inside a machine: nobody need be trusted."""
    from roost import Template

    def told(event: dict[str, Any]) -> None:
        if event.get("event") == "log" and event.get("stream") == "note":
            note(str(event.get("text", "")).rstrip("\n"))

    with progress(f"import {file.name}", file.stat().st_size) as heard:
        made = Template.load(
            file,
            name or file.name.partition(".")[0].lower(),
            on_log=None if json else told,
            progress=heard,
            client=client(),
        )
    if json:
        print_json(made.to_json())
    else:
        say(f"{', '.join(made.tags) or made.id} {made.digest or ''}".rstrip())
