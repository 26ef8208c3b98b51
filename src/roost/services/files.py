"""Files of machines, all of it done by the agent inside: no path is ever resolved on the host.

Paths are absolute. In a machine that is a directory of the host they may be relative to that, and absolute ones lie in it:
its agent refuses others.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from roost.agent.v1 import agent_pb2 as pb
from roost.errors import InvalidRequestError
from roost.services.machines import Machines
from roost.services.models import Live, Page

T = TypeVar("T")
MAX_PATH = 4095
MAX_OFFSET = 1 << 50
_OWNER = re.compile(r"[A-Za-z0-9._-]{0,64}(:[A-Za-z0-9._-]{1,64})?", re.ASCII)
_KINDS = {
    pb.FILE_KIND_FILE: "file",
    pb.FILE_KIND_DIRECTORY: "directory",
    pb.FILE_KIND_SYMLINK: "symlink",
    pb.FILE_KIND_OTHER: "other",
}
_EVENTS = {
    pb.WatchEvent.KIND_READY: "ready",
    pb.WatchEvent.KIND_CREATED: "created",
    pb.WatchEvent.KIND_MODIFIED: "modified",
    pb.WatchEvent.KIND_REMOVED: "removed",
    pb.WatchEvent.KIND_MOVED: "moved",
    pb.WatchEvent.KIND_ATTRIBUTES: "attributes",
    pb.WatchEvent.KIND_OVERFLOW: "overflow",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class FileInfo:
    path: bytes
    name: bytes
    kind: str  # file | directory | symlink | other
    size: int
    mode: int
    uid: int
    gid: int
    owner: str
    group: str
    mtime_ns: int
    link_target: bytes | None
    target_kind: str | None

    @property
    def mtime(self) -> datetime:
        return at_ns(self.mtime_ns)

    @property
    def etag(self) -> str:
        """Changes with every write that changes size or time."""
        return f'"{self.mtime_ns:x}-{self.size:x}"'


@dataclass(frozen=True, slots=True)
class Reading:
    """A file opened: ``length`` bytes from ``offset`` come from ``data``, which must be closed."""

    info: FileInfo
    offset: int
    length: int
    data: AsyncGenerator[bytes, None]


@dataclass(frozen=True, slots=True)
class Write:
    path: bytes
    mode: int | None = None
    owner: str = ""
    make_parents: bool = True
    append: bool = False
    create_new: bool = False
    offset: int | None = None  # in place, from there
    sync: bool = False


@dataclass(frozen=True, slots=True)
class FileEvent:
    kind: str  # ready created modified removed moved attributes overflow
    path: bytes
    new_path: bytes | None
    directory: bool


class Files:
    """Every call takes the caller's tenant first, wakes the machine, and raises INVALID_PATH,
    FILE_NOT_FOUND, PERMISSION_DENIED, NOT_A_DIRECTORY, MACHINE_DISK_FULL and their like."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines

    async def read(
        self,
        tenant: str,
        machine_id: str,
        path: bytes,
        offset: int = 0,
        length: int = 0,
        suffix: int = 0,
    ) -> Reading:
        """From ``offset``, ``length`` bytes (0: to the end), or the last ``suffix``. A part that lies beyond
        the end is RANGE_NOT_SATISFIABLE only by ``length`` 0 coming back; a file that grows meanwhile is
        read to where it ended."""
        live, path = await self._at(tenant, machine_id, path)
        head, data = await live.agent.read_file(path, offset, length, suffix)
        return Reading(_info(head.info), head.offset, head.length, self._in_use(machine_id, data))

    async def write(
        self, tenant: str, machine_id: str, spec: Write, data: AsyncIterable[bytes]
    ) -> FileInfo:
        """Replaces the file in one step once ``data`` has ended; if that raises, the old file stays."""
        _write_header(spec)
        live, path = await self._at(tenant, machine_id, spec.path)
        header = _write_header(replace(spec, path=path))
        with self._machines.using(machine_id):
            return _info(await live.agent.write_file(header, data))

    async def stat(
        self, tenant: str, machine_id: str, path: bytes, follow: bool = True
    ) -> FileInfo:
        live, path = await self._at(tenant, machine_id, path)
        return _info(await live.agent.stat(path, follow))

    async def list(
        self, tenant: str, machine_id: str, path: bytes, limit: int = 100, cursor: str | None = None
    ) -> Page[FileInfo]:
        """Entries by name, bytewise. Raises INVALID_CURSOR."""
        after = _read_cursor(cursor) if cursor else b""
        live, path = await self._at(tenant, machine_id, path)
        reply = await live.agent.list_dir(path, limit, after)
        items = [_info(entry) for entry in reply.entries]
        return Page(items, _write_cursor(items[-1].name) if reply.more else None)

    async def make_dir(
        self,
        tenant: str,
        machine_id: str,
        path: bytes,
        parents: bool = True,
        mode: int | None = None,
        owner: str = "",
    ) -> FileInfo:
        """With ``parents`` one that is there already will do."""
        check_owner(owner)
        live, path = await self._at(tenant, machine_id, path)
        request = pb.MakeDirRequest(path=path, parents=parents, permissions=mode, owner=owner)
        return _info(await live.agent.make_dir(request))

    async def move(
        self,
        tenant: str,
        machine_id: str,
        source: bytes,
        destination: bytes,
        overwrite: bool = False,
    ) -> FileInfo:
        """Raises FILE_EXISTS unless ``overwrite``."""
        destination = await self._absolute(tenant, machine_id, destination)
        live, source = await self._at(tenant, machine_id, source)
        with self._machines.using(machine_id):
            return _info(await live.agent.move(source, destination, overwrite))

    async def remove(
        self, tenant: str, machine_id: str, path: bytes, recursive: bool = False
    ) -> None:
        """Raises DIRECTORY_NOT_EMPTY unless ``recursive``; ``/`` is refused."""
        live, path = await self._at(tenant, machine_id, path)
        with self._machines.using(machine_id):
            await live.agent.remove(path, recursive)

    async def set_attributes(
        self,
        tenant: str,
        machine_id: str,
        path: bytes,
        mode: int | None = None,
        owner: str = "",
        mtime: datetime | None = None,
        recursive: bool = False,
    ) -> FileInfo:
        check_owner(owner)
        mtime_ns = None
        if mtime is not None:
            mtime_ns = (mtime - _EPOCH) // timedelta(microseconds=1) * 1000
        live, path = await self._at(tenant, machine_id, path)
        request = pb.SetAttributesRequest(
            path=path, mode=mode, owner=owner, mtime_unix_ns=mtime_ns, recursive=recursive
        )
        with self._machines.using(machine_id):
            return _info(await live.agent.set_attributes(request))

    async def tar_out(
        self, tenant: str, machine_id: str, path: bytes
    ) -> AsyncGenerator[bytes, None]:
        """A pax tar; close the generator."""
        live, path = await self._at(tenant, machine_id, path)
        return self._in_use(machine_id, live.agent.tar_out(path))

    async def tar_in(
        self,
        tenant: str,
        machine_id: str,
        path: bytes,
        data: AsyncIterable[bytes],
        owner: str = "",
    ) -> tuple[int, int]:
        """Unpacks below ``path``; entries and bytes. What was unpacked before a failure stays."""
        check_owner(owner)
        live, path = await self._at(tenant, machine_id, path)
        with self._machines.using(machine_id):
            reply = await live.agent.tar_in(pb.TarInHeader(path=path, owner=owner), data)
        return reply.entries, reply.bytes

    async def watch(
        self,
        tenant: str,
        machine_id: str,
        path: bytes,
        recursive: bool = True,
        keep_awake: bool = True,
    ) -> AsyncGenerator[FileEvent, None]:
        """``ready`` first, then what happens, for as long as it is iterated; close the generator. ``keep_awake``:
        meanwhile the machine is not idle."""
        live, path = await self._at(tenant, machine_id, path)
        events = _events(live.agent.watch(path, recursive))
        return self._in_use(machine_id, events) if keep_awake else events

    async def _at(self, tenant: str, machine_id: str, path: bytes) -> tuple[Live, bytes]:
        """The machine awake, and the path as its agent is told it."""
        path = await self._absolute(tenant, machine_id, path)
        return await self._machines.awake(tenant, machine_id), path

    async def _absolute(self, tenant: str, machine_id: str, path: bytes) -> bytes:
        if path and not path.startswith(b"/"):
            home = await self._machines.home(tenant, machine_id)
            if home is not None:
                path = b"/".join((os.fsencode(home), path))
        check_path(path)
        return path

    async def _in_use(
        self, machine_id: str, data: AsyncGenerator[T, None]
    ) -> AsyncGenerator[T, None]:
        """The same; whoever reads it keeps the machine awake."""
        with self._machines.using(machine_id):
            async with contextlib.aclosing(data):
                async for each in data:
                    yield each


