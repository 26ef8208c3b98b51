"""Watching directories, for a client that listens and for one that asks now and then.

```
  watch of the agent --> translated --> WatchDir: said at once, at the client's pace
                              '-------> CreateWatcher: kept, the newest so many, until they are fetched
```

A watch goes on over a sleep of its sandbox with its memory; it wakes nothing, keeps nothing awake and ends with its
sandbox, or once nobody has asked for an hour. What was lost is said, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field

from roost import ids
from roost.dialects.e2b.envd.place import Place
from roost.dialects.e2b.envd.refusals import Refused
from roost.errors import RoostError, error
from roost.services.files import FileEvent, Files
from roost.services.machines import Machines

WATCHERS = 1024
TENANTS = 256  # of one tenant
EACH = 32  # of one sandbox
EVENTS = 4096
BYTES = 256 * 1024  # of their names
ABANDONED_S = 3600.0
REMEMBERED = 1024  # names of which it is known that they are there
LONGEST = 256  # of those
TRIES = 3
_TYPES = {
    "created": "EVENT_TYPE_CREATE",
    "modified": "EVENT_TYPE_WRITE",
    "removed": "EVENT_TYPE_REMOVE",
    "attributes": "EVENT_TYPE_CHMOD",
}
LOST = "lost"
_BESIDE = re.compile(
    rb"\.roost-[0-9a-f]{16}"
)  # what a file is written to before it takes its place


@dataclass(frozen=True, slots=True)
class Seen:
    name: bytes  # from the watched directory
    type: str  # LOST: of what happened before this, something was not seen


@dataclass(slots=True)
class Watcher:
    id: str
    place: Place
    path: bytes
    include_entry: bool
    events: deque[Seen] = field(default_factory=deque)
    held: int = 0  # bytes of names
    lost: bool = False
    ended: Refused | None = None
    asked_at: float = field(default_factory=time.monotonic)
    task: asyncio.Task[None] | None = None

    def saw(self, seen: Seen) -> None:
        """The newest are kept."""
        if seen.type == LOST:
            self.lost = True
            return
        self.events.append(seen)
        self.held += len(seen.name)
        while len(self.events) > EVENTS or self.held > BYTES:
            self.lost = True
            self.held -= len(self.events.popleft().name)


class Watchers:
    def __init__(self, files: Files, machines: Machines) -> None:
        self._files = files
        self._machines = machines
        self._all: dict[str, Watcher] = {}

    async def create(self, place: Place, path: bytes, recursive: bool, include_entry: bool) -> str:
        """It stands when this returns. Raises Refused (resource_exhausted)."""
        self._forget()
        mine = sum(each.place == place for each in self._all.values())
        tenants = sum(each.place.tenant == place.tenant for each in self._all.values())
        if mine >= EACH or tenants >= TENANTS or len(self._all) >= WATCHERS:
            raise Refused("resource_exhausted", "too many watchers stand already: remove some")
        watcher = Watcher(ids.new(), place, path, include_entry)
        self._all[watcher.id] = watcher
        stands: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        watcher.task = asyncio.ensure_future(self._keep(watcher, recursive, stands))
        try:
            await stands
        except BaseException:
            await self.remove(watcher)
            raise
        return watcher.id

    def get(self, place: Place, watcher_id: str) -> Watcher:
        found = self._all.get(watcher_id)
        if found is None or found.place != place:
            raise Refused("not_found", f"watcher with id {watcher_id} not found")
        return found

    def taken(self, watcher: Watcher) -> list[Seen]:
        """What has happened since it was asked for last. Raises Refused: data_loss once where some was forgotten,
        what it ended with."""
        watcher.asked_at = time.monotonic()
        if watcher.lost:
            watcher.lost = False
            raise Refused(
                "data_loss", "events were lost, more than are kept; ask again for the rest"
            )
        if watcher.ended is not None and not watcher.events:
            self._all.pop(watcher.id, None)
            raise watcher.ended
        seen = list(watcher.events)
        watcher.events.clear()
        watcher.held = 0
        return seen

    async def remove(self, watcher: Watcher) -> None:
        self._all.pop(watcher.id, None)
        task = watcher.task
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait({task})

    async def _keep(self, watcher: Watcher, recursive: bool, stands: asyncio.Future[None]) -> None:
        try:
            events = self.follow(watcher.place, watcher.path, recursive)
            async with contextlib.aclosing(events):
                async for seen in events:
                    if seen is None:
                        if not stands.done():
                            stands.set_result(None)
                        continue
                    watcher.saw(seen)
            watcher.ended = Refused("unavailable", "the watched directory is gone")
        except RoostError as failure:
            if not stands.done():
                stands.set_exception(error(failure.code, failure.message, details=failure.details))
            watcher.ended = Refused("unavailable", "the watch ended: its sandbox does not go on")
        finally:
            if not stands.done():
                stands.cancel()

    def _forget(self) -> None:
        """Those that nobody asks any more, and those that have ended and said so."""
        old = time.monotonic() - ABANDONED_S
        for each in [each for each in self._all.values() if each.asked_at < old]:
            del self._all[each.id]
            if each.task is not None:
                each.task.cancel()

    async def follow(
        self, place: Place, path: bytes, recursive: bool
    ) -> AsyncGenerator[Seen | None, None]:
        """None once the watch stands, then what happens. Raises RoostError where its sandbox does not go on."""
        names = _Names(path)
        began = False
        tries = 0
        while True:
            lost = False
            try:
                await self._names(place, path, names)
                events = await self._files.watch(
                    place.tenant, place.machine_id, path, recursive, keep_awake=False
                )
                async with contextlib.aclosing(events):
                    async for event in events:
                        tries = 0
                        if event.kind == "ready":
                            if not began:
                                yield None
                            began = True
                            continue
                        if event.kind == "overflow":
                            yield Seen(b"", LOST)
                        for seen in names.seen(event):
                            yield seen
                return
            except RoostError as failure:
                if failure.code != "AGENT_LOST" or not began or tries >= TRIES:
                    raise
                lost = True
            if lost:  # not in the handler, which would hold on to the connection that a capture wants closed
                tries += 1
                await self._awake_again(place)

    async def _names(self, place: Place, path: bytes, names: _Names) -> None:
        page = await self._files.list(place.tenant, place.machine_id, path, limit=1000)
        for info in page.items:
            names.there(info.name)

    async def _awake_again(self, place: Place) -> None:
        """Returns once its machine runs. Raises MACHINE_FAILED where it will not."""
        with self._machines.changing(place.machine_id) as changed:
            while True:
                changed.clear()
                machine = await self._machines.get(place.tenant, place.machine_id)
                if machine.phase == "running":
                    return
                if machine.phase in ("failed", "destroying", "destroyed"):
                    raise error("MACHINE_FAILED", "The sandbox is gone.")
                await changed.wait()


class _Names:
    """Turns what the agent saw into what E2B's daemon would say. A file that is written takes its place by a rename,
    which there is a write to it; whether it was there before is known by its name, for so many names."""

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._known: dict[bytes, None] = {}

    def there(self, name: bytes) -> None:
        if len(name) <= LONGEST:
            self._known[name] = None
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]

    def seen(self, event: FileEvent) -> Iterator[Seen]:
        name = posixpath.relpath(event.path, self._root)
        beside = _BESIDE.fullmatch(posixpath.basename(name)) is not None
        if event.kind == "moved" and event.new_path is not None:
            to = posixpath.relpath(event.new_path, self._root)
            if beside:
                if to not in self._known:
                    yield Seen(to, "EVENT_TYPE_CREATE")
                yield Seen(to, "EVENT_TYPE_CHMOD")
                yield Seen(to, "EVENT_TYPE_WRITE")
            else:
                self._known.pop(name, None)
                yield Seen(name, "EVENT_TYPE_RENAME")
                yield Seen(to, "EVENT_TYPE_CREATE")
            self.there(to)
        elif event.kind in _TYPES and not beside:
            if event.kind == "removed":
                self._known.pop(name, None)
            else:
                self.there(name)
            yield Seen(name, _TYPES[event.kind])
