"""A build's context: a tar file that somebody sent, read in place and never unpacked on the host.

The index holds names, kinds and where contents lie; contents are read when a step needs them. Everything in it is
hostile: names are made plain and may not lead out, headers and entries are bounded.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import IO

from roost.errors import InvalidRequestError
from roost.templates import glob
from roost.templates.pack import clean

MAX_ENTRIES = 200_000
MAX_HEADER = 1 << 20  # of one extended header
MAX_NAME = 4096
MAX_NAMES = 32 << 20  # characters of all names, directories that no entry names among them
MAX_DEPTH = 255
MAX_PATTERN = 1024  # of one name; those have 255 bytes
MAX_LINKS = 40
MAX_WORK = 96 << 20  # characters of names that a build looks at for its steps
_LOOK = 100  # what a name costs besides
_NEAR, _NEAR_LENGTH = (
    2000,
    100,
)  # names that are compared for people; it takes the square of their length
CHUNK = 1 << 20
FILE, DIRECTORY, LINK = "file", "directory", "link"
_EXTENDED = {tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE}
_LONG = {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
_FILES = {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE}
_WILD = re.compile(r"[*?\[\\]")


@dataclass(frozen=True, slots=True)
class Entry:
    name: str  # relative, plain
    kind: str
    mode: int
    size: int = 0
    offset: int = 0  # of its content in the archive
    mtime: int = 0
    target: str = ""  # of a link


class Context:
    def __init__(self, path: Path, entries: dict[str, Entry]) -> None:
        self.path = path
        self.entries = entries
        self._digests: dict[tuple[int, int], str] = {}
        self._work = 0
        self._below: dict[str, list[str]] = {}
        for name in sorted(entries):
            self._below.setdefault(name.rpartition("/")[0], []).append(name)

    @classmethod
    def read(cls, path: Path) -> Context:
        """Raises INVALID_BODY for what is no archive, or one that is hostile."""
        with path.open("rb") as file:
            return cls(path, _index(file))

    def open(self, entry: Entry) -> Iterator[bytes]:
        """Its content, in pieces of 1 MiB at most."""
        with self.path.open("rb") as file:
            file.seek(entry.offset)
            left = entry.size
            while left:
                piece = file.read(min(CHUNK, left))
                if not piece:
                    raise _broken("it ends within an entry")
                left -= len(piece)
                yield piece

    def head(self, entry: Entry, count: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(entry.offset)
            return file.read(min(count, entry.size))

    def text(self, name: str, limit: int) -> str | None:
        """Of a small file; None where there is none."""
        entry = self.entries.get(clean(name))
        if entry is None or entry.kind != FILE or entry.size > limit:
            return None
        return b"".join(self.open(entry)).decode(errors="surrogateescape")

    def digest(self, entry: Entry) -> str:
        """Of a file's content; read once, however many names it has."""
        place = (entry.offset, entry.size)
        found = self._digests.get(place)
        if found is None:
            total = hashlib.sha256()
            for piece in self.open(entry):
                total.update(piece)
            found = self._digests[place] = total.hexdigest()
        return found

    # --- finding ----------------------------------------------------------------------------------

    def find(self, source: str) -> list[Entry]:
        """Those a source of COPY names, links followed within the context; the context itself is a directory
        without a name. Empty where there are none. Raises INVALID_BODY, as ``below``, where a build asks for too
        much: a short Dockerfile may name a large context often."""
        self._spend(len(source))
        plain = clean(source)
        if not plain:
            return [Entry("", DIRECTORY, 0o755)]
        if plain in self.entries or not _WILD.search(plain):
            found = self._followed(plain)
            return [] if found is None else [found]
        names = [""]
        for part in plain.split("/"):
            names = [child for name in names for child in self._matching(name, part)]
        return [each for n in sorted(names) if (each := self._followed(n)) is not None]

    def _matching(self, above: str, part: str) -> Iterator[str]:
        """Of what lies right in a directory."""
        if not _WILD.search(part):
            name = f"{above}/{part}" if above else part
            self._spend(len(name))
            if name in self.entries:
                yield name
            return
        if len(part) > MAX_PATTERN:
            return
        rule = glob.Pattern(part)
        for child in self._below.get(above, ()):
            self._spend(len(child) + len(part))
            if rule.matches(child.rpartition("/")[2]):
                yield child

    def _spend(self, characters: int) -> None:
        self._work += characters + _LOOK
        if self._work > MAX_WORK:
            raise _broken("what COPY and ADD name are too many files of it, or the same too often")

    def _followed(self, name: str) -> Entry | None:
        """The entry, or what it leads to through links of the context."""
        for _ in range(MAX_LINKS):
            self._spend(len(name))
            parts = name.split("/")
            for n in range(1, len(parts) + 1):
                entry = self.entries.get("/".join(parts[:n]))
                if entry is None:
                    return None
                if entry.kind == LINK:
                    above = "" if entry.target.startswith("/") else "/".join(parts[: n - 1])
                    name = clean("/".join([above, entry.target, *parts[n:]]))
                    break
            else:
                return entry
            if not name:
                return Entry("", DIRECTORY, 0o755)
        return None

    def below(self, name: str) -> Iterator[Entry]:
        """Everything in a directory, and in those in it, in order."""
        for child in self._below.get(name, ()):
            entry = self.entries[child]
            self._spend(len(child))
            yield entry
            if entry.kind == DIRECTORY:
                yield from self.below(child)

    def near(self, source: str) -> str | None:
        """A name like that, for people."""
        names = islice((name for name in self.entries if len(name) <= _NEAR_LENGTH), _NEAR)
        found = get_close_matches(clean(source)[:_NEAR_LENGTH], list(names), 1)
        return found[0] if found else None


