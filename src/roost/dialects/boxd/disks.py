"""Disks: native volumes, which a machine takes when it is made and lets go of when it is destroyed."""

from __future__ import annotations

from collections.abc import Iterable

from roost.api.v1.services import Services
from roost.dialects.boxd import names, shapes
from roost.dialects.boxd.wire import boxd_pb2 as pb
from roost.dialects.serving import not_served
from roost.errors import InvalidRequestError, NotFoundError
from roost.gateway.calls import Call, Method
from roost.services.models import Attach, Volume

PAGE = 500


class Disks:
    def __init__(self, services: Services) -> None:
        self._s = services

    def methods(self) -> list[Method]:
        return [
            Method("CreateDisk", pb.CreateDiskRequest, self.create),
            Method("ListDisks", pb.Empty, self.listed, reads=True),
            Method("DestroyDisk", pb.DiskRef, self.destroy),
            Method("AttachDisk", pb.DiskRef, self.plug, reads=True),
            Method("DetachDisk", pb.DiskRef, self.plug, reads=True),
        ]

    async def create(self, call: Call, asked: pb.CreateDiskRequest) -> pb.CreateDiskResponse:
        """Of whole GiB; at least as large as was asked."""
        if not asked.size_bytes:
            raise InvalidRequestError("size: say how large.", details={"field": "size_bytes"})
        gib = -(-asked.size_bytes // shapes.GIB)
        made = await self._s.volumes.create(call.tenant, asked.name, gib, call.who.key_id)
        return pb.CreateDiskResponse(
            disk_id=made.id, name=made.name, size_bytes=made.size_gib * shapes.GIB, status="ready"
        )

    async def listed(self, call: Call, asked: pb.Empty) -> pb.ListDisksResponse:
        found: list[pb.DiskInfo] = []
        cursor: str | None = None
        while True:
            page = await self._s.volumes.list(call.tenant, PAGE, cursor)
            found += [await self._info(call.tenant, each) for each in page.items]
            cursor = page.next_cursor
            if cursor is None:
                return pb.ListDisksResponse(disks=found)

    async def destroy(self, call: Call, asked: pb.DiskRef) -> pb.Empty:
        await self._s.volumes.delete(call.tenant, asked.disk_id)
        return pb.Empty()

    async def plug(self, call: Call, asked: pb.DiskRef) -> pb.Empty:
        raise not_served(
            "putting disks into machines there are, or taking them out",
            "Name them in volumes when the machine is made; they are free again when it is destroyed.",
        )

    async def _info(self, tenant: str, volume: Volume) -> pb.DiskInfo:
        held = [
            pb.DiskAttachment(
                vm_id=each.machine_id,
                vm_name=await self._name(tenant, each.machine_id),
                mount_path=each.path,
                mount_mode="ro" if each.read_only else "rw",
            )
            for each in volume.attachments
        ]
        return pb.DiskInfo(
            disk_id=volume.id,
            name=volume.name,
            size_bytes=volume.size_gib * shapes.GIB,
            status="ready",
            attachments=held,
            created_at=int(volume.created_at.timestamp()),
        )

    async def _name(self, tenant: str, machine_id: str) -> str:
        try:
            return names.of_machine(await self._s.machines.get(tenant, machine_id))
        except NotFoundError:
            return machine_id


def asked(mounts: Iterable[pb.VolumeMount]) -> list[Attach]:
    return [Attach(each.disk_id, each.mount_path, each.read_only) for each in mounts]
