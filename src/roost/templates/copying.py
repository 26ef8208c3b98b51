"""What one COPY or ADD brings: its files under the names they get, and the tar stream that carries them."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from roost.errors import InvalidRequestError
from roost.templates.context import DIRECTORY, FILE, LINK, Context, Entry
from roost.templates.dockerfile import wrong
from roost.templates.pack import END, header, padding
from roost.templates.plan import Copy

_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")


@dataclass(frozen=True, slots=True)
class Item:
    """``name``: below the target; "" is the target itself. ``archive``: its content is to be unpacked."""

    name: str
    entry: Entry
    content: bytes | None = None  # of what stands in the Dockerfile
    archive: bool = False


@dataclass(frozen=True, slots=True)
class Copied:
    """``alone``: one file, whose target may be its own name or a directory that is there already."""

    items: tuple[Item, ...]
    alone: bool


def gather(step: Copy, context: Context | None, line: int) -> Copied:
    """Raises DOCKERFILE_INVALID for a source that is not in the context."""
    keyword = "ADD" if step.unpack else "COPY"
    items: list[Item] = []
    tops: list[Entry] = []
    for source in step.sources:
        found = [] if context is None else context.find(source)
        if not found:
            raise wrong(line, f"{keyword} {source[:200]}: {_why_none(context, source)}")
        for entry in found:
            tops.append(entry)
            items += _items(entry, source, context, step.unpack)
    for each in step.inline:
        content = each.content.encode(errors="surrogateescape")
        entry = Entry(each.name, FILE, 0o644, len(content))
        tops.append(entry)
        items.append(Item(each.name, entry, content))
    if len(tops) > 1 and not step.target.endswith("/"):
        raise wrong(line, f"{keyword} of several: the last is a directory, and ends with /")
    alone = len(items) == 1 and tops[0].kind == FILE and not items[0].archive
    kept: dict[str, Item] = {}
    for item in items:
        if item.archive:
            kept[f"{len(kept)}\0"] = item
        elif item.name:
            kept[item.name] = item  # what comes later wins
    if step.mode is not None:
        mode = step.mode
        kept = {
            key: item
            if item.archive or item.entry.kind == LINK
            else replace(item, entry=replace(item.entry, mode=mode))
            for key, item in kept.items()
        }
    return Copied(tuple(kept[key] for key in sorted(kept)), alone)


def _items(entry: Entry, source: str, context: Context | None, unpack: bool) -> Iterator[Item]:
    assert context is not None
    if entry.kind == DIRECTORY:
        above = len(entry.name) + 1 if entry.name else 0
        for each in context.below(entry.name):
            yield Item(each.name[above:], each)
        return
    name = entry.name.rpartition("/")[2]
    wanted = source.rstrip("/").rpartition("/")[2]
    if not any(char in wanted for char in "*?[\\"):
        name = wanted or name  # of a link: the name it was asked by
    archive = unpack and is_archive(context.head(entry, 512))
    yield Item(name, entry, archive=archive)


def _why_none(context: Context | None, source: str) -> str:
    if context is None:
        return "the build has no context"
    near = context.near(source)
    hint = f"; did you mean {near}?" if near else ""
    return f"the context has nothing of that name (.dockerignore may leave it out){hint}"


def is_archive(head: bytes) -> bool:
    """By its content, as Docker tells."""
    return head.startswith(_MAGIC) or (len(head) >= 262 and head[257:262] == b"ustar")


def digest(copied: Copied, context: Context | None) -> str:
    """Of everything that counts: names, kinds, modes and contents; times do not."""
    total = hashlib.sha256(b"roost-copy 1\n")
    for item in copied.items:
        entry = item.entry
        if item.content is not None:
            what = hashlib.sha256(item.content).hexdigest()
        elif entry.kind == FILE:
            assert context is not None
            what = context.digest(entry)
        else:
            what = entry.target
        line = [item.name, entry.kind, f"{entry.mode:o}", what, item.archive]
        total.update(json.dumps(line).encode() + b"\n")
    return total.hexdigest()


def size(copied: Copied) -> int:
    """Bytes of what is copied."""
    return sum(item.entry.size for item in copied.items if item.entry.kind == FILE)


def stream(
    items: Sequence[Item], context: Context | None, there: Collection[str] = ()
) -> Iterator[bytes]:
    """As a tar; without directories that are ``there`` already, which stay as they are."""
    for item in items:
        entry = item.entry
        name = item.name
        if entry.kind == DIRECTORY:
            if name not in there:
                yield header(name, tarfile.DIRTYPE, entry.mode, 0, entry.mtime)
        elif entry.kind == LINK:
            yield header(name, tarfile.SYMTYPE, 0o777, 0, entry.mtime, entry.target)
        else:
            yield header(name, tarfile.REGTYPE, entry.mode, entry.size, entry.mtime)
            if item.content is not None:
                yield item.content
            else:
                assert context is not None
                yield from context.open(entry)
            if pad := padding(entry.size):
                yield pad
    yield END


def too_large(what: str, most: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"{what} is larger than {most >> 20} MiB. Ignore what the build does not need in .dockerignore.",
        code="PAYLOAD_TOO_LARGE",
        details={"limit_bytes": most},
    )
