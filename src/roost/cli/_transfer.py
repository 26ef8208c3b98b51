"""What export and import of templates and snapshots share."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from roost.cli._out import console, usage_error

Progress = Callable[[int], object] | None
Output = Annotated[
    str, typer.Option("--output", "-o", metavar="FILE", help="Where to; - is stdout.")
]
Source = Annotated[
    Path,
    typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True),
]


@contextlib.contextmanager
def progress(title: str, total: int | None = None) -> Iterator[Progress]:
    """A line on a terminal's stderr: how much, how fast, how long still; nothing elsewhere."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        *((BarColumn(bar_width=24),) if total else ()),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


def to_stdout(chunks: Iterable[bytes], heard: Progress) -> int:
    if sys.stdout.isatty():
        raise usage_error("a terminal is no place for such a file: -o FILE, or redirect it.")
    size = 0
    for chunk in chunks:
        sys.stdout.buffer.write(chunk)
        size += len(chunk)
        if heard is not None:
            heard(len(chunk))
    sys.stdout.buffer.flush()
    return size
