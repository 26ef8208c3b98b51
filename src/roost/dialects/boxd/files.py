"""Files of machines, whole and in pieces."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import AsyncGenerator, AsyncIterator

from roost.api.v1.services import Services
from roost.dialects.boxd import shapes
from roost.dialects.boxd.wire import boxd_pb2 as pb
from roost.errors import InvalidRequestError, MachineError
from roost.gateway.calls import Call, Method
from roost.services.executions import StartExecution
from roost.services.files import FileInfo, Write

ENTRIES = 10_000  # of a listing; beyond it is truncated
_PAGE = 1000
_WHOLE = 15 * 2**20  # of a file in one message
_EMPTY = pb.Empty()
_TYPES = {"directory": stat.S_IFDIR, "symlink": stat.S_IFLNK, "file": stat.S_IFREG}


class Files:
    def __init__(self, services: Services) -> None:
        self._s = services

    def methods(self) -> list[Method]:
        return [
            Method("UploadFile", pb.UploadFileRequest, self.upload, lasting=False),
            Method(
                "UploadFileStream", pb.UploadFileChunk, self.upload_stream, lasting=False, many=True
            ),
            Method("DownloadFile", pb.PathRequest, self.download, reads=True),
            Method(
                "DownloadFileStream", pb.PathRequest, self.download_stream, reads=True, streams=True
            ),
            Method("ListDir", pb.PathRequest, self.listed, reads=True),
            Method("Mkdir", pb.PathRequest, self.mkdir, lasting=False),
            Method("DeletePath", pb.PathRequest, self.delete, lasting=False),
            Method("RenamePath", pb.TwoPathsRequest, self.rename, lasting=False),
            Method("CopyPath", pb.TwoPathsRequest, self.copy, lasting=False),
        ]

    async def upload(self, call: Call, asked: pb.UploadFileRequest) -> pb.UploadFileResponse:
        machine_id = await shapes.machine_id(self._s, call, asked.vm_id)

        async def data() -> AsyncGenerator[bytes, None]:
            yield asked.data

        spec = Write(asked.path.encode())
        info = await self._s.files.write(call.tenant, machine_id, spec, data())
        return pb.UploadFileResponse(bytes_written=info.size)

    async def upload_stream(
        self, call: Call, asked: AsyncIterator[pb.UploadFileChunk]
    ) -> pb.UploadFileResponse:
        """Exactly as much as the first piece says; else the file stays as it was."""
        first = await anext(asked, None)
        if first is None or not first.vm_id:
            raise InvalidRequestError("The first piece names the machine and the path.")
        machine_id = await shapes.machine_id(self._s, call, first.vm_id)

        async def data() -> AsyncGenerator[bytes, None]:
            size = len(first.data)
            if first.data:
                yield first.data
            async for each in asked:
                size += len(each.data)
                if size > first.total_size:
                    break
                if each.data:
                    yield each.data
            if size != first.total_size:
                raise InvalidRequestError(
                    f"total_size: {first.total_size} bytes were announced, and "
                    f"{'more' if size > first.total_size else f'{size}'} came."
                )

        spec = Write(first.path.encode())
        info = await self._s.files.write(call.tenant, machine_id, spec, data())
        return pb.UploadFileResponse(bytes_written=info.size)

    async def download(self, call: Call, asked: pb.PathRequest) -> pb.DownloadFileResponse:
        machine_id = await shapes.machine_id(self._s, call, asked.vm_id)
        found = await self._s.files.read(call.tenant, machine_id, asked.path.encode())
        async with contextlib.aclosing(found.data):
            if found.length > _WHOLE:
                raise InvalidRequestError(
                    f"The file has {found.length} bytes, and one message {_WHOLE} at most: a newer client reads it in "
                    "pieces.",
                    code="PAYLOAD_TOO_LARGE",
                )
            return pb.DownloadFileResponse(data=b"".join([each async for each in found.data]))

    async def download_stream(
        self, call: Call, asked: pb.PathRequest
    ) -> AsyncGenerator[pb.DownloadFileChunk, None]:
        machine_id = await shapes.machine_id(self._s, call, asked.vm_id)
        found = await self._s.files.read(call.tenant, machine_id, asked.path.encode())
        async with contextlib.aclosing(found.data):
            yield pb.DownloadFileChunk(total_size=found.length)
            async for each in found.data:
                yield pb.DownloadFileChunk(data=each)

    async def listed(self, call: Call, asked: pb.PathRequest) -> pb.ListDirResponse:
        machine_id = await shapes.machine_id(self._s, call, asked.vm_id)
        found: list[pb.DirEntry] = []
        cursor: str | None = None
        while True:
            page = await self._s.files.list(
                call.tenant, machine_id, asked.path.encode(), _PAGE, cursor
            )
            found += [_entry(each) for each in page.items]
            cursor = page.next_cursor
            if cursor is None or len(found) >= ENTRIES:
                return pb.ListDirResponse(entries=found, truncated=cursor is not None)

    async def mkdir(self, call: Call, asked: pb.PathRequest) -> pb.Empty:
        machine_id = await shapes.machine_id(self._s, call, asked.vm_id)
        await self._s.files.make_dir(call.tenant, machine_id, asked.path.encode(), parents=False)
        return _EMPTY

    async def delete(self, call: Call, asked: pb.PathRequest) -> pb.Empty:
        machine_id = await shapes.machine_id(self._s, call, asked.vm_id)
        await self._s.files.remove(call.tenant, machine_id, asked.path.encode(), recursive=True)
        return _EMPTY

    async def rename(self, call: Call, asked: pb.TwoPathsRequest) -> pb.Empty:
        machine_id = await shapes.machine_id(self._s, call, asked.vm_id)
        old, new = asked.old_path.encode(), asked.new_path.encode()
        await self._s.files.move(call.tenant, machine_id, old, new)
        return _EMPTY

    async def copy(self, call: Call, asked: pb.TwoPathsRequest) -> pb.Empty:
        """By the machine's own cp."""
        machine_id = await shapes.machine_id(self._s, call, asked.vm_id)
        await self._s.files.stat(call.tenant, machine_id, asked.old_path.encode(), follow=False)
        command = ["cp", "-a", "-T", "--", asked.old_path, asked.new_path]
        spec = StartExecution(command, ours=True)
        ended = await self._s.executions.run(call.tenant, machine_id, spec)
        if ended.exit_code:
            said = (ended.stderr or b"").decode(errors="replace").strip()[:500]
            raise MachineError(f"It could not be copied: {said or ended.exit_code}")
        return _EMPTY


def _entry(info: FileInfo) -> pb.DirEntry:
    """``added_at``: there is no time of birth; that of the last change."""
    directory = info.kind == "directory"
    changed = info.mtime_ns // 10**9
    return pb.DirEntry(
        name=info.name.decode(errors="replace"),
        is_dir=directory,
        size_bytes=0 if directory else info.size,
        permissions=stat.filemode(_TYPES.get(info.kind, 0) | info.mode),
        modified_at=changed,
        added_at=changed,
    )
