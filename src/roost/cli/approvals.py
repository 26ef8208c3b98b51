"""``roost approvals``, ``roost approve`` and ``roost deny``: commands that wait until somebody says yes."""

from __future__ import annotations

import json as jsons
import shlex
from typing import Annotated, Any

import typer

from roost.cli._connect import approvals_page, client, complete_machine, find
from roost.cli._inert import plain
from roost.cli._out import Json, age, browse, fields, note, print_json, say, table

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


def complete_approval(incomplete: str) -> list[str]:
    """What waits; silent where no daemon answers."""
    try:
        found = client().approvals()
    except Exception:  # a completion must never get in the way
        return []
    return [each["approval_id"] for each in found if each["approval_id"].startswith(incomplete)]


Id = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="As roost approvals shows it.", autocompletion=complete_approval
    ),
]
FAR = 20  # characters beyond ASCII that are told one by one
Note = Annotated[str | None, typer.Option(metavar="TEXT", help="Kept, and told to who asked.")]


@app.command()
def approvals(
    approval: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="All of this one.", autocompletion=complete_approval),
    ] = None,
    machine: Annotated[
        str | None,
        typer.Option("--machine", "-m", help="Of this machine.", autocompletion=complete_machine),
    ] = None,
    every: Annotated[bool, typer.Option("--all", "-a", help="Those decided too.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they come.")] = False,
    web: Annotated[
        bool, typer.Option("--web", help="The page for it instead: its URL, and a browser with it.")
    ] = False,
    json: Json = False,
) -> None:
    """Commands that wait for approval, newest first.

    With --follow and --json: an object a line.
    """
    if web:
        url = approvals_page()
        if json:
            print_json({"url": url})
            return
        say(url)
        browse(url)
        return
    if approval is not None:
        _show(client().approval(approval), json)
        return
    machine_id = None if machine is None else find(machine).id
    if follow:
        _follow(machine_id, json)
        return
    found = client().approvals(machine_id=machine_id, status="any" if every else "pending")
    if json:
        print_json({"items": found})
        return
    table(
        ["ID", "MACHINE", "COMMAND", "ASKED", "STATUS"],
        [
            (
                each["approval_id"],
                each["machine_id"],
                _command(each, 60),
                f"{age(each['created_at'])} ago",
                each["status"],
            )
            for each in found
        ],
        empty="Nothing waits for approval.",
    )


@app.command()
def approve(approval: Id, note: Note = None, json: Json = False) -> None:
    """Let a command run that waits for approval: once, exactly as it was asked for."""
    _said(client().approve(approval, note=note), json)


@app.command()
def deny(approval: Id, note: Note = None, json: Json = False) -> None:
    """Refuse a command that waits for approval."""
    _said(client().deny(approval, note=note), json)


def _said(approval: dict[str, Any], json: bool) -> None:
    print_json(approval) if json else note(f"{approval['status']}: {_command(approval, 200)}")


def _show(approval: dict[str, Any], json: bool) -> None:
    if json:
        print_json(approval)
        return
    asked, timeout = approval["asked"], approval["asked"]["timeout_ms"]
    program, *arguments = asked["command"]
    fields(
        [
            ("id", approval["approval_id"]),
            ("machine", approval["machine_id"]),
            ("status", approval["status"]),
            ("command", _quoted(program)),
            *(("argument", _quoted(each)) for each in arguments),
            ("directory", _quoted(asked["cwd"])),
            ("user", _quoted(asked["user"])),
            *(("env", _variable(name, value)) for name, value in asked["env"].items()),
            ("stdin", "(hidden)" if asked["stdin"] is None else _quoted(asked["stdin"] or None)),
            ("stdin bytes", asked["stdin_bytes"]),
            ("stdin later", "more may be written once it runs" if asked["stdin_stream"] else None),
            ("not ASCII", _far(asked)),
            ("timeout", None if timeout is None else f"{timeout} ms"),
            ("asked by", approval["asked_by"]),
            ("asked", approval["created_at"]),
            ("expires", approval["expires_at"]),
            ("decided", approval["decided_at"]),
            ("decided by", approval["decided_by"]),
            ("note", approval["note"]),
        ]
    )


def _follow(machine_id: str | None, json: bool) -> None:
    try:
        for each in client().follow_approvals(machine_id=machine_id):
            line = (
                jsons.dumps(each)
                if json
                else f"{each['approval_id']}  {each['machine_id']}  {each['status']}  {_command(each, 200)}"
            )
            print(line if json else plain(line), flush=True)
    except KeyboardInterrupt:
        return


def _quoted(text: str | None) -> str | None:
    """Whole, and nothing that could be taken for another text or another field."""
    return None if text is None else jsons.dumps(text, ensure_ascii=False)


def _variable(name: str, value: str | None) -> str:
    return f"{name} (hidden)" if value is None else f"{name}={_quoted(value)}"


def _far(asked: dict[str, Any]) -> str | None:
    """Letters of other alphabets can look like those of a program's name."""
    found = sorted(each for each in set(jsons.dumps(asked, ensure_ascii=False)) if each > "\x7f")
    if not found:
        return None
    more = f" and {len(found) - FAR} more" if len(found) > FAR else ""
    return " ".join(f"{each} (U+{ord(each):04X})" for each in found[:FAR]) + more


def _command(approval: dict[str, Any], most: int) -> str:
    text = shlex.join(approval["asked"]["command"])
    return text if len(text) <= most else text[: most - 3] + "..."
