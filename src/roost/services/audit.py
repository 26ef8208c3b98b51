"""The audit log: who changed what, when, from where, and how that ended.

    gateway --record--> (lasting) durable before the answer leaves -----------+
                    '-> (inside a machine) in memory, FLUSH_S at most ---------+--> table --> query, follow

What changes something of the platform (machines, snapshots, keys, tenants, templates) is on disk before its answer
leaves. What happens inside a machine (executions, terminals, files) is gathered and written in groups, for a write of
its own would cost more than many a command: a daemon killed by force loses FLUSH_S of those at most, and one that stops
loses none. Entries hold no bodies, queries, names of files or secrets.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
import structlog

from roost.clock import Clock
from roost.errors import RoostError
from roost.services.models import AuditEntry, Page
from roost.store import Store
from roost.store import audit as rows
from roost.store.audit import Wanted
from roost.store.cursor import Cursors

log = structlog.get_logger(__name__)

FLUSH_S = 0.2
RETRY_S = 2.0
WAITING = 20_000  # entries that wait for a database that cannot be written
PIECE = 500
SCAN = 5000  # rows a follower looks at in one go, wanted or not


def _after(wanted: Wanted, id: int, connection: sa.Connection) -> tuple[list[rows.Row], int]:
    """What is wanted of the next rows, and the id up to which they were looked at."""
    to = rows.reach(connection, id, SCAN)
    found = rows.after(connection, wanted, id, to, PIECE)
    return found, found[-1]["id"] if len(found) == PIECE else to


class Audit:
    def __init__(self, store: Store, clock: Clock, cursors: Cursors, days: int) -> None:
        self._store = store
        self._clock = clock
        self._cursors = cursors
        self._keep = timedelta(days=days)
        self._waiting: list[dict[str, Any]] = []
        self._wanted = asyncio.Event()
        self._followers: set[asyncio.Event] = set()
        self._writing = asyncio.Lock()
        self._flusher: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._flusher = asyncio.create_task(self._flush_now_and_then(), name="audit")

    async def close(self) -> None:
        """Everything recorded is durable, or logged as lost."""
        if self._flusher is not None:
            self._flusher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._flusher
        try:
            await self._flush()
        except RoostError as failure:
            log.error("audit.lost", entries=len(self._waiting), error=failure.code)

    async def record(self, entry: dict[str, Any], lasting: bool) -> None:
        """``entry``: the columns but for id and time. ``lasting``: durable on return, unless the database cannot be
        written now: then it is, as the others, as soon as that can be."""
        entry = {**entry, "at": self._clock.now()}
        if len(self._waiting) >= WAITING:
            log.error("audit.lost", entries=1, oldest=self._waiting.pop(0)["request_id"])
        self._waiting.append(entry)
        if not lasting:
            self._wanted.set()
            return
        try:
            await asyncio.shield(self._flush())
        except RoostError as failure:
            log.error("audit.late", request_id=entry["request_id"], error=failure.code)
            self._wanted.set()

    async def query(self, wanted: Wanted, limit: int, cursor: str | None) -> Page[AuditEntry]:
        """Newest first. Raises INVALID_CURSOR."""
        scope = f"audit:{wanted}"
        before = None if cursor is None else int(self._cursors.decode(scope, cursor)[1])
        await self._flush()
        found = await self._store.read(lambda c: rows.before(c, wanted, before, limit + 1))
        items = [AuditEntry(**row) for row in found[:limit]]
        last = items[-1] if len(found) > limit else None
        return Page(items, self._cursors.encode(scope, last.at, str(last.id)) if last else None)

    async def last(self) -> int:
        """The id of the newest."""
        return await self._store.read(rows.last)

    async def follow(self, wanted: Wanted, after: int) -> AsyncGenerator[AuditEntry, None]:
        """Those after that id, then each as it is written; never ends."""
        at, written = after, asyncio.Event()
        self._followers.add(written)
        try:
            while True:
                written.clear()  # before the look: what is written meanwhile sets it again
                found, looked = await self._store.read(functools.partial(_after, wanted, at))
                for row in found:
                    yield AuditEntry(**row)
                if looked == at:
                    await written.wait()
                at = looked
        finally:
            self._followers.discard(written)

    async def tidy(self) -> int:
        """Forgets what is older than the settings say; call now and then."""
        before: datetime = self._clock.now() - self._keep
        gone = 0
        while number := await self._store.write(lambda c: rows.forget(c, before)):
            gone += number
        return gone

    async def _flush_now_and_then(self) -> None:
        while True:
            await self._wanted.wait()
            await asyncio.sleep(FLUSH_S)
            self._wanted.clear()
            try:
                await asyncio.shield(self._flush())
            except RoostError as failure:
                log.error("audit.late", entries=len(self._waiting), error=failure.code)
                await asyncio.sleep(RETRY_S)
                self._wanted.set()

    async def _flush(self) -> None:
        """All there is, in order; what cannot be written stays."""
        async with self._writing:
            if not self._waiting:
                return
            entries, self._waiting = self._waiting, []
            try:
                await self._store.write(lambda c: rows.insert(c, entries))
            except Exception:  # not of a cancellation: the write goes on then
                self._waiting = entries + self._waiting
                raise
        for written in self._followers:
            written.set()
