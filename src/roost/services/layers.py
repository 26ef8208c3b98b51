"""Layers: what disks of build machines were after a step, kept as images and found again by what went into them.

A layer is found for whose it is and for nobody else. Nothing depends on one: a machine's disk and a template's image
are clones of their own, so any may be forgotten at any time, and is, the one used longest ago first, when all of
them answer for more of the pool than they may.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import structlog

from roost import ids
from roost.engine.engine import Engine
from roost.errors import MachineError, RoostError
from roost.services.captured import Row
from roost.services.images import Images, Use
from roost.storage.interface import Image
from roost.store import layers as rows

log = structlog.get_logger(__name__)


class Layers:
    """``tenant``: whose a layer is; ``keys.NOBODY`` of shipped recipes' builds."""

    def __init__(self, engine: Engine, images: Images) -> None:
        self._engine = engine
        self.images = images
        self._store = engine.store
        self._storage = engine.parts.storage

    async def find(self, tenant: str, key: str, use: Use) -> Image | None:
        row = await self._store.read(lambda c: rows.get(c, tenant, key))
        if row is None:
            return None
        image = await self._storage.image(row["digest"])
        if image is None:
            await self._store.write(lambda c: rows.delete(c, tenant, key))
            return None
        now = self._engine.clock.now()
        # It may have been forgotten, or made anew, since it was read.
        if not await self._store.write(lambda c: rows.used(c, tenant, key, image.digest, now)):
            return None
        return use(image)

    async def keep(self, tenant: str, key: str, machine_id: str, use: Use) -> Image:
        """The disk of a running machine, of one instant; everything in it must have been synced. Durable on return."""
        made: list[Image] = []

        async def work() -> None:
            # In the machine's line to the end: what is known of its disk goes with it.
            copy = await self._copy(machine_id)
            made.append(await self._add(tenant, key, copy, self._storage.disk(machine_id), use))

        await asyncio.shield(self._engine.line_up(machine_id, work))
        return made[0]

    async def _copy(self, machine_id: str) -> Path:
        running = self._engine.roster.peek(machine_id)
        if running is None:
            raise MachineError("The build's machine ended.", code="MACHINE_FAILED")
        driver = self._engine.rungs.driver(running.machine.driver)
        try:
            await driver.freeze_disk(running.handle)
            return await self._storage.copy_out(machine_id)
        finally:
            await asyncio.shield(driver.thaw_disk(running.handle))

    async def of_snapshot(self, tenant: str, key: str, snapshot_id: str, use: Use) -> Image:
        async def work() -> Image:
            with self._engine.holding(snapshot_id):
                made = await self._storage.copy_out_snapshot(snapshot_id)
                of = self._storage.snapshot(snapshot_id).disk
                return await self._add(tenant, key, made, of, use)

        return await asyncio.shield(work())

    async def _add(self, tenant: str, key: str, made: Path, of: Path, use: Use) -> Image:
        """``made``: a file in the pool's ``tmp``. ``of``: the disk whose record says who wrote it."""
        named = f"roost-layer 1\n{key}\n{ids.new()}\n"
        digest = f"sha256:{hashlib.sha256(named.encode()).hexdigest()}"
        try:
            image = await self._storage.keep_image(made, digest, of, {"kind": "layer", "key": key})
        finally:
            await asyncio.to_thread(made.unlink, missing_ok=True)
        use(image)
        now = self._engine.clock.now()
        before = await self._store.write(lambda c: rows.put(c, tenant, key, digest, now))
        if before is not None:
            await self.images.drop(before)
        return image

    async def content(self, image: Image) -> str:
        """A digest of what is in it; reckoned once."""
        if image.content is not None:
            return image.content
        row = await self._store.read(lambda c: rows.by_image(c, image.digest))
        if row is not None and row["content_digest"] is not None:
            return str(row["content_digest"])
        found = await self._storage.content(image)
        await self._store.write(lambda c: rows.set_content(c, image.digest, found))
        return found

    async def forget(self, row: Row) -> None:
        await self._store.write(lambda c: rows.delete(c, row["tenant_id"], row["key"]))
        await self.images.drop(row["digest"])

    async def sizes(self) -> dict[str, int]:
        """Image -> bytes that are its layer's alone to answer for."""
        found = await self._store.read(rows.every)
        digests = [row["digest"] for row in sorted(found, key=lambda row: row["created_at"])]
        others = [i.digest for i in await self._storage.images() if i.digest not in set(digests)]
        return await self._storage.unique_bytes(digests, others)

    async def bound(self, most_bytes: int) -> int:
        """Forgets until all that are left answer for no more; how many were forgotten."""
        count = 0
        sizes = await self.sizes()
        total = sum(sizes.values())
        for row in await self._store.read(rows.every):
            if total <= most_bytes:
                break
            total -= sizes.get(row["digest"], 0)
            await self.forget(row)
            count += 1
        return count

    async def sweep(self) -> None:
        """At daemon start: images of builds that no row needs."""
        for image in await self._storage.images():
            if image.kind in ("layer", "template"):
                try:
                    await self.images.drop(image.digest)
                except (RoostError, OSError) as failure:
                    log.warning("layers.left", digest=image.digest, error=str(failure))