def _index(file: IO[bytes]) -> dict[str, Entry]:
    size = os.fstat(file.fileno()).st_size
    entries: dict[str, Entry] = {}
    pax: dict[str, str] = {}
    long: dict[bytes, str] = {}
    count = characters = 0
    while True:
        block = file.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE:
            if block or not size:
                raise _broken("it is no tar archive, or ends too early")
            break
        if not block.strip(b"\0"):
            break
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as failure:
            raise _broken(f"it is no tar archive ({failure})") from failure
        if header.type in _EXTENDED or header.type in _LONG or header.type == tarfile.XGLTYPE:
            data = _small(file, header.size)
            if header.type in _LONG:
                long[header.type] = data.rstrip(b"\0").decode(errors="surrogateescape")
            elif header.type in _EXTENDED:
                pax = _pax(data)
            continue
        name = pax.get("path", long.get(tarfile.GNUTYPE_LONGNAME, header.name))
        link = pax.get("linkpath", long.get(tarfile.GNUTYPE_LONGLINK, header.linkname))
        try:
            length = int(pax.get("size", header.size))
        except ValueError as failure:
            raise _broken("a size is no number") from failure
        if (
            any(key.startswith("GNU.sparse") for key in pax)
            or header.type == tarfile.GNUTYPE_SPARSE
        ):
            raise _broken(f"{name[:80]!r} is a sparse file; pack it as it is")
        pax, long = {}, {}
        count += 1
        if count > MAX_ENTRIES:
            raise _broken(f"it has more than {MAX_ENTRIES} entries; ignore some in .dockerignore")
        offset = file.tell()
        body = length if header.type in _FILES else 0
        if body < 0 or offset + body > size:
            raise _broken("it ends within an entry")
        characters += _put(entries, name, link, header, body, offset)
        if characters > MAX_NAMES:
            raise _broken("its names are too long in all; ignore some files in .dockerignore")
        file.seek(offset + -(-body // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
    return entries


def _put(
    entries: dict[str, Entry], name: str, link: str, header: tarfile.TarInfo, size: int, offset: int
) -> int:
    """How many characters of names it took."""
    plain = _plain(name)
    taken = len(name) + len(link)
    if not plain:
        return taken
    parts = plain.split("/")
    for n in range(1, len(parts)):  # archives need not name every directory
        above = "/".join(parts[:n])
        found = entries.get(above)
        if found is None:
            entries[above] = Entry(above, DIRECTORY, 0o755, mtime=_time(header))
            taken += len(above)
        elif found.kind != DIRECTORY:
            raise _broken(f"{plain[:80]!r} lies in something that is no directory")
    if len(entries) > 2 * MAX_ENTRIES:
        raise _broken(f"it has more than {MAX_ENTRIES} entries; ignore some in .dockerignore")
    mode, mtime = header.mode & 0o7777, _time(header)
    before = entries.get(plain)
    if before is not None and (before.kind == DIRECTORY) != (header.type == tarfile.DIRTYPE):
        raise _broken(f"{plain[:80]!r} is there twice")
    if header.type in _FILES:
        entries[plain] = Entry(plain, FILE, mode, size, offset, mtime)
    elif header.type == tarfile.DIRTYPE:
        entries[plain] = Entry(plain, DIRECTORY, mode, mtime=mtime)
    elif header.type == tarfile.SYMTYPE:
        if not link or len(link) > MAX_NAME or "\0" in link:
            raise _broken(f"{plain[:80]!r} leads nowhere")
        entries[plain] = Entry(plain, LINK, 0o777, target=link, mtime=mtime)
    elif header.type == tarfile.LNKTYPE:
        other = entries.get(_plain(link))
        if other is None or other.kind != FILE:
            raise _broken(f"{plain[:80]!r} is a hard link to nothing that came before it")
        entries[plain] = Entry(plain, FILE, other.mode, other.size, other.offset, other.mtime)
    else:
        raise _broken(f"{plain[:80]!r} is a device, a pipe or a socket; ignore it in .dockerignore")
    return taken


def _plain(name: str) -> str:
    if len(name) > MAX_NAME or "\0" in name or name.startswith("/"):
        raise _broken(f"the name {name[:80]!r} is absolute or too long")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or any(len(p.encode(errors="surrogateescape")) > 255 for p in parts):
        raise _broken(f"the name {name[:80]!r} leads upwards or is too long")
    if len(parts) > MAX_DEPTH:
        raise _broken(f"{name[:80]!r} lies in more than {MAX_DEPTH} directories")
    return "/".join(parts)


def _time(header: tarfile.TarInfo) -> int:
    return max(0, min(int(header.mtime), 1 << 33))


def _small(file: IO[bytes], size: int) -> bytes:
    if not 0 <= size <= MAX_HEADER:
        raise _broken("a header is too long")
    data = file.read(size)
    if len(data) < size:
        raise _broken("it ends within a header")
    file.seek(-size % tarfile.BLOCKSIZE, os.SEEK_CUR)
    return data


def _pax(data: bytes) -> dict[str, str]:
    """Records of "LENGTH KEY=VALUE\\n"."""
    found: dict[str, str] = {}
    at = 0
    while at < len(data):
        blank = data.find(b" ", at, at + 20)
        if blank < 0 or not data[at:blank].isdigit():
            break
        length = int(data[at:blank])
        record = data[blank + 1 : at + length]
        if length <= blank - at or at + length > len(data) or not record.endswith(b"\n"):
            raise _broken("a header cannot be read")
        key, _, value = record[:-1].partition(b"=")
        if len(found) < 1000:
            found[key.decode(errors="replace")] = value.decode(errors="surrogateescape")
        at += length
    return found


def _broken(why: str) -> InvalidRequestError:
    return InvalidRequestError(f"The context cannot be used: {why}.", code="INVALID_BODY")
