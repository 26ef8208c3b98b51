"""``roost computer``: mouse, keyboard, windows and clipboard of a machine with a screen."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from roost.cli._connect import MachineArg, find
from roost.cli._out import Json, print_json, say, table, usage_error

app = typer.Typer(
    help="Mouse, keyboard, windows and clipboard of a machine with a screen.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

X = Annotated[float, typer.Argument(metavar="X", help="Pixels from the left.")]
Y = Annotated[float, typer.Argument(metavar="Y", help="Pixels from the top.")]
ButtonOption = Annotated[str, typer.Option("--button", "-b", help="left, middle or right.")]
Modifiers = Annotated[
    str | None, typer.Option("--modifiers", metavar="KEYS", help="Held meanwhile: ctrl+shift.")
]


@app.command()
def size(machine: MachineArg, json: Json = False) -> None:
    """Print the screen's size and where the pointer is."""
    computer = find(machine).computer
    (width, height), (x, y) = computer.size(), computer.cursor()
    if json:
        print_json({"width": width, "height": height, "x": x, "y": y})
    else:
        say(f"{width}x{height}, pointer at {x},{y}")


@app.command()
def move(machine: MachineArg, x: X, y: Y) -> None:
    """Move the pointer."""
    find(machine).computer.move(x, y)


@app.command()
def click(
    machine: MachineArg,
    x: Annotated[float | None, typer.Argument(metavar="X", help="Default: at the pointer.")] = None,
    y: Annotated[float | None, typer.Argument(metavar="Y")] = None,
    button: ButtonOption = "left",
    double: Annotated[bool, typer.Option("--double", help="Twice.")] = False,
    modifiers: Modifiers = None,
) -> None:
    """Click."""
    find(machine).computer.click(x, y, button=button, count=2 if double else 1, modifiers=modifiers)


@app.command()
def drag(
    machine: MachineArg,
    x: X,
    y: Y,
    to_x: Annotated[float, typer.Argument(metavar="TO_X")],
    to_y: Annotated[float, typer.Argument(metavar="TO_Y")],
    button: ButtonOption = "left",
) -> None:
    """Drag from one place to another."""
    find(machine).computer.drag(x, y, to_x, to_y, button=button)


@app.command()
def scroll(
    machine: MachineArg,
    dy: Annotated[
        int,
        typer.Argument(metavar="CLICKS", min=-100, max=100, help="Of the wheel; down is positive."),
    ],
    x: Annotated[float | None, typer.Option("--x", help="Default: at the pointer.")] = None,
    y: Annotated[float | None, typer.Option("--y")] = None,
) -> None:
    """Turn the wheel. Up is negative: roost computer scroll MACHINE -- -3."""
    find(machine).computer.scroll(x, y, dy=dy)


@app.command("type")
def type_(
    machine: MachineArg,
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="Default: what stdin has.")
    ] = None,
) -> None:
    """Type text into what has the focus."""
    if text is None:
        if sys.stdin.isatty():
            raise usage_error("give a text, or one on stdin.")
        text = sys.stdin.read()
    find(machine).computer.type(text)


@app.command()
def key(
    machine: MachineArg,
    keys: Annotated[list[str], typer.Argument(metavar="KEYS...", help="ctrl+shift+t, Return.")],
) -> None:
    """Press keys and chords, one after the other."""
    find(machine).computer.key(" ".join(keys))


@app.command()
def windows(machine: MachineArg, json: Json = False) -> None:
    """List windows, the topmost last."""
    found = find(machine).computer.windows()
    if json:
        names = ("id", "title", "x", "y", "width", "height", "focused")
        print_json({"items": [{name: getattr(w, name) for name in names} for w in found]})
        return
    table(
        ["WINDOW", "TITLE", "PLACE", "SIZE", "FOCUSED"],
        [
            (w.id, w.title, f"{w.x},{w.y}", f"{w.width}x{w.height}", "yes" if w.focused else "")
            for w in found
        ],
        empty="no windows",
    )


@app.command()
def focus(
    machine: MachineArg, window: Annotated[int, typer.Argument(metavar="WINDOW", min=0)]
) -> None:
    """Raise a window and give it the keyboard."""
    find(machine).computer.focus(window)


@app.command()
def clipboard(
    machine: MachineArg,
    text: Annotated[
        str | None, typer.Option("--set", metavar="TEXT", help="Put this there; - is stdin.")
    ] = None,
    json: Json = False,
) -> None:
    """Print the clipboard's text, or set it."""
    computer = find(machine).computer
    if text is not None:
        computer.set_clipboard(sys.stdin.read() if text == "-" else text)
        return
    found = computer.clipboard()
    if json:
        print_json({"text": found})
        return
    for line in found.splitlines():
        say(line)
