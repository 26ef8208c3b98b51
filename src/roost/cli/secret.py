"""``roost secret``: set, ls, rm. A value comes from standard input, a variable or a file, never from an argument, which
every user of a host can read."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from roost.cli._connect import MachineArg, find
from roost.cli._out import Json, age, print_json, say, table
from roost.errors import error

app = typer.Typer(
    name="secret",
    help="What a machine's requests carry and it never sees: set, ls, rm.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits and _.")]


@app.command("set")
def set_(
    machine: MachineArg,
    name: Name,
    host: Annotated[
        list[str],
        typer.Option(
            "--host",
            metavar="HOST[:PORT]",
            help="Where it may go: a name or *.NAME; repeat for more.",
        ),
    ] = [],  # noqa: B006
    header: Annotated[
        str | None, typer.Option(metavar="HEADER", help="That carries it, e.g. Authorization.")
    ] = None,
    format: Annotated[
        str | None, typer.Option(metavar="TEXT", help='Of the header, e.g. "Bearer {value}".')
    ] = None,
    placeholder: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Instead of a header: what the machine's programs send in its place. Without either one is made and"
            " put into their environment as NAME.",
        ),
    ] = None,
    body: Annotated[
        bool | None,
        typer.Option("--body/--no-body", help="Look for the placeholder in bodies, too."),
    ] = None,
    stdin: Annotated[
        bool, typer.Option("--stdin", help="Read the value from standard input.")
    ] = False,
    from_env: Annotated[
        str | None, typer.Option("--from-env", metavar="NAME", help="Take it from this variable.")
    ] = None,
    from_file: Annotated[
        Path | None, typer.Option("--from-file", metavar="FILE", help="Read it from this file.")
    ] = None,
    json: Json = False,
) -> None:
    """Make or change a secret, from the machine's next request on; what is not named stays."""
    value = _value(stdin, from_env, from_file)
    made = find(machine).set_secret(
        name,
        value,
        hosts=host or None,
        header=header,
        format=format,
        placeholder=placeholder,
        in_body=body,
    )
    if json:
        print_json(made)
    else:
        say(made["placeholder"] or made["name"])


@app.command("list", hidden=True)
@app.command("ls")
def list_(machine: MachineArg, json: Json = False) -> None:
    """List a machine's secrets; their values are shown to nobody."""
    found = find(machine).secrets()
    if json:
        print_json({"items": found})
        return
    rows = [(s["name"], " ".join(s["hosts"]), _how(s), age(s["updated_at"])) for s in found]
    table(["NAME", "HOSTS", "BY", "CHANGED"], rows)


@app.command()
def rm(machine: MachineArg, name: Name, json: Json = False) -> None:
    """Take a secret away: no request carries it any more."""
    find(machine).delete_secret(name)
    if json:
        print_json({"name": name, "deleted": True})
    else:
        say(name)


def _how(secret: dict[str, object]) -> str:
    if secret["header"] is not None:
        return f"{secret['header']}: {secret['format']}"
    return f"{secret['placeholder']}{' (bodies too)' if secret['in_body'] else ''}"


def _value(stdin: bool, from_env: str | None, from_file: Path | None) -> str | None:
    """None where none was named. One line feed at its end is no part of it."""
    if (stdin, from_env is not None, from_file is not None).count(True) > 1:
        raise error("VALIDATION_FAILED", "--stdin, --from-env and --from-file exclude each other.")
    if stdin:
        return sys.stdin.read(65536).removesuffix("\n")
    if from_env is not None:
        if from_env not in os.environ:
            raise error("VALIDATION_FAILED", f"There is no variable {from_env} here.")
        return os.environ[from_env]
    if from_file is not None:
        try:
            return from_file.read_text().removesuffix("\n")
        except (OSError, UnicodeDecodeError) as failure:
            raise error("VALIDATION_FAILED", f"{from_file} cannot be read: {failure}") from failure
    return None
