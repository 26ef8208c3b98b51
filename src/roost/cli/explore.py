"""``roost explore``: best of N; and ``roost promote``: one machine in another's place."""

from __future__ import annotations

import contextlib
import shlex
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roost.cli._connect import MachineArg, complete_machine, find
from roost.cli._inert import plain
from roost.cli._ladder import RUNGS, complete_driver
from roost.cli._out import Json, console, note, print_json, say, table, usage_error

if TYPE_CHECKING:
    from roost import Attempt, ExecResult, Explored, Machine

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)

HOLE = "{strategy}"
KEEP = ("winner", "all", "none")


@app.command()
def explore(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE", help="Id, start of an id, key or name.", autocompletion=complete_machine
        ),
    ],
    run: Annotated[
        str,
        typer.Option(
            "--run",
            metavar="SCRIPT",
            help="Run in each child under /bin/sh -c; {strategy} is the strategy, quoted, as is $ROOST_STRATEGY.",
        ),
    ],
    strategy: Annotated[
        list[str], typer.Option("--strategy", "-s", help="Repeatable; a child each.")
    ] = [],  # noqa: B006
    strategies_file: Annotated[
        Path | None,
        typer.Option("--strategies-file", "-f", help="One a line; - is stdin.", allow_dash=True),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            "--score",
            metavar="SCRIPT",
            help="Run after that; the number in its last line counts, higher is better. Default: exit code 0, then the"
            " shortest.",
        ),
    ] = None,
    parallel: Annotated[
        int | None, typer.Option("--parallel", "-n", min=1, help="Children at once. Default: all.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=0.001, metavar="SECONDS", help="Of each child; then it cannot win."),
    ] = None,
    keep: Annotated[
        str,
        typer.Option(help="winner, all or none of the children.", autocompletion=lambda: [*KEEP]),
    ] = "winner",
    promote: Annotated[
        bool,
        typer.Option(
            "--promote/--no-promote",
            help="The winner takes BASE's key, name and ports; BASE is destroyed.",
        ),
    ] = True,
    keep_base: Annotated[
        bool, typer.Option("--keep-base", help="BASE lives on, without those.")
    ] = False,
    diff: Annotated[
        bool, typer.Option("--diff/--no-diff", help="Compare files with BASE's.")
    ] = True,
    secrets: Annotated[
        bool, typer.Option("--secrets", help="BASE's secrets are the children's, too.")
    ] = False,
    json: Json = False,
) -> None:
    """Fork BASE for each strategy, run a script in each, keep the best in BASE's place.

    Ctrl-C destroys what was made. Exit code 1 where nothing could win; BASE is then as it was.
    """
    if keep not in KEEP:
        raise usage_error(f"--keep is one of {', '.join(KEEP)}.")
    strategies = [*strategy, *_listed(strategies_file)]
    if not strategies:
        raise usage_error("give --strategy, or a --strategies-file.")
    machine = find(base)
    of: dict[str, str] = {}  # a child's strategy

    def run_one(child: Machine, each: str) -> ExecResult:
        of[child.id] = each
        return _run(child, run, each)

    with _shown(len(strategies), json) as on_change:
        found = machine.explore(
            strategies,
            run_one,
            None if score is None else lambda child, _: _scored(_run(child, score, of[child.id])),
            parallel=parallel,
            timeout=timeout,
            keep=keep,
            promote=promote and keep != "none",
            previous="keep" if keep_base else "destroy",
            diff=diff,
            inherit_secrets=secrets,
            on_change=on_change,
        )
    if json:
        print_json(found.to_json())
    else:
        _end(found, on_change.live)
    if found.best is None:
        raise typer.Exit(1)


