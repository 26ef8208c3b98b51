"""Images in a context or an archive, found by their index; nothing is unpacked and no name in them is a path of the host's.

Understood are OCI image layouts (image-spec 1.1, image-layout.md), as directories of a context and as tars, and what
``docker save`` writes.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from roost.errors import RoostError
from roost.storage.room import Room
from roost.templates.context import FILE, MAX_NAME, Context, Entry
from roost.templates.oci import image
from roost.templates.oci.image import Blob, Manifest, bad

MAX_RATIO = 200  # of an archive that is gzip, past FREE
FREE = 64 << 20
_PIECE = 1 << 20
_NESTED = 3  # indexes within each other
_GZIP = b"\x1f\x8b"

_ROOM = 64 << 20  # asked for at a time
_READ = 16 << 20

Open = Callable[[Blob], Iterator[bytes]]  # a blob's content, not proven


@dataclass(frozen=True, slots=True)
class Found:
    manifest: Manifest
    config: bytes
    open: Open
    annotations: Mapping[str, str] = field(default_factory=dict)  # of the manifest


class Files:
    """Those of a directory of a context; "" is the context itself."""

    def __init__(self, context: Context, directory: str = "") -> None:
        self._context = context
        self._directory = directory

    def entry(self, name: str) -> Entry | None:
        if len(name) > MAX_NAME:
            return None
        found = self._context.find(f"{self._directory}/{name}")
        return found[0] if len(found) == 1 and found[0].kind == FILE else None

    def content(self, entry: Entry) -> Iterator[bytes]:
        return self._context.open(entry)

    def digest(self, entry: Entry) -> str:
        return f"sha256:{self._context.digest(entry)}"

    def small(self, name: str, what: str) -> bytes:
        """Raises VALIDATION_FAILED."""
        entry = self.entry(name)
        if entry is None:
            raise bad(f"its {what} is missing")
        if entry.size > image.MAX_JSON:
            raise bad(f"its {what} is larger than {image.MAX_JSON >> 20} MiB")
        return b"".join(self.content(entry))

    def blob(self, blob: Blob, what: str) -> bytes:
        return image.checked(self.small(_place(blob), what), blob.digest, what)


def find(files: Files, tag: str | None) -> Found:
    """Blocking. Raises VALIDATION_FAILED where there is no image, no such tag, or one that is broken."""
    if files.entry("index.json") is not None:
        return _layout(files, tag)
    if files.entry("manifest.json") is not None:
        return _saved(files, tag)
    raise bad("there is neither an index.json nor a manifest.json in it")


def archive(context: Context, entry: Entry, tmp: Path, most: int, room: Room) -> Context:
    """The archive that is a file of a context. Blocking; ``tmp``: a new file for it."""
    return opened(context.open(entry), tmp, most, room)


def opened(pieces: Iterator[bytes], tmp: Path, most: int, room: Room) -> Context:
    """An archive, plain or gzip, of at most so many bytes. ``room`` is asked for so many more before they are written.
    Raises VALIDATION_FAILED, INVALID_BODY, and what ``room`` does."""
    with tmp.open("xb") as file:
        taken = asked = 0
        for piece in pieces:
            taken += len(piece)
            if taken > most:
                raise bad(f"it is larger than {most >> 20} MiB")
            if taken > asked:
                room(_ROOM)
                asked = taken + _ROOM
            file.write(piece)
    if _head(tmp) == _GZIP:
        plain = tmp.with_name(f"{tmp.name}.plain")
        _inflate(tmp, plain, most, room)
        tmp.unlink()
        tmp = plain
    return Context.read(tmp)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2)


def _inflate(source: Path, target: Path, most: int, room: Room) -> None:
    size = source.stat().st_size
    given = asked = 0
    try:
        with (
            source.open("rb") as raw,
            gzip.GzipFile(fileobj=cast(IO[bytes], _Asking(raw, room))) as packed,
            target.open("xb") as file,
        ):
            while piece := packed.read(_PIECE):
                given += len(piece)
                if given > most or (given > FREE and given > size * MAX_RATIO):
                    raise bad("it unpacks to far more than its size")
                if given > asked:
                    room(_ROOM)
                    asked = given + _ROOM
                file.write(piece)
    except (EOFError, zlib.error, gzip.BadGzipFile) as failure:
        raise bad("its compression is damaged") from failure


class _Asking:
    """A file that asks whether to go on: members without content make much be read of which nothing comes."""

    def __init__(self, file: IO[bytes], room: Room) -> None:
        self._file = file
        self._room = room
        self._left = 0

    def read(self, count: int) -> bytes:
        self._left -= count
        if self._left < 0:
            self._room(0)
            self._left = _READ
        return self._file.read(count)


def _layout(files: Files, tag: str | None) -> Found:
    data = files.small("index.json", "index")
    for _ in range(_NESTED):
        chosen = image.choose(data, tag)
        if chosen is None:
            break
        data, tag = files.blob(chosen, "manifest"), None
    manifest = image.manifest(data)
    for layer in manifest.layers:
        entry = files.entry(_place(layer))
        if entry is None or entry.size != layer.size:
            raise bad("a layer of it is missing, or of another size than it should be")
    said = image.read_json(data, "manifest").get("annotations")
    pairs = said.items() if isinstance(said, dict) else ()
    annotations = {key: value for key, value in pairs if isinstance(value, str)}
    return Found(
        manifest,
        files.blob(manifest.config, "config"),
        lambda blob: files.content(_known(files.entry(_place(blob)))),
        annotations,
    )


def _saved(files: Files, tag: str | None) -> Found:
    """A list of images, each with the names of its parts."""
    text = files.small("manifest.json", "manifest")
    listed = image.read_json(b'{"images":%s}' % text, "manifest").get("images")
    images = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    if tag is not None:
        images = [each for each in images if _tagged(each, tag)]
    if len(images) != 1:
        raise bad(f"it has {len(images)} images{f' tagged {tag}' if tag else ''}; name one by :TAG")
    names = images[0].get("Layers")
    if not isinstance(names, list) or len(names) > image.MAX_LAYERS:
        raise bad("its manifest names no layers, or too many")
    parts: dict[str, Entry] = {}

    def blob(name: object, what: str) -> Blob:
        entry = files.entry(name) if isinstance(name, str) else None
        if entry is None:
            raise bad(f"a {what} of it is missing")
        found = Blob(files.digest(entry), entry.size)
        parts[found.digest] = entry
        return found

    config = blob(images[0].get("Config"), "config")
    if config.size > image.MAX_JSON:
        raise bad(f"its config is larger than {image.MAX_JSON >> 20} MiB")
    manifest = Manifest(config, tuple(blob(name, "layer") for name in names))
    return Found(
        manifest,
        b"".join(files.content(parts[config.digest])),
        lambda blob: files.content(parts[blob.digest]),
    )


def _tagged(entry: Mapping[str, Any], tag: str) -> bool:
    names = entry.get("RepoTags")
    return isinstance(names, list) and any(str(name).rpartition(":")[2] == tag for name in names)


def _place(blob: Blob) -> str:
    return f"blobs/sha256/{blob.hex}"


def _known(entry: Entry | None) -> Entry:
    assert entry is not None
    return entry


def of_file(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def telling(failure: RoostError, line: int) -> RoostError:
    """The same, of a line of the Dockerfile."""
    failure.details.setdefault("line", line)
    return failure
