"""``roost tools``: which programs may be run in a machine, and changing it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from roost.cli._connect import MachineArg, find
from roost.cli._out import Json, note, print_json, say
from roost.cli._tools import RULE, check_mode, complete_mode, rule, shown

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)

_REST = {
    "off": "off: every program may be run",
    "ask": "ask: what is not listed waits for approval (roost approvals)",
    "deny": "deny: what is not listed is refused",
}


def complete_listed(ctx: typer.Context, incomplete: str) -> list[str]:
    """Silent where no daemon answers."""
    try:
        found = find(str(ctx.params["machine"])).tools["allow"]
    except Exception:  # a completion must never get in the way
        return []
    return [text for text in map(shown, found) if text.startswith(incomplete)]


@app.command()
def tools(
    machine: MachineArg,
    mode: Annotated[
        str | None,
        typer.Option(help="off (drops the list), ask or deny.", autocompletion=complete_mode),
    ] = None,
    allow: Annotated[list[str], typer.Option(metavar="CALL", help=f"Add. {RULE}")] = [],  # noqa: B006
    remove: Annotated[
        list[str],
        typer.Option(
            metavar="CALL",
            help="Take from the list, written as it is shown. Repeatable.",
            autocompletion=complete_listed,
        ),
    ] = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Which programs may be run in MACHINE, and what becomes of the rest.

    With options: change it, for what is begun from then on. It guards against mistakes, it does not contain: who may
    write files may write over a program that is listed.
    """
    check_mode(mode)
    found = find(machine)
    if mode is not None or allow or remove:
        found.set_tools(*_changed(found.tools, mode, allow, remove), if_revision=found.revision)
    if json:
        print_json(found.tools)
        return
    say(_REST[found.tools["mode"]])
    for each in found.tools["allow"]:
        say(f"  {shown(each)}")


def _changed(
    now: dict[str, Any], mode: str | None, allow: list[str], remove: list[str]
) -> tuple[str, list[dict[str, Any]]]:
    rules = list(now["allow"])
    for text in remove:
        gone = [each for each in rules if text == shown(each) or _same(each, rule(text))]
        if not gone:
            note(f"{text!r} is not on the list.")
        rules = [each for each in rules if each not in gone]
    rules += [each for each in map(rule, allow) if not any(_same(each, has) for has in rules)]
    if mode is None:
        mode = "ask" if allow and now["mode"] == "off" else now["mode"]
    return mode, [] if mode == "off" else rules


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    if one.get("args") != other.get("args"):  # none, and any, are two
        return False
    names = ("program", "env", "users")
    return all((one.get(name) or None) == (other.get(name) or None) for name in names)
