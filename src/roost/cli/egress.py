"""``roost egress``: what a machine may reach and what it tried, and changing the one by the other."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roost.cli._connect import MachineArg, client, find
from roost.cli._egress import check_mode, complete_mode
from roost.cli._out import Json, age, note, print_json, say, table

if TYPE_CHECKING:
    from roost import Machine

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


def complete_suggested(ctx: typer.Context, incomplete: str) -> list[str]:
    """What the machine was refused."""
    return _of(ctx, incomplete, "suggested")


def complete_listed(ctx: typer.Context, incomplete: str) -> list[str]:
    return _of(ctx, incomplete, "allow")


def _of(ctx: typer.Context, incomplete: str, what: str) -> list[str]:
    """Silent where no daemon answers."""
    try:
        found = _report(find(str(ctx.params["machine"])))
    except Exception:  # a completion must never get in the way
        return []
    entries = found["suggested"]["allow"] if what == "suggested" else found["allow"]
    return [each for each in entries if each.startswith(incomplete)]


@app.command()
def egress(
    machine: MachineArg,
    mode: Annotated[
        str | None,
        typer.Option(help="open, allowlist or off.", autocompletion=complete_mode),
    ] = None,
    allow: Annotated[
        list[str],
        typer.Option(
            metavar="ENTRY",
            help="Add to the allowlist: python.example, *.mirror.example, 192.0.2.0/24:5432. Repeatable.",
            autocompletion=complete_suggested,
        ),
    ] = [],  # noqa: B006
    deny: Annotated[
        list[str],
        typer.Option(
            metavar="ENTRY", help="Take from it. Repeatable.", autocompletion=complete_listed
        ),
    ] = [],  # noqa: B006
    observe: Annotated[
        bool | None, typer.Option("--observe/--no-observe", help="List all that it tries.")
    ] = None,
    apply_suggested: Annotated[
        bool,
        typer.Option(
            "--apply-suggested",
            help="Let through what is suggested; what is open or off becomes an allowlist.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """What MACHINE may reach, what it tried, and what would have let that through.

    With options: change it, live; connections that are no longer allowed are cut.
    """
    check_mode(mode)
    found = find(machine)
    if apply_suggested:
        suggested = _report(found)["suggested"]["allow"]
        if not suggested and mode is None:
            note("Nothing is suggested: nothing changed.")
            apply_suggested = False
        else:
            allow, mode = [*allow, *suggested], mode or "allowlist"
    body: dict[str, Any] = {}
    if mode is not None:
        body["mode"] = mode
    if observe is not None:
        body["observe"] = observe
    if allow:
        body["add"] = allow
    if deny:
        body["remove"] = deny
    if body:
        _change(found, body, json)
        return
    report = _report(found)
    if json:
        print_json(report)
    else:
        _show(found, report)


def _report(machine: Machine) -> dict[str, Any]:
    found: dict[str, Any] = client().request("GET", f"/v1/machines/{machine.id}/egress").json()
    return found


def _change(machine: Machine, body: dict[str, Any], json: bool) -> None:
    path = f"/v1/machines/{machine.id}/egress"
    policy = client().request("PATCH", path, json=body).json()
    if json:
        print_json(policy)
        return
    _policy(policy)


def _policy(policy: dict[str, Any]) -> None:
    say(policy["mode"] + (", observed" if policy["observe"] else ""))
    if policy["mode"] == "allowlist" and not policy["allow"]:
        say("  nothing")
    for entry in policy["allow"]:
        say(f"  {entry}")


def _show(machine: Machine, report: dict[str, Any]) -> None:
    _policy(report)
    say("")
    rows = sorted(report["decisions"], key=lambda each: bool(each["allowed"]))
    table(
        ["TRIED", "PORT", "BY", "VERDICT", "TIMES", "LAST"],
        [
            (
                each["host"] or "(others)",
                f"{each['port']}/{each['protocol']}" if each["port"] else each["protocol"],
                each["via"],
                "allowed" if each["allowed"] else f"refused: {each['reason']}",
                each["count"],
                f"{age(each['last_at'])} ago",
            )
            for each in rows
        ],
        empty="Nothing was tried since it last started."
        + (
            "" if report["observe"] or report["mode"] != "open" else " (It is open: see --observe.)"
        ),
    )
    _suggest(machine, report)


def _suggest(machine: Machine, report: dict[str, Any]) -> None:
    suggested = report["suggested"]
    if not suggested["allow"]:
        return
    say("")
    say("These entries would have let it through:")
    for entry in suggested["allow"]:
        say(f"  {entry}")
    if suggested["left_out"]:
        say(f"  ... and {suggested['left_out']} more than a list may have")
    for each in suggested["wildcards"]:
        say(f"  or {each['entry']} instead of {len(each['instead_of'])} of them")
    command = ["roost", "egress", machine.id]
    if report["mode"] != "allowlist":
        command += ["--mode", "allowlist"]
    for entry in suggested["allow"]:
        command += ["--allow", entry]
    say("")
    say(f"Apply: {shlex.join(command)}")
    say(f"or:    roost egress {machine.id} --apply-suggested")
