"""Printing: tables for people, JSON for programs, errors for both."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roost.cli._inert import plain
from roost.errors import RoostError

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, and nothing else there.")]

HINTS = {
    "DAEMON_UNREACHABLE": "roost up",
    "AUTH_INVALID": "roost key show",
    "MACHINE_NOT_FOUND": "roost ls",
    "EXECUTION_NOT_FOUND": "roost ps MACHINE --all",
    "TERMINAL_NOT_FOUND": "roost shell MACHINE --list",
    "TEMPLATE_NOT_FOUND": "roost template ls",
    "KEY_NOT_FOUND": "roost key ls",
    "TENANT_NOT_FOUND": "roost tenant ls",
    "PORT_NOT_FOUND": "roost port ls MACHINE",
    "RUNG_UNAVAILABLE": "roost doctor",
    "RUNG_REFUSED": "roost doctor --contract",
    "RUNG_LOWER": "roost doctor --contract",
    "BROWSER_DOWN": "roost ps MACHINE --all",
    "DISPLAY_DOWN": "roost ps MACHINE --all",
    "KERNEL_DOWN": "roost ps MACHINE --all",
    "CAPACITY_EXCEEDED": "roost ls; then roost sleep MACHINE or roost rm MACHINE",
    "STORAGE_FULL": "roost ls; then roost rm MACHINE",
    "QUOTA_EXCEEDED": "roost ls; then roost rm MACHINE, or ask an admin for more (roost tenant set)",
    "AGENT_LOST": "roost logs MACHINE",
    "MACHINE_FAILED": "roost logs MACHINE",
    "BUILD_NOT_FOUND": "roost template ls",
    "DOCKERFILE_INVALID": "SPECIFICATION.md says what a Dockerfile may hold here",
    "INTERNAL": "roost logs --daemon",
}


def print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2, ensure_ascii=not _utf8(), default=str)
    sys.stdout.write("\n")


def say(text: str) -> None:
    """A line for people, on stdout."""
    print(plain(text))


def note(text: str) -> None:
    """A line for people that is no result, on stderr."""
    print(plain(text), file=sys.stderr, flush=True)


def browse(url: str) -> None:
    """Opens it in the browser of who sits there, if anybody does."""
    if sys.stdout.isatty():
        import webbrowser

        if not webbrowser.open(url):
            note("No browser opens here: open it where there is one.")


def fail(exc: RoostError) -> int:
    """The error as ``error:`` and ``hint:`` lines on stderr; the exit code."""
    note(f"error: {exc.message} [{exc.code}]")
    hint = exc.details.get("remedy") or HINTS.get(exc.code)
    if hint:
        note(f"hint: {hint}")
    return 1


def usage_error(message: str) -> typer.Exit:
    """To be raised: wrong usage, exit code 2."""
    note(f"error: {message}")
    return typer.Exit(2)


def console(stderr: bool = False) -> Console:
    """Reads no markup and no emoji codes: what is printed is what was meant."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=False)


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "") -> None:
    """Cells as text, whatever they hold. Whole columns also where stdout is no terminal."""
    lines = [[plain("-" if cell is None else cell) for cell in row] for row in rows]
    if not lines:
        if empty:
            note(empty)
        return
    if not sys.stdout.isatty():
        every = [list(headers), *lines]
        widths = [max(len(line[i]) for line in every) for i in range(len(headers))]
        for line in every:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            print("  ".join(cells).rstrip())
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for i, header in enumerate(headers):
        made.add_column(Text(header), no_wrap=i == 0, overflow="fold")
    for line in lines:
        made.add_row(*(Text(cell, style=_style(cell)) for cell in line))
    console().print(made)


def fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Name and value, one a line."""
    shown = [(name, plain("-" if value is None else value)) for name, value in pairs]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name.ljust(width)}  {value}")


def age(stamp: str | None) -> str:
    """How long ago, in the largest unit."""
    if not stamp:
        return "-"
    seconds = (datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"


def size(count: int | float | None) -> str:
    """Bytes for people."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _style(cell: str) -> str:
    return {"running": "green", "ready": "green", "yes": "green", "failed": "red", "no": "red"}.get(
        cell, ""
    )


def _utf8() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
