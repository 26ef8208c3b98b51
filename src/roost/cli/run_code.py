"""``roost run-code``: a file, or stdin, in a machine's Jupyter kernel."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, TextIO

import typer

from roost.cli._connect import MachineArg, find
from roost.cli._inert import Inert
from roost.cli._out import Json, note, print_json, say, usage_error

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)

TIMED_OUT = 124


@app.command("run-code")
def run_code(
    machine: MachineArg,
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="Default, and -: what stdin has.")
    ] = None,
    code: Annotated[
        str | None, typer.Option("--code", "-c", metavar="CODE", help="Instead of a file.")
    ] = None,
    language: Annotated[str, typer.Option(help="Of a Jupyter kernel the machine has.")] = "python",
    context: Annotated[
        str | None, typer.Option(help="Whose names it has; each is a kernel of its own.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=86_400, metavar="SECONDS", help="Then it is interrupted; exit 124."
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option("--pictures", metavar="DIR", help="Where pictures are saved (result-1.png)."),
    ] = None,
    json: Json = False,
) -> None:
    """Run code in a machine's Jupyter kernel, which keeps its names for the next time.

    Exit code 0, 1 where it raised, 124 where its time ran out.
    """
    from roost.client._results import CodeTimeout

    if code is not None and file is not None:
        raise usage_error("give a file or --code, not both.")
    if code is None and file in (None, "-"):
        if sys.stdin.isatty():
            raise usage_error("give a file, --code, or code on stdin.")
        code = sys.stdin.read()
    elif code is None:
        code = Path(str(file)).read_text()

    out, err = _Live(sys.stdout), _Live(sys.stderr)
    late = False
    try:
        result = find(machine).run_code(
            code,
            language,
            context=context,
            timeout=timeout,
            on_stdout=None if json else out.say,
            on_stderr=None if json else err.say,
        )
    except CodeTimeout as failure:
        result, late = failure.result, True
    saved = []
    for number, picture in enumerate(result.pngs, 1):
        if pictures is not None:
            pictures.mkdir(parents=True, exist_ok=True)
            path = pictures / f"result-{number}.png"
            path.write_bytes(picture)
            saved.append(str(path))
    if json:
        print_json(
            {
                "status": result.status,
                "execution_count": result.execution_count,
                "stdout": result.stdout,
                "stderr": result.stderr,
                "results": [
                    {"main": each.main, "data": dict(each.data)} for each in result.results
                ],
                "error": None
                if result.error is None
                else {name: getattr(result.error, name) for name in ("name", "value", "traceback")},
                "truncated": result.truncated,
                "restarted": result.restarted,
                "pictures": saved,
            }
        )
    else:
        for each in result.results:
            if each.png is not None and pictures is None:
                note("a picture: --pictures DIR saves it")
            elif each.png is None and each.text is not None:
                for line in each.text.splitlines():
                    say(line)
        for path_of in saved:
            say(path_of)
        if result.error is not None:
            for line in result.error.traceback.splitlines() or [result.error.value]:
                note(line)
        if late:
            note("error: its time ran out; it was interrupted. [TIMEOUT]")
        if result.restarted:
            note("The kernel is a new one: what it knew is gone.")
    if not result.ok:
        raise typer.Exit(TIMED_OUT if late else 1)


class _Live:
    """Output as it comes; on a terminal it drives nothing but colours."""

    def __init__(self, to: TextIO) -> None:
        self._to = to
        self._inert = Inert() if to.isatty() else None

    def say(self, text: str) -> None:
        self._to.write(text if self._inert is None else self._inert.feed(text))
        self._to.flush()
