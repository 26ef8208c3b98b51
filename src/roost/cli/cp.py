"""``roost cp``: files and trees to, from and between machines, never held whole in memory."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roost.cli._connect import complete_machine, find
from roost.cli._inert import plain
from roost.cli._out import Json, console, note, print_json, usage_error
from roost.cli._places import Local, Place, Remote, Standard, parse
from roost.errors import NotFoundError

if TYPE_CHECKING:
    from roost import FileInfo, Machine

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)

Progress = Callable[[int], object] | None


def _complete(incomplete: str) -> list[str]:
    return [f"{name}:/" for name in complete_machine(incomplete)]


@app.command()
def cp(
    source: Annotated[
        str, typer.Argument(help="PATH, MACHINE:/PATH or - (stdin).", autocompletion=_complete)
    ],
    destination: Annotated[
        str, typer.Argument(help="PATH, MACHINE:/PATH or - (stdout).", autocompletion=_complete)
    ],
    owner: Annotated[
        str | None, typer.Option(help="user or user:group of what is made in a machine.")
    ] = None,
    json: Json = False,
) -> None:
    """Copy a file or a directory to, from or between machines.

    As cp -r: into the destination where that is a directory, else to that very name.
    """
    pair = parse(source), parse(destination)
    if not any(isinstance(place, Remote) for place in pair):
        raise usage_error("neither side is in a machine: MACHINE:/PATH.")
    with _progress(not json) as progress:
        done = _copy(*pair, owner, progress)
    for name in done.get("skipped", []):
        note(f"left away {plain(name)}: a link that leads out of the tree")
    if json:
        print_json(done)


def _copy(source: Place, target: Place, owner: str | None, progress: Progress) -> dict[str, Any]:
    """{entries, bytes, skipped}."""
    if isinstance(source, Remote):
        here = find(source.machine)
        if isinstance(target, Remote):
            return _between(here, source, find(target.machine), target, owner, progress)
        if isinstance(target, Standard):
            return _to_stdout(here, source, progress)
        local = target.path
        if local.is_dir() and source.path.name:
            local = local / source.path.name
        done = here.files.download(source.path, local, progress=progress)
        return {"entries": done.entries, "bytes": done.bytes, "skipped": done.skipped}
    assert isinstance(target, Remote)
    there = find(target.machine)
    if isinstance(source, Standard):
        info = there.files.write(target.path, _counted(sys.stdin.buffer, progress), owner=owner)
        return {"entries": 1, "bytes": info.size, "skipped": []}
    assert isinstance(source, Local)
    path = _target(there, target, _name(source.path), source.path.is_dir())
    done = there.files.upload(source.path, path, owner=owner, progress=progress)
    return {"entries": done.entries, "bytes": done.bytes, "skipped": []}


def _between(
    here: Machine,
    source: Remote,
    there: Machine,
    target: Remote,
    owner: str | None,
    progress: Progress,
) -> dict[str, Any]:
    info = here.files.stat(source.path)
    path = _target(there, target, source.path.name, info.is_dir)
    if info.is_dir:
        there.files.mkdir(path)
        tar = _passed(here.files.read_tar(source.path), progress)
        return {**there.files.write_tar(path, tar, owner=owner), "skipped": []}
    chunks = _passed(here.files.read_stream(source.path), progress)
    made = there.files.write(path, chunks, mode=info.mode, owner=owner)
    return {"entries": 1, "bytes": made.size, "skipped": []}


def _to_stdout(machine: Machine, source: Remote, progress: Progress) -> dict[str, Any]:
    sent = 0
    for chunk in _passed(machine.files.read_stream(source.path), progress):
        sys.stdout.buffer.write(chunk)
        sent += len(chunk)
    sys.stdout.buffer.flush()
    return {"entries": 1, "bytes": sent, "skipped": []}


def _name(path: Path) -> str:
    return path.name if path.name not in ("", "..") else path.resolve().name


def _target(machine: Machine, place: Remote, name: str, tree: bool) -> PurePosixPath:
    """Into a directory that is there (or was written with a slash), else that very name."""
    found: FileInfo | None = None
    with contextlib.suppress(NotFoundError):
        found = machine.files.stat(place.path)
    if found is not None and found.is_dir and name:
        return place.path / name
    if found is None and place.into and not tree:
        return place.path / name
    return place.path


def _counted(source: Any, progress: Progress) -> Iterator[bytes]:
    while chunk := source.read1(1 << 20):
        yield chunk
        if progress is not None:
            progress(len(chunk))


def _passed(chunks: Iterator[bytes], progress: Progress) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        if progress is not None:
            progress(len(chunk))


@contextlib.contextmanager
def _progress(wanted: bool) -> Iterator[Progress]:
    """A line on a terminal's stderr that says how much went and how fast; nothing elsewhere."""
    if not wanted or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield None
        return
    from rich.progress import DownloadColumn, SpinnerColumn, TimeElapsedColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = SpinnerColumn(), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn()
    with Bar(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("copy", total=None)
        yield lambda count: bar.advance(task, count)
