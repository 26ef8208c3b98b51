"""``filesystem.Filesystem``."""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass

from roost.api.v1.services import Services
from roost.dialects.e2b.envd import messages
from roost.dialects.e2b.envd.accounts import Account, Accounts
from roost.dialects.e2b.envd.connect import Call, Said, Service
from roost.dialects.e2b.envd.entries import entry, pointed, text
from roost.dialects.e2b.envd.metadata import Metadata
from roost.dialects.e2b.envd.place import Place
from roost.dialects.e2b.envd.refusals import Refused
from roost.dialects.e2b.envd.watchers import LOST, Seen, Watchers
from roost.errors import RoostError
from roost.services.files import FileInfo, Files

ENTRIES = 20_000
ENTRY_BYTES = 8 * 2**20  # of their paths
PAGE = 1000
MAX_LINKS = 8
LINKS_AT_ONCE = 8
_ALIVE: Said = {"keepalive": {}}


@dataclass(slots=True)
class _Found:
    entries: list[Said]
    held: int = 0  # bytes of names

    def add(self, shown: Said, path: bytes) -> None:
        """Raises Refused."""
        self.held += len(path)
        if len(self.entries) >= ENTRIES or self.held > ENTRY_BYTES:
            raise Refused("out_of_range", f"more than {ENTRIES} entries: list less deep")
        self.entries.append(shown)


