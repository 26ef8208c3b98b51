"""One instant of a machine kept, and gone back to, as lists of steps.

snapshot   capture                          undone when it fails; the machine runs on either way
rollback   remove -> release -> disk        finishes; the machine sleeps on the snapshot's disk, to be woken
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from roost.drivers.interface import Capture
from roost.engine import metering
from roost.engine.flows import GONE, End, Parts, rests, stuck, sync
from roost.engine.journal import Context, Plan, Stage, Step
from roost.engine.lifecycle import Phase, Slept
from roost.engine.machine import Machine, MemoryImage
from roost.engine.transitions import advance, load
from roost.errors import NotFoundError, RoostError
from roost.store import machines, snapshots

# What a machine made from a snapshot has of the one captured: memory knows its size, and the disk its template.
TAKEN_OVER = (
    "template_id",
    "template",
    "image_digest",
    "driver",
    "isolation",
    "capabilities",
    "vcpu",
    "memory_mib",
    "storage_gib",
    "env",
)


def not_found(snapshot_id: str) -> NotFoundError:
    return NotFoundError(f"There is no snapshot {snapshot_id[:64]}.", code="SNAPSHOT_NOT_FOUND")


class Keep:
    """What the steps of one snapshot share."""

    def __init__(
        self,
        parts: Parts,
        machine: Machine,
        snapshot_id: str,
        durable: bool = True,
        memory: bool = True,
    ) -> None:
        self.parts = parts
        self.machine = machine
        self.snapshot_id = snapshot_id
        self.durable = durable  # the capture; one for a fork is of no use after a restart
        # Memory knows the machine's volumes, and what goes on from it would not have them, or not as they were.
        self.memory = memory and not machine.volumes
        self.values: dict[str, Any] = {}

    async def capture(self, context: Context) -> None:
        machine, storage = self.machine, self.parts.storage
        place = await storage.begin_snapshot(self.snapshot_id)
        image: MemoryImage | None = None
        capture: Capture | None = None
        if machine.handle is not None and not machine.capabilities.disk_image:
            await sync(self.parts, machine)
            await storage.copy_disk(machine.id, self.snapshot_id)  # its programs run on meanwhile
        elif machine.handle is not None:
            driver = self.parts.rungs.driver(machine.driver)
            if not self.memory:
                await sync(self.parts, machine)
            capture = await driver.capture(
                machine.handle, place.memory, place.disk, durable=self.durable, memory=self.memory
            )
            if capture.memory:
                token_of = (machine.id, machine.generation)
                image = MemoryImage(capture.manifest, token_of, self.snapshot_id)
        else:
            await storage.copy_disk(machine.id, self.snapshot_id)
            kept = machine.memory_image
            whole = kept is not None and not kept.used and kept.snapshot_id is None
            if kept is not None and whole and self.memory:
                await storage.copy_memory(machine.id, self.snapshot_id)
                image = replace(kept, snapshot_id=self.snapshot_id)
        size = await storage.seal_snapshot(self.snapshot_id, machine.id)
        self.values = {
            "status": "ready",
            "memory_image": None if image is None else image.to_json(),
            "size_bytes": size,
            "paused_ms": None if capture is None else capture.paused_ms,
        }

    async def discard(self, context: Context) -> None:
        await self.parts.storage.delete_snapshot(self.snapshot_id)


def snapshot(keep: Keep) -> Plan:
    def done(connection: sa.Connection, context: Context) -> None:
        assert context.now is not None
        snapshots.update(connection, keep.snapshot_id, keep.values)
        row = snapshots.get(connection, keep.snapshot_id)
        assert row is not None
        metering.begin_snapshot(connection, row, keep.machine.created_by, context.now)
        machines.record(connection, context.machine_id, context.now, "snapshot", keep.snapshot_id)

    def undone(connection: sa.Connection, context: Context, error: RoostError) -> None:
        snapshots.delete(connection, keep.snapshot_id)

    def left(connection: sa.Connection, context: Context, error: RoostError) -> None:
        """What could not be taken away is swept at the next start; the machine has nothing to do with it."""
        snapshots.delete(connection, keep.snapshot_id)

    return Plan(
        "snapshot",
        (Stage("capture", (Step("capture", keep.capture, keep.discard),)),),
        finishes=False,
        done=done,
        undone=undone,
        stuck=left,
    )


class Rollback(End):
    def __init__(self, parts: Parts, machine: Machine, snapshot_id: str) -> None:
        super().__init__(parts, machine, hush=False, settle=True)
        self._snapshot_id = snapshot_id

    async def disk(self, context: Context) -> None:
        await self.parts.storage.clone_snapshot(self._snapshot_id, context.machine_id)
        await self.parts.storage.sync_disk(context.machine_id)
        with contextlib.suppress(RoostError):  # swept later
            await self.parts.storage.delete_memory(context.machine_id)


def rollback(end: Rollback) -> Plan:
    def done(connection: sa.Connection, context: Context) -> None:
        assert context.now is not None
        end.count(connection, context)
        values = {**GONE, "disk_ready": True, "memory_image": context.data.get("memory_image")}
        if load(connection, context.machine_id).phase in (Phase.STOPPING, Phase.FAILED):
            message = f"rolled back to {context.data['snapshot_id']}"
            event = Slept(rests(values["memory_image"]))
            context.change = advance(
                connection, context.machine_id, event, context.now, values, message
            )
        else:  # it is being destroyed by now
            machines.update(connection, context.machine_id, values)

    stages = (
        Stage("remove", (Step("remove", end.remove),)),
        Stage("release", (Step("release", end.release),)),
        Stage("disk", (Step("disk", end.disk),)),
    )
    return Plan("rollback", stages, finishes=True, done=done, stuck=stuck)
