"""Snapshots, which machines are made from, and checkpoints, which one machine goes back to.

Both are native snapshots. Saving one again under its name makes a version more; the one before goes once the new one is
there, unless a machine is being made from it.
"""

from __future__ import annotations

from roost.api.v1.services import Services
from roost.dialects.boxd import names, shapes
from roost.dialects.boxd.machines import PAGE, newest, versions
from roost.dialects.boxd.wire import boxd_pb2 as pb
from roost.engine.machine import Machine
from roost.errors import ConflictError, InvalidRequestError, NotFoundError
from roost.gateway.calls import Call, Method
from roost.services.models import Snapshot

_EMPTY = pb.Empty()
_STATUS = {"ready": "ready", "quarantined": "failed"}


class Captures:
    def __init__(self, services: Services) -> None:
        self._s = services

    def methods(self) -> list[Method]:
        return [
            Method("CreateSnapshot", pb.CaptureRequest, self.snapshot),
            Method("ListSnapshots", pb.ListSnapshotsRequest, self.listed, reads=True),
            Method("GetSnapshot", pb.SnapshotRequest, self.get, reads=True),
            Method("DeleteSnapshot", pb.SnapshotRequest, self.delete),
            Method("CreateCheckpoint", pb.CaptureRequest, self.checkpoint),
            Method("ListCheckpoints", pb.ListCheckpointsRequest, self.checkpoints, reads=True),
            Method("DeleteCheckpoint", pb.CaptureRequest, self.forget),
            Method("RestoreCheckpoint", pb.CaptureRequest, self.rollback),
        ]

    # --- snapshots ------------------------------------------------------------------------------

    async def snapshot(self, call: Call, asked: pb.CaptureRequest) -> pb.CreateSnapshotResponse:
        machine = await shapes.named(self._s, call, asked.vm)
        if not asked.name or names.version(asked.name)[1] != 1 or names.of_checkpoint(asked.name):
            raise InvalidRequestError(
                "name: a snapshot has one, which ends in no --NUMBER.", details={"field": "name"}
            )
        before = await versions(self._s, call.tenant, asked.name)
        version = 1 + (names.version(before[0].name or "")[1] if before else 0)
        called = names.versioned(asked.name, version)
        made = await self._s.snapshots.create(call.tenant, machine.id, called)
        for each in before:
            try:
                await self._s.snapshots.delete(call.tenant, each.id)
            except (ConflictError, NotFoundError):
                continue  # with the next version
        return pb.CreateSnapshotResponse(
            snapshot_id=made.id, name=asked.name, version=version, status=_status(made)
        )

    async def listed(self, call: Call, asked: pb.ListSnapshotsRequest) -> pb.ListSnapshotsResponse:
        shapes.check_org(asked.org, call.tenant)
        latest: dict[str, Snapshot] = {}
        for each in await self._every(call.tenant):
            if each.name and names.of_checkpoint(each.name):
                continue
            name, version = names.version(each.name or each.id)
            known = latest.get(name)
            if known is None or names.version(known.name or known.id)[1] < version:
                latest[name] = each
        return pb.ListSnapshotsResponse(snapshots=[_info(each) for each in latest.values()])

    async def get(self, call: Call, asked: pb.SnapshotRequest) -> pb.GetSnapshotResponse:
        shapes.check_org(asked.org, call.tenant)
        return pb.GetSnapshotResponse(
            snapshot=_info(await newest(self._s, call.tenant, asked.name))
        )

    async def delete(self, call: Call, asked: pb.SnapshotRequest) -> pb.Empty:
        """All its versions; of an id that one."""
        shapes.check_org(asked.org, call.tenant)
        found = await versions(self._s, call.tenant, asked.name)
        for each in found or [await self._s.snapshots.get(call.tenant, asked.name)]:
            await self._s.snapshots.delete(call.tenant, each.id)
        return _EMPTY

    # --- checkpoints ----------------------------------------------------------------------------

    async def checkpoint(self, call: Call, asked: pb.CaptureRequest) -> pb.CreateCheckpointResponse:
        machine = await shapes.named(self._s, call, asked.vm)
        called = names.checkpoint(machine.id, asked.name)
        made = await self._s.snapshots.create(call.tenant, machine.id, called)
        return pb.CreateCheckpointResponse(
            checkpoint_id=made.id, name=asked.name, status=_status(made)
        )

    async def checkpoints(
        self, call: Call, asked: pb.ListCheckpointsRequest
    ) -> pb.ListCheckpointsResponse:
        machine = await shapes.named(self._s, call, asked.vm)
        found = []
        for each in await self._every(call.tenant, machine.id):
            known = names.of_checkpoint(each.name or "")
            if known is not None:
                found.append(
                    pb.CheckpointInfo(
                        checkpoint_id=each.id,
                        name=known[1],
                        status=_status(each),
                        size_bytes=each.size_bytes or 0,
                        created_at=int(each.created_at.timestamp() * 1000),
                        available=each.status == "ready",
                    )
                )
        return pb.ListCheckpointsResponse(checkpoints=found)

    async def forget(self, call: Call, asked: pb.CaptureRequest) -> pb.Empty:
        machine = await shapes.named(self._s, call, asked.vm)
        found = await self._find(call.tenant, machine, asked.name)
        await self._s.snapshots.delete(call.tenant, found.id)
        return _EMPTY

    async def rollback(self, call: Call, asked: pb.CaptureRequest) -> pb.Empty:
        """In place, and running again, with its memory where its rung can."""
        machine = await shapes.named(self._s, call, asked.vm)
        found = await self._find(call.tenant, machine, asked.name)
        await self._s.snapshots.rollback(call.tenant, machine.id, found.id)
        await self._s.machines.wake(call.tenant, machine.id)
        return _EMPTY

    # --- helpers --------------------------------------------------------------------------------

    async def _find(self, tenant: str, machine: Machine, name: str) -> Snapshot:
        """Of this machine, by name or id. Raises SNAPSHOT_NOT_FOUND."""
        for each in await self._every(tenant, machine.id):
            known = names.of_checkpoint(each.name or "")
            if known is not None and name in (known[1], each.id):
                return each
        raise NotFoundError(
            f"This machine has no checkpoint {name[:63]!r}.", code="SNAPSHOT_NOT_FOUND"
        )

    async def _every(self, tenant: str, machine_id: str | None = None) -> list[Snapshot]:
        found: list[Snapshot] = []
        cursor: str | None = None
        while True:
            page = await self._s.snapshots.list(tenant, machine_id, PAGE, cursor)
            found += page.items
            cursor = page.next_cursor
            if cursor is None:
                return found


def _status(snapshot: Snapshot) -> str:
    return _STATUS.get(snapshot.status, "pending")


def _info(snapshot: Snapshot) -> pb.SnapshotInfo:
    name, version = names.version(snapshot.name or snapshot.id)
    at = int(snapshot.created_at.timestamp())
    return pb.SnapshotInfo(
        snapshot_id=snapshot.id,
        name=name,
        version=version,
        status=_status(snapshot),
        size_bytes=snapshot.size_bytes or 0,
        created_at=at,
        updated_at=at,
        vcpu=max(1, round(snapshot.vcpu)),
        memory_bytes=snapshot.memory_mib * shapes.MIB,
        storage="local",
    )
