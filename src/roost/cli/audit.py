"""``roost audit``: who changed what."""

from __future__ import annotations

import json as jsons
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from roost.cli._connect import ID, client, complete_machine, find
from roost.cli._inert import plain
from roost.cli._out import Json, print_json, table
from roost.cli.key import complete_key
from roost.units import parse_duration

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)

_HEADERS = ["TIME", "TENANT", "KEY", "ACTION", "MACHINE", "STATUS", "FROM"]


@app.command()
def audit(
    machine: Annotated[
        str | None,
        typer.Option(
            help="What was done to this machine (an id also of one that is gone).",
            autocompletion=complete_machine,
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="What this key did: its id.", autocompletion=complete_key)
    ] = None,
    action: Annotated[
        str | None, typer.Option(help="Of this kind only: machines_create, ...")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="AGO", help="Not older: 30m, 2h, 7d.")
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="The last so many.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as entries come.")] = False,
    json: Json = False,
) -> None:
    """Who changed what, when, from where, and how that ended; oldest first. Admins see all tenants.

    With --follow and --json: an object a line.
    """
    wanted: dict[str, Any] = {"key_id": key, "action": action}
    if machine is not None:
        wanted["machine_id"] = machine if ID.fullmatch(machine) else find(machine).id
    ago = parse_duration(since)
    begin = None if ago is None else datetime.now(UTC) - timedelta(seconds=ago)
    found = client().audit(**wanted, since=begin, limit=max(1, lines))
    entries = list(reversed(found))[-lines:] if lines else []
    if not follow:
        if json:
            print_json({"items": entries})
        else:
            table(_HEADERS, [_row(each) for each in entries], empty="Nothing yet.")
        return
    for each in entries:
        _line(each, json)
    try:
        for each in client().follow_audit(**wanted, after=found[0]["id"] if found else None):
            _line(each, json)
    except KeyboardInterrupt:
        return


def _line(entry: dict[str, Any], json: bool) -> None:
    if json:
        print(jsons.dumps(entry), flush=True)
    else:
        print(plain("  ".join(str(cell or "-") for cell in _row(entry))), flush=True)


def _row(entry: dict[str, Any]) -> tuple[Any, ...]:
    outcome = str(entry["status"])
    if entry.get("error_code"):
        outcome += f" {entry['error_code']}"
    return (
        entry["at"],
        entry["tenant_id"],
        f"{entry['key_id']} ({entry['role']})",
        entry["action"],
        entry.get("machine_id"),
        outcome,
        entry.get("peer"),
    )
