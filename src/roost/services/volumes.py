"""Volumes: disks of their own, that outlive the machines that mount them.

    create   row (creating; counted) -> file system -> row (ready)          a start sweeps what is neither
    delete   row (deleting, if nobody has it) -> file -> no row             a start finishes it

Machines take them with their own row (``attach``) and let go of them with it; see ``engine.mounts``.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Collection, Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from roost import ids
from roost.engine import metering, mounts, quotas
from roost.engine.engine import Engine
from roost.engine.mounts import Mount
from roost.errors import ConflictError, NotFoundError, RoostError
from roost.services import limits
from roost.services.models import Attach, Attachment, Page, Volume
from roost.store import volumes as rows
from roost.store.cursor import Cursors

log = logging.getLogger(__name__)
MAX_VOLUMES = 1000  # of a tenant
ROOM_BYTES = 16 * 2**20


class Volumes:
    """Every call takes the caller's tenant first; another tenant's volume answers VOLUME_NOT_FOUND."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._store = engine.store
        self._cursors = Cursors(engine.identity.secret)

    async def open(self) -> None:
        """After a kill: ends what was being made or deleted, and deletes disks of no volume."""
        storage = self._engine.parts.storage
        states = await self._store.read(rows.states)
        there = await storage.list_volumes()
        for volume_id in sorted(there - {v for v, s in states.items() if s == "ready"}):
            try:
                await storage.delete_volume(volume_id)
            except (RoostError, OSError):
                log.exception("volume %s could not be swept; the next start tries again", volume_id)
                states.pop(volume_id, None)
        left = [v for v, status in states.items() if status != "ready"]
        if left:

            def fn(connection: sa.Connection) -> None:
                for volume_id in left:
                    rows.delete(connection, volume_id)

            await self._store.write(fn)

    async def create(
        self, tenant: str, name: str, size_gib: int, created_by: str | None = None
    ) -> Volume:
        """Empty, and nobody's yet. Its size counts against the quota ``storage_gib``.

        Raises VALIDATION_FAILED, ALREADY_EXISTS (the name; details.volume_id), QUOTA_EXCEEDED, STORAGE_FULL.
        """
        limits.volume_name(name)
        limits.volume_size(size_gib)
        await self._engine.parts.storage.require(ROOM_BYTES)
        volume_id = ids.new()

        def begin(connection: sa.Connection) -> None:
            if (used := rows.count(connection, tenant)) >= MAX_VOLUMES:
                raise quotas.exceeded("volumes", MAX_VOLUMES, used, 1, "Delete one, then retry.")
            quotas.check(connection, tenant, {"storage_gib": size_gib})
            rows.insert(
                connection,
                {
                    "id": volume_id,
                    "tenant_id": tenant,
                    "name": name,
                    "size_gib": size_gib,
                    "status": "creating",
                    "raw_written": False,
                    "created_by": created_by,
                    "created_at": self._engine.clock.now(),
                },
            )

        async def make() -> Volume:
            try:
                await self._store.write(begin)
            except IntegrityError as error:
                raise await self._taken(tenant, name) from error
            return await self._make(tenant, volume_id, size_gib)

        # Who asked may go away: half a volume would keep its name until the next start.
        return await asyncio.shield(make())

    async def _make(self, tenant: str, volume_id: str, size_gib: int) -> Volume:
        try:
            await self._engine.parts.storage.make_volume(volume_id, size_gib)
            await self._store.write(lambda c: self._ready(c, volume_id))
        except BaseException:
            await self._engine.parts.storage.delete_volume(volume_id)
            await self._store.write(lambda c: rows.delete(c, volume_id))
            raise
        self._engine.meter.soon()
        return await self.get(tenant, volume_id)

    def _ready(self, connection: sa.Connection, volume_id: str) -> None:
        rows.update(connection, volume_id, {"status": "ready"})
        row = rows.get(connection, volume_id)
        assert row is not None
        metering.begin_volume(connection, row, self._engine.clock.now())

    async def get(self, tenant: str, which: str) -> Volume:
        """By id or name. Raises VOLUME_NOT_FOUND."""

        def fn(connection: sa.Connection) -> list[Volume]:
            return _with_attachments(connection, [_find(connection, tenant, which)])

        return (await self._store.read(fn))[0]

    async def list(self, tenant: str, limit: int = 100, cursor: str | None = None) -> Page[Volume]:
        """Newest first. Raises INVALID_CURSOR."""
        if not 1 <= limit <= 500:
            raise limits.bad("limit", "is from 1 to 500")
        scope = json.dumps(["volumes", tenant])
        after = None if cursor is None else self._cursors.decode(scope, cursor)

        def fn(connection: sa.Connection) -> tuple[Sequence[Volume], bool]:
            found = rows.page(connection, tenant, limit=limit + 1, after=after)
            return _with_attachments(connection, found[:limit]), len(found) > limit

        items, more = await self._store.read(fn)
        last = items[-1] if more else None
        cursor = self._cursors.encode(scope, last.created_at, last.id) if last else None
        return Page([*items], cursor)

    async def delete(self, tenant: str, which: str) -> None:
        """With what is in it; again, where that broke off before. Raises VOLUME_NOT_FOUND; VOLUME_IN_USE while a
        machine has it, asleep or failed too."""

        def begin(connection: sa.Connection) -> str:
            row = _find(connection, tenant, which, ("ready", "deleting"))
            found = rows.attachments(connection, [row["id"]])
            if found:
                holders = [each["machine_id"] for each in found]
                raise ConflictError(
                    f"Volume {row['name']} is machine {', '.join(holders[:5])}'s: destroy that first.",
                    code="VOLUME_IN_USE",
                    details={
                        "volume": row["name"],
                        "volume_id": row["id"],
                        "machine_ids": holders[:100],
                    },
                )
            rows.update(connection, row["id"], {"status": "deleting"})
            metering.end(connection, row["id"], self._engine.clock.now())
            return str(row["id"])

        await asyncio.shield(self._delete(begin))

    async def _delete(self, begin: Callable[[sa.Connection], str]) -> None:
        volume_id = await self._store.write(begin)
        await self._engine.parts.storage.delete_volume(volume_id)
        await self._store.write(lambda c: rows.delete(c, volume_id))

    async def _taken(self, tenant: str, name: str) -> ConflictError:
        row = await self._store.read(lambda c: rows.find(c, tenant, name))
        return ConflictError(
            f"You have a volume named {name}: delete it or take another name.",
            code="ALREADY_EXISTS",
            details={"volume_id": row["id"]} if row is not None else {},
        )


