"""``roost diff``: what differs between the files of two machines."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from roost.cli._connect import complete_machine, find
from roost.cli._inert import Inert, plain
from roost.cli._out import Json, note, print_json, say, size

if TYPE_CHECKING:
    from roost import Diff, Difference

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)

_WHY = {
    "entries": "the trees are larger than is compared: name a --path",
    "items": "the list is longer: raise --limit, or name a --path",
    "time": "comparing took too long: name a --path, or --exclude what is large",
}


@app.command()
def diff(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A", help="Id, start of an id, key or name.", autocompletion=complete_machine
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="B", autocompletion=complete_machine)],
    path: Annotated[str, typer.Option("--path", help="Below it only; absolute.")] = "/",
    exclude: Annotated[
        list[str],
        typer.Option("--exclude", "-x", metavar="PATH", help="Absolute; repeatable."),
    ] = [],  # noqa: B006
    patch: Annotated[
        bool, typer.Option("--patch", "-p", help="Contents of text files, too, as diff -u.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many lines.")] = 1000,
    json: Json = False,
) -> None:
    """What differs in files, from machine A to machine B: + B alone has it, - A alone, M other contents,
    T another kind, m other permissions or owner. Wakes both.
    """
    found = find(a).diff(find(b), path, exclude=exclude, limit=limit, patch=patch)
    if json:
        print_json(as_json(found))
        return
    for each in found:
        say(line(each))
        if each.patch is not None:
            _show(each.patch)
    if found.truncated:
        note(f"There may be more: {_WHY.get(found.truncated, found.truncated)}.")
    elif not found:
        note("Nothing differs.")


def line(difference: Difference) -> str:
    d = difference
    text = f"{d.sign} {plain(d.path)}"
    if d.change == "mode" and d.before and d.after:
        was, now = d.before, d.after
        shown = f"{was.mode:04o} {was.uid}:{was.gid} -> {now.mode:04o} {now.uid}:{now.gid}"
        return f"{text}  ({shown})"
    if d.change == "type" and d.before and d.after:
        return f"{text}  ({d.before.kind} -> {d.after.kind})"
    side = d.after or d.before
    if side is None:
        return text
    if side.kind == "symlink":
        return f"{text}  -> {plain(side.link_target or '')}"
    if side.kind == "directory":
        return f"{text}/"
    how = size(side.size)
    if d.before and d.after:
        how = f"{size(d.before.size)} -> {how}{', perhaps the same' if d.unsure else ''}"
    return f"{text}  ({how})"


def as_json(found: Diff) -> dict[str, object]:
    items = []
    for each in found:
        item: dict[str, object] = {"path": each.path, "change": each.change, "unsure": each.unsure}
        for name, side in (("before", each.before), ("after", each.after)):
            item[name] = (
                None
                if side is None
                else {
                    "kind": side.kind,
                    "size": side.size,
                    "mode": f"{side.mode:04o}",
                    "uid": side.uid,
                    "gid": side.gid,
                    "mtime": side.mtime.isoformat(),
                    "link_target": side.link_target,
                }
            )
        if each.patch is not None:
            item["patch"] = each.patch
        items.append(item)
    return {
        "machine_id": found.machine_id,
        "other": found.other,
        "items": items,
        "counts": dict(found.counts),
        "truncated": found.truncated,
    }


def _show(patch: str) -> None:
    if not sys.stdout.isatty():
        sys.stdout.write(patch)
        return
    inert = Inert()
    for each in patch.splitlines():
        text = inert.feed(each) + inert.end()
        colour = {"+": "\x1b[32m", "-": "\x1b[31m", "@": "\x1b[36m"}.get(each[:1])
        print(f"{colour}{text}\x1b[0m" if colour else text)
