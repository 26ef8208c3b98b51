"""What clients note about files they write (``X-Metadata-*``).

E2B keeps it in extended attributes. Not every rung's kernel has those (gVisor's has not), so here it is kept by path in
one file of the machine's own, which sleeps, forks and is rolled back with it. It follows what this API moves, removes
and writes anew; not what commands do.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from roost.dialects.e2b.envd.entries import text
from roost.dialects.e2b.envd.place import Place
from roost.dialects.e2b.envd.refusals import Refused
from roost.errors import RoostError
from roost.services.files import Files, Write
from roost.services.machines import Machines

FILE = b"/var/lib/roost/e2b-metadata.json"
MAX_BYTES = 128 * 1024  # of all a machine's
MACHINES = 1000
PREFIX = "x-metadata-"
_VALUE = re.compile(r"[\x20-\x7e]*", re.ASCII)
Notes: TypeAlias = dict[str, dict[str, str]]  # of a path


@dataclass(slots=True)
class _Kept:
    generation: int = -1
    notes: Notes = field(default_factory=dict)
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)


class Metadata:
    """The daemon alone writes the file, so what it read once of a machine holds until that starts anew."""

    def __init__(self, files: Files, machines: Machines) -> None:
        self._files = files
        self._machines = machines
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    async def of(self, place: Place) -> Mapping[str, Mapping[str, str]]:
        return (await self._known(place)).notes

    async def wrote(self, place: Place, path: bytes, noted: Mapping[str, str]) -> None:
        """In the place of what was noted. Raises Refused where there is no room."""
        kept, name = await self._known(place), text(path)
        if noted or name in kept.notes:
            async with kept.changing:
                now = {each: said for each, said in kept.notes.items() if each != name}
                await self._keep(place, kept, {**now, name: dict(noted)} if noted else now)

    async def removed(self, place: Place, path: bytes) -> None:
        """With all below."""
        kept, name = await self._known(place), text(path)
        if any(_below(each, name) for each in kept.notes):
            async with kept.changing:
                left = {e: said for e, said in kept.notes.items() if not _below(e, name)}
                await self._keep(place, kept, left)

    async def moved(self, place: Place, source: bytes, to: bytes) -> None:
        kept, old, new = await self._known(place), text(source), text(to)
        if any(_below(each, old) or _below(each, new) for each in kept.notes):
            async with kept.changing:
                left = {
                    each: said
                    for each, said in kept.notes.items()
                    if not (_below(each, old) or _below(each, new))
                }
                gone = {
                    new + each[len(old) :]: said
                    for each, said in kept.notes.items()
                    if _below(each, old)
                }
                await self._keep(place, kept, {**left, **gone})

    async def _known(self, place: Place) -> _Kept:
        live = await self._machines.awake(place.tenant, place.machine_id)
        kept = self._kept.setdefault(place.machine_id, _Kept())
        self._kept.move_to_end(place.machine_id)
        if len(self._kept) > MACHINES:
            self._kept.popitem(last=False)
        if kept.generation != live.machine.generation:
            async with kept.changing:
                if kept.generation != live.machine.generation:
                    kept.notes = read(await self._read(place))
                    kept.generation = live.machine.generation
        return kept

    async def _read(self, place: Place) -> bytes:
        try:
            reading = await self._files.read(place.tenant, place.machine_id, FILE, length=MAX_BYTES)
        except RoostError as failure:
            if failure.status in (404, 422, 403):  # none, or none of ours
                return b""
            raise
        try:
            return b"".join([piece async for piece in reading.data])
        finally:
            await reading.data.aclose()

    async def _keep(self, place: Place, kept: _Kept, notes: Notes) -> None:
        data = json.dumps(notes).encode()
        if len(data) > MAX_BYTES:
            raise Refused("resource_exhausted", "this sandbox has no room for more file metadata")

        async def whole() -> AsyncGenerator[bytes, None]:
            yield data

        await self._files.write(place.tenant, place.machine_id, Write(FILE, mode=0o600), whole())
        kept.notes = notes


def noted(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Of a request; keys in small letters. Raises Refused."""
    found: dict[str, str] = {}
    for name, value in headers:
        if name.startswith(PREFIX):
            key = name[len(PREFIX) :]
            if not key or not _VALUE.fullmatch(value):
                raise Refused(
                    "invalid_argument", f"invalid metadata {key!r}: a name, and printable US-ASCII"
                )
            found[key] = value
    return found


def read(data: bytes) -> Notes:
    """Of a file that the machine may have written as it likes: what is no note is none."""
    try:
        said: Any = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(said, dict):
        return {}
    return {
        path: {key: value for key, value in each.items() if isinstance(value, str)}
        for path, each in said.items()
        if isinstance(each, dict)
    }


def _below(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top.rstrip('/')}/")