# --- for who makes machines -----------------------------------------------------------------------


def resolve(
    connection: sa.Connection,
    tenant: str,
    wanted: Iterable[Attach],
    raw_disk: bool,
    without: str | None = None,
) -> tuple[Mount, ...]:
    """What a machine of that kind would get; ``without``: one whose own it may be. Raises VALIDATION_FAILED,
    VOLUME_NOT_FOUND, VOLUME_IN_USE, UNSUPPORTED (a microVM's volume, for a container)."""
    asked = list(wanted)
    mounts.check_paths([each.path for each in asked])
    made: list[Mount] = []
    for each in asked:
        row = _find(connection, tenant, each.name)
        mount = Mount(row["id"], row["name"], each.path, each.read_only)
        if any(mount.volume_id == other.volume_id for other in made):
            raise limits.bad("volumes", f"name {mount.name} twice")
        held = rows.attachments(connection, [mount.volume_id])
        others = [(a["machine_id"], a["read_only"]) for a in held if a["machine_id"] != without]
        mounts.check_trusted(mount, row["raw_written"], raw_disk)
        mounts.check_free(mount, others)
        made.append(mount)
    return tuple(made)


def attach(
    engine: Engine,
    connection: sa.Connection,
    machine_id: str,
    found: Iterable[Mount],
    raw_disk: bool,
) -> None:
    """In the transaction of the machine's row, after ``resolve`` in the same."""
    now = engine.clock.now()
    for mount in found:
        rows.attach(connection, mount.volume_id, machine_id, mount.path, mount.read_only, now)
        if raw_disk and not mount.read_only:
            rows.update(connection, mount.volume_id, {"raw_written": True})


def _find(
    connection: sa.Connection, tenant: str, which: str, states: Collection[str] = ("ready",)
) -> rows.Row:
    row = rows.find(connection, tenant, which)
    if row is None or row["status"] not in states:
        raise NotFoundError(f"There is no volume {which[:64]}.", code="VOLUME_NOT_FOUND")
    return row


def _with_attachments(connection: sa.Connection, found: Sequence[rows.Row]) -> list[Volume]:
    held: dict[str, list[Attachment]] = {}
    for row in rows.attachments(connection, [each["id"] for each in found]):
        held.setdefault(row["volume_id"], []).append(
            Attachment(row["machine_id"], row["path"], row["read_only"])
        )
    plain = ("id", "tenant_id", "name", "size_gib", "raw_written", "created_at")
    return [
        Volume(**{name: row[name] for name in plain}, attachments=tuple(held.get(row["id"], ())))
        for row in found
    ]