async def _events(
    said: AsyncGenerator[pb.WatchEvent, None],
) -> AsyncGenerator[FileEvent, None]:
    try:
        async for event in said:
            kind = _EVENTS.get(event.kind)
            if kind is not None:
                yield FileEvent(kind, event.path, event.new_path or None, event.directory)
    finally:
        await said.aclose()


def at_ns(since_1970: int) -> datetime:
    return _EPOCH + timedelta(microseconds=since_1970 // 1000)


def check_path(path: bytes) -> None:
    """Raises INVALID_PATH."""
    if not path.startswith(b"/") or b"\0" in path or len(path) > MAX_PATH:
        raise InvalidRequestError(
            "A path is absolute, without NUL, and at most 4095 bytes long.", code="INVALID_PATH"
        )


def check_owner(owner: str) -> None:
    """Raises VALIDATION_FAILED."""
    if owner and not _OWNER.fullmatch(owner):
        raise InvalidRequestError('owner: "user", "user:group" or numbers.')


def _write_header(spec: Write) -> pb.WriteFileHeader:
    check_owner(spec.owner)
    if (spec.append, spec.create_new, spec.offset is not None).count(True) > 1:
        raise InvalidRequestError("append, create_new and offset exclude each other.")
    if spec.append:
        mode = pb.WriteFileHeader.MODE_APPEND
    elif spec.create_new:
        mode = pb.WriteFileHeader.MODE_CREATE_NEW
    elif spec.offset is not None:
        if not 0 <= spec.offset <= MAX_OFFSET:
            raise InvalidRequestError(f"offset: from 0 to {MAX_OFFSET}.")
        mode = pb.WriteFileHeader.MODE_AT_OFFSET
    else:
        mode = pb.WriteFileHeader.MODE_REPLACE
    return pb.WriteFileHeader(
        path=spec.path,
        mode=mode,
        offset=spec.offset or 0,
        permissions=spec.mode,
        owner=spec.owner,
        make_parents=spec.make_parents,
        sync=spec.sync,
    )


def _info(said: pb.FileInfo) -> FileInfo:
    kind = _KINDS.get(said.kind, "other")
    return FileInfo(
        path=said.path,
        name=said.name,
        kind=kind,
        size=said.size,
        mode=said.mode & 0o7777,
        uid=said.uid,
        gid=said.gid,
        owner=said.owner,
        group=said.group,
        mtime_ns=said.mtime_unix_ns,
        link_target=said.link_target if kind == "symlink" else None,
        target_kind=_KINDS.get(said.target_kind) if kind == "symlink" else None,
    )


def _write_cursor(name: bytes) -> str:
    return base64.urlsafe_b64encode(b"n" + name).decode().rstrip("=")


def _read_cursor(cursor: str) -> bytes:
    try:
        raw = base64.b64decode(cursor.encode() + b"=" * (-len(cursor) % 4), b"-_", validate=True)
    except (ValueError, binascii.Error):
        raw = b""
    if not raw.startswith(b"n") or len(raw) > 4096:
        raise InvalidRequestError(
            "This cursor is not one of this list's: use next_cursor of the answer before, or none.",
            code="INVALID_CURSOR",
        )
    return raw[1:]
