"""Options that say which programs may be run in a machine, and how a rule is written on a command line."""

from __future__ import annotations

import json
import shlex
from typing import Annotated, Any

import typer

from roost.cli._out import usage_error

MODES = ["off", "ask", "deny"]
RULE = (
    "As called: git (any arguments), 'git status ...', 'cat src/**'; '...' last is any more arguments. Or a rule in JSON:"
    ' {"program": "git", "args": []} is git without any; env and users are said there. Repeatable.'
)


def complete_mode() -> list[str]:
    return MODES


ToolMode = Annotated[
    str | None,
    typer.Option(
        "--tools",
        metavar="MODE",
        help="What becomes of programs not on its list: off (all may run), ask, deny.",
        autocompletion=complete_mode,
    ),
]
AllowTool = Annotated[list[str], typer.Option("--allow-tool", metavar="CALL", help=RULE)]


def asked(mode: str | None, allow: list[str]) -> str | dict[str, Any] | None:
    """As ``Machine.create(tools=...)`` takes it; ``--allow-tool`` alone is ask."""
    check_mode(mode)
    if not allow:
        return mode
    body: dict[str, Any] = {"allow": [rule(each) for each in allow]}
    return body if mode is None else {"mode": mode, **body}


def check_mode(mode: str | None) -> None:
    if mode is not None and mode not in MODES:
        raise usage_error(f"{mode!r} is none of {', '.join(MODES)}.")


def rule(text: str) -> dict[str, Any]:
    """``git`` with any arguments, ``git status`` with that one, ``git status ...`` with that and any more."""
    if text.lstrip().startswith("{"):
        try:
            return dict(json.loads(text))
        except ValueError as failure:
            raise usage_error(f"this is no JSON: {text}") from failure
    try:
        words = shlex.split(text)
    except ValueError as failure:
        raise usage_error(f"{text!r}: {failure}.") from failure
    if not words:
        raise usage_error("name a program.")
    return {"program": words[0], "args": words[1:] or None}


def shown(rule: dict[str, Any]) -> str:
    """As ``rule`` reads it, with what a line cannot say behind."""
    args = rule["args"]
    text = shlex.quote(rule["program"])
    if args == []:
        text += " (no arguments)"
    for each in args or ():
        text += " " + (each if each == "..." else shlex.quote(each))
    for name in ("env", "users"):
        if rule.get(name):
            text += f"  {name}: {', '.join(rule[name])}"
    return text