@app.command()
def promote(
    machine: MachineArg,
    onto: Annotated[
        str | None,
        typer.Option(
            metavar="MACHINE",
            help="Whose place it takes. Default: its parent's.",
            autocompletion=complete_machine,
        ),
    ] = None,
    destroy: Annotated[
        bool, typer.Option("--destroy", help="Destroy that machine then; else it lives on.")
    ] = False,
    isolation: Annotated[
        str | None,
        typer.Option(
            metavar="RUNG",
            help="Up the ladder instead, with its disk: user, container, microvm.",
            autocompletion=lambda: RUNGS[1:],
        ),
    ] = None,
    driver: Annotated[
        str | None,
        typer.Option(
            help="Up the ladder to this driver (see roost doctor).", autocompletion=complete_driver
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Put a fork in its parent's place: it takes key, name, ports with their hosts and links.

    The way back: roost promote PARENT --onto MACHINE. With --isolation or --driver the machine goes up the ladder: same
    id, disk, key, ports and policy; what runs in it ends, its memory is dropped, and there is no way down.
    """
    if isolation is not None or driver is not None:
        if onto is not None or destroy:
            raise usage_error("--isolation and --driver go without --onto and --destroy.")
        climbed = find(machine).promote(isolation=isolation, driver=driver)
        if json:
            print_json(climbed.to_json())
        else:
            say(f"{climbed.id} {climbed.isolation['claim']}")
        return
    other = None if onto is None else find(onto)
    m = find(machine).promote(other, previous="destroy" if destroy else "keep")
    if json:
        print_json(m.to_json())
    else:
        called = " ".join(each for each in (m.key, m.name) if each)
        say(f"{m.id} {called}".rstrip())


def _listed(path: Path | None) -> list[str]:
    if path is None:
        return []
    text = sys.stdin.read() if str(path) == "-" else path.read_text()
    return [line for line in text.splitlines() if line.strip()]


def _run(child: Machine, script: str, strategy: str) -> ExecResult:
    filled = script.replace(HOLE, shlex.quote(strategy))
    return child.exec(filled, env={"ROOST_STRATEGY": strategy})


def _scored(ended: ExecResult) -> float | None:
    """None for a script that failed. Raises ValueError for a last line that is no number."""
    if not ended.ok:
        return None
    lines = ended.stdout.split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    try:
        return float(last)
    except ValueError:
        raise ValueError(f"the score's last line is no number: {last[:80]!r}") from None


class _Watch:
    """Told of each change: a table that is redrawn on a terminal, else a line for each that ended."""

    def __init__(self, count: int, live: Any, quiet: bool = False) -> None:
        self.live = live
        self._count = count
        self._quiet = quiet
        self._attempts: dict[int, Attempt] = {}
        self._lock = threading.Lock()

    def __call__(self, attempt: Attempt) -> None:
        with self._lock:
            self._attempts[attempt.index] = attempt
            rows = [self._attempts[n] for n in sorted(self._attempts)]
        if self.live is not None:
            self.live.update(drawn(rows, self._count))
        elif attempt.status in ("done", "failed") and not self._quiet:
            from roost.client._explored import row

            note("  ".join(cell for cell in row(attempt)[1:] if cell))


def drawn(attempts: list[Attempt], count: int) -> Any:
    """A table for a terminal: those at work and those done, and how many are to come."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from roost.client._explored import HEADERS, beats, row

    best: Attempt | None = None
    for each in attempts:
        best = each if beats(each, best) else best
    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header in HEADERS:
        made.add_column(Text(header), overflow="fold")
    styles = {"done": "", "failed": "red", "running": "green", "scoring": "cyan"}
    for each in attempts:
        style = "bold" if each is best else styles.get(each.status, "dim")
        made.add_row(*(Text(plain(cell), style=style) for cell in row(each, each is best)))
    if count > len(attempts):
        made.add_row("", Text(f"{count - len(attempts)} more", style="dim"))
    return made


@contextlib.contextmanager
def _shown(count: int, json: bool) -> Iterator[_Watch]:
    if json or not sys.stdout.isatty():
        yield _Watch(count, None, quiet=json)
        return
    from rich.live import Live

    with Live(console=console(), refresh_per_second=8) as live:
        yield _Watch(count, live)


def _end(found: Explored[Machine], live: Any) -> None:
    from roost.client._explored import HEADERS

    if live is None:
        table(HEADERS, found.rows())
    if found.winner is None:
        note(
            "Nothing could win; the base is as it was."
            if found.best is None
            else "Nothing is kept."
        )
        return
    place = " in the place of the base" if found.promoted else ""
    note(f"The winner is {found.winner.id}{place}.")