class Filesystem:
    def __init__(
        self, services: Services, accounts: Accounts, watchers: Watchers, metadata: Metadata
    ) -> None:
        self._metadata = metadata
        self._files = services.files
        self._accounts = accounts
        self._watchers = watchers

    def service(self) -> Service:
        s = Service("filesystem.Filesystem")
        s.unary("Stat", messages.OfPath, self.stat)
        s.unary("MakeDir", messages.OfPath, self.make_dir)
        s.unary("Move", messages.Move, self.move)
        s.unary("ListDir", messages.ListDir, self.list_dir)
        s.unary("Remove", messages.OfPath, self.remove)
        s.unary("CreateWatcher", messages.Watch, self.create_watcher)
        s.unary("GetWatcherEvents", messages.OfWatcher, self.watcher_events)
        s.unary("RemoveWatcher", messages.OfWatcher, self.remove_watcher)
        s.server_stream("WatchDir", messages.Watch, self.watch_dir, _ALIVE)
        return s

    async def stat(self, call: Call, asked: messages.OfPath) -> Said:
        path = (await self._as(call)).path(asked.path)
        return {"entry": await self._look(call.place, path)}

    async def make_dir(self, call: Call, asked: messages.OfPath) -> Said:
        account = await self._as(call)
        path = account.path(asked.path)
        where = (call.place.tenant, call.place.machine_id)
        try:
            there = await self._files.stat(*where, path)
        except RoostError as failure:
            if failure.code != "FILE_NOT_FOUND":
                raise
        else:
            if there.kind == "directory":
                raise Refused("already_exists", f"directory already exists: {text(path)}")
            raise Refused(
                "invalid_argument", f"path already exists but it is not a directory: {text(path)}"
            )
        made = await self._files.make_dir(*where, path, owner=account.owner)
        return {"entry": entry(made, path)}

    async def move(self, call: Call, asked: messages.Move) -> Said:
        account = await self._as(call)
        source, to = account.path(asked.source), account.path(asked.destination)
        where = (call.place.tenant, call.place.machine_id)
        try:
            await self._files.stat(*where, source, follow=False)
        except RoostError as failure:
            if failure.code == "FILE_NOT_FOUND":
                raise Refused("not_found", f"source file not found: {text(source)}") from None
            raise
        await self._files.make_dir(*where, posixpath.dirname(to), owner=account.owner)
        await self._files.move(*where, source, to, overwrite=True)
        await self._metadata.moved(call.place, source, to)
        return {"entry": await self._look(call.place, to)}

    async def list_dir(self, call: Call, asked: messages.ListDir) -> Said:
        path = (await self._as(call)).path(asked.path)
        await self._directory(call.place, path, "directory")
        found = _Found([])
        await self._walk(call.place, path, max(1, asked.depth), found)
        notes = await self._metadata.of(call.place)
        entries = found.entries
        return {"entries": [_noted(each, notes) for each in entries] if notes else entries}

    async def remove(self, call: Call, asked: messages.OfPath) -> Said:
        path = (await self._as(call)).path(asked.path)
        try:
            await self._files.remove(call.place.tenant, call.place.machine_id, path, recursive=True)
        except RoostError as failure:
            if failure.code != "FILE_NOT_FOUND":  # what is not there is removed
                raise
        await self._metadata.removed(call.place, path)
        return {}

    # --- watching -------------------------------------------------------------------------------

    async def watch_dir(self, call: Call, asked: messages.Watch) -> AsyncGenerator[Said, None]:
        path = await self._watched(call, asked)
        events = self._watchers.follow(call.place, path, asked.recursive)
        async with contextlib.aclosing(events):
            async for seen in events:
                if seen is None:
                    yield {"start": {}}
                elif seen.type == LOST:
                    raise Refused("data_loss", "events were lost; watch again, and look")
                else:
                    yield {"filesystem": await self._event(call.place, path, seen, asked)}

    async def create_watcher(self, call: Call, asked: messages.Watch) -> Said:
        path = await self._watched(call, asked)
        made = await self._watchers.create(call.place, path, asked.recursive, asked.include_entry)
        return {"watcherId": made}

    async def watcher_events(self, call: Call, asked: messages.OfWatcher) -> Said:
        watcher = self._watchers.get(call.place, asked.watcher_id)
        seen = self._watchers.taken(watcher)
        of = messages.Watch(include_entry=watcher.include_entry)
        return {"events": [await self._event(call.place, watcher.path, each, of) for each in seen]}

    async def remove_watcher(self, call: Call, asked: messages.OfWatcher) -> Said:
        await self._watchers.remove(self._watchers.get(call.place, asked.watcher_id))
        return {}

    # --- helpers --------------------------------------------------------------------------------

    async def _as(self, call: Call) -> Account:
        return await self._accounts.of(call.place, call.user)

    async def _watched(self, call: Call, asked: messages.Watch) -> bytes:
        path = (await self._as(call)).path(asked.path)
        await self._directory(call.place, path, "path")
        return path

    async def _directory(self, place: Place, path: bytes, named: str) -> None:
        try:
            info = await self._files.stat(place.tenant, place.machine_id, path)
        except RoostError as failure:
            if failure.code == "FILE_NOT_FOUND":
                raise Refused("not_found", f"{named} not found: {text(path)}") from None
            raise
        if info.kind != "directory":
            raise Refused("invalid_argument", f"path is not a directory: {text(path)}")

    async def _walk(self, place: Place, path: bytes, depth: int, found: _Found) -> None:
        """Entries by name, each directory's after it."""
        cursor: str | None = None
        while True:
            page = await self._files.list(
                place.tenant, place.machine_id, path, limit=PAGE, cursor=cursor
            )
            targets = await self._targets(place, path, page.items)
            for info in page.items:
                below = posixpath.join(path, info.name)
                found.add(entry(info, below, targets.get(info.name)), below)
                if info.kind == "directory" and depth > 1:
                    with _vanishing():
                        await self._walk(place, below, depth - 1, found)
            cursor = page.next_cursor
            if cursor is None:
                return

    async def _targets(
        self, place: Place, path: bytes, infos: Sequence[FileInfo]
    ) -> dict[bytes, FileInfo]:
        """Of the first links of a page, what they lead to."""
        found: dict[bytes, FileInfo] = {}
        links = [each for each in infos if each.kind == "symlink" and each.target_kind is not None]

        async def one(link: FileInfo) -> None:
            target = await _target(self._files, place, link, posixpath.join(path, link.name))
            if target is not None:
                found[link.name] = target

        await asyncio.gather(*(one(each) for each in links[:LINKS_AT_ONCE]))
        return found

    async def _look(self, place: Place, path: bytes) -> Said:
        """Raises FILE_NOT_FOUND."""
        info = await self._files.stat(place.tenant, place.machine_id, path, follow=False)
        target = None
        if info.kind == "symlink" and info.target_kind is not None:
            target = await _target(self._files, place, info, path)
        return _noted(entry(info, path, target), await self._metadata.of(place))

    async def _event(self, place: Place, root: bytes, seen: Seen, asked: messages.Watch) -> Said:
        said: Said = {"name": text(seen.name), "type": seen.type}
        if asked.include_entry and seen.type != "EVENT_TYPE_REMOVE":
            with contextlib.suppress(RoostError):
                said["entry"] = await self._look(place, posixpath.join(root, seen.name))
        return said


def _noted(shown: Said, notes: Mapping[str, Mapping[str, str]]) -> Said:
    said = notes.get(shown["path"])
    return {**shown, "metadata": dict(said)} if said else shown


async def _target(files: Files, place: Place, link: FileInfo, path: bytes) -> FileInfo | None:
    """What a chain of links ends at, with its path; None where that is not found out in a few steps."""
    for _ in range(MAX_LINKS):
        path = pointed(link, path)
        try:
            info = await files.stat(place.tenant, place.machine_id, path, follow=False)
        except RoostError as failure:
            if failure.code in ("FILE_NOT_FOUND", "NOT_A_DIRECTORY", "INVALID_PATH"):
                return None
            raise
        if info.kind != "symlink":
            return info
        link = info
    return None


@contextlib.contextmanager
def _vanishing() -> Iterator[None]:
    """What is removed while it is listed is not listed."""
    try:
        yield
    except RoostError as failure:
        if failure.code not in ("FILE_NOT_FOUND", "NOT_A_DIRECTORY"):
            raise
