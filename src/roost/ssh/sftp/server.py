"""Requests of one SFTP session, in order, as calls of the machine's files.

Paths are resolved by the agent inside the machine, links and ".." included; relative ones begin where commands do. A file
is made as the user of the session with the mode asked for, but for what a umask of 022 takes away.
"""

from __future__ import annotations

import posixpath
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime

from roost.errors import RoostError
from roost.services.executions import StartExecution
from roost.services.files import FileInfo, Write
from roost.ssh.pipe import Pipe
from roost.ssh.sftp import listing, wire
from roost.ssh.sftp.handles import OpenFile
from roost.ssh.sftp.listing import OpenDirectory
from roost.ssh.sftp.wire import Attrs, Flag, Kind, Malformed, Reader, Refused, Status
from roost.ssh.visit import Visit

VERSION = 3
HANDLES = 256  # open at once
UMASK = 0o022
TARGET_FIRST = ("OpenSSH", "paramiko")
HELPER_MS = 30_000
_CODES = {
    "FILE_NOT_FOUND": Status.NO_SUCH_FILE,
    "NOT_A_DIRECTORY": Status.NO_SUCH_FILE,
    "PERMISSION_DENIED": Status.PERMISSION_DENIED,
    "UNSUPPORTED": Status.OP_UNSUPPORTED,
}
EXTENSIONS = (
    (b"posix-rename@openssh.com", b"1"),
    (b"hardlink@openssh.com", b"1"),
    (b"fsync@openssh.com", b"1"),
    (b"limits@openssh.com", b"1"),
)
Answer = Awaitable[bytes]


class SftpServer:
    """``client``: the version it gave of itself."""

    def __init__(self, visit: Visit, pipe: Pipe, client: str = "") -> None:
        self._target_first = any(name in client for name in TARGET_FIRST)
        self._visit = visit
        self._pipe = pipe
        self._files = visit.inside.files
        self._where = (visit.tenant, visit.machine_id)
        self._handles: dict[bytes, OpenFile | OpenDirectory] = {}
        self._next = 0
        self._home = b"/"
        self._calls: dict[int, Callable[[int, Reader], Answer]] = {
            Kind.OPEN: self._open,
            Kind.CLOSE: self._close,
            Kind.READ: self._read,
            Kind.WRITE: self._write,
            Kind.LSTAT: self._lstat,
            Kind.FSTAT: self._fstat,
            Kind.SETSTAT: self._setstat,
            Kind.FSETSTAT: self._fsetstat,
            Kind.OPENDIR: self._opendir,
            Kind.READDIR: self._readdir,
            Kind.REMOVE: self._remove,
            Kind.MKDIR: self._mkdir,
            Kind.RMDIR: self._rmdir,
            Kind.REALPATH: self._realpath,
            Kind.STAT: self._stat,
            Kind.RENAME: self._rename,
            Kind.READLINK: self._readlink,
            Kind.SYMLINK: self._symlink,
            Kind.EXTENDED: self._extended,
        }

    async def run(self) -> None:
        """Until the client ends it. Raises BrokenPipeError, RoostError where the machine is lost at the start."""
        packets = wire.Packets()
        begun = False
        with self._visit.inside.machines.using(self._visit.machine_id):
            try:
                while data := await self._pipe.read():
                    packets.feed(data)
                    while (packet := packets.next()) is not None:
                        if begun:
                            await self._answer(packet)
                        else:
                            await self._begin(packet)
                            begun = True
            except Malformed:
                return  # no answer would be understood
            finally:
                for handle in self._handles.values():
                    if isinstance(handle, OpenFile):
                        await handle.abandon()

    async def _begin(self, packet: bytes) -> None:
        fields = Reader(packet)
        if fields.u8() != Kind.INIT:
            raise Malformed("no INIT")
        self._home = await self._directory()
        offered = b"".join(wire.string(n) + wire.string(v) for n, v in EXTENSIONS)
        await self._pipe.write(wire.packet(Kind.VERSION, struct.pack(">I", VERSION), offered))

    async def _answer(self, packet: bytes) -> None:
        fields = Reader(packet)
        kind, request = fields.u8(), fields.u32()
        call = self._calls.get(kind)
        try:
            if call is None:
                raise Refused(Status.OP_UNSUPPORTED)
            said = await call(request, fields)
        except Refused as refused:
            said = wire.status(request, refused.status, refused.message)
        except Malformed as failure:
            said = wire.status(request, Status.BAD_MESSAGE, str(failure))
        except RoostError as failure:
            said = wire.status(request, _CODES.get(failure.code, Status.FAILURE), failure.message)
        await self._pipe.write(said)

    # --- files ------------------------------------------------------------------------------------

    async def _open(self, request: int, fields: Reader) -> bytes:
        path, flags, wanted = self._path(fields), fields.u32(), fields.attrs()
        reads, writes = bool(flags & Flag.READ), bool(flags & (Flag.WRITE | Flag.APPEND))
        self._room()
        if writes:
            await self._make(path, flags, wanted)
        elif (await self._info(path)).kind not in ("file", "symlink"):
            raise Refused(Status.FAILURE, "not a regular file")
        file = OpenFile(self._visit, path, reads, writes, bool(flags & Flag.APPEND))
        return wire.reply(Kind.HANDLE, request, wire.string(self._kept(file)))

    async def _make(self, path: bytes, flags: int, wanted: Attrs) -> None:
        """There, and empty where that was asked."""
        mode = 0o666 if wanted.mode is None else wanted.mode
        new = Write(
            path,
            mode=mode & 0o777 & ~UMASK,
            owner=self._visit.user or "",
            make_parents=False,
            create_new=True,
        )
        if flags & Flag.CREATE and flags & Flag.EXCLUSIVE:
            await self._files.write(*self._where, new, _nothing())
            return
        try:
            info = await self._info(path)
        except RoostError as failure:
            if failure.code != "FILE_NOT_FOUND" or not flags & Flag.CREATE:
                raise
            await self._files.write(*self._where, new, _nothing())
            return
        if info.kind == "directory" or info.target_kind == "directory":
            raise Refused(Status.FAILURE, "is a directory")
        if flags & Flag.TRUNCATE and info.size:
            await self._truncate(path, 0, info)

    async def _truncate(self, path: bytes, size: int, info: FileInfo) -> None:
        """The agent has no call for it: a program of the machine does it, in place."""
        if info.size != size:
            await self._helper(["truncate", "-s", str(size), "--", _text(path)])

    async def _close(self, request: int, fields: Reader) -> bytes:
        handle = self._handles.pop(fields.string(), None)
        if handle is None:
            raise Refused(Status.FAILURE, "no such handle")
        if isinstance(handle, OpenFile):
            await handle.settle()
        return wire.status(request, Status.OK)

    async def _read(self, request: int, fields: Reader) -> bytes:
        file, offset, length = self._file(fields), fields.u64(), fields.u32()
        if not file.reads:
            raise Refused(Status.PERMISSION_DENIED, "not open for reading")
        data = await file.read(_offset(offset), length)
        if not data:
            return wire.status(request, Status.EOF)
        return wire.reply(Kind.DATA, request, wire.string(data))

    async def _write(self, request: int, fields: Reader) -> bytes:
        file, offset, data = self._file(fields), fields.u64(), fields.string()
        if not file.writes:
            raise Refused(Status.PERMISSION_DENIED, "not open for writing")
        if data:
            await file.write(_offset(offset), data)
        return wire.status(request, Status.OK)

    # --- what is known of them --------------------------------------------------------------------

    async def _stat(self, request: int, fields: Reader) -> bytes:
        info = await self._info(self._path(fields))
        return wire.reply(Kind.ATTRS, request, listing.attrs(info).encode())

    async def _lstat(self, request: int, fields: Reader) -> bytes:
        info = await self._info(self._path(fields), follow=False)
        return wire.reply(Kind.ATTRS, request, listing.attrs(info).encode())

    async def _fstat(self, request: int, fields: Reader) -> bytes:
        file = self._file(fields)
        await file.settle()
        return wire.reply(Kind.ATTRS, request, listing.attrs(await self._info(file.path)).encode())

    async def _setstat(self, request: int, fields: Reader) -> bytes:
        path = self._path(fields)
        await self._set(path, fields.attrs())
        return wire.status(request, Status.OK)

    async def _fsetstat(self, request: int, fields: Reader) -> bytes:
        file = self._file(fields)
        await file.settle()
        await self._set(file.path, fields.attrs())
        return wire.status(request, Status.OK)

    async def _set(self, path: bytes, wanted: Attrs) -> None:
        if wanted.size is not None:
            await self._truncate(path, _offset(wanted.size), await self._info(path))
        owner = ""
        if wanted.uid is not None and wanted.gid is not None:
            owner = f"{wanted.uid}:{wanted.gid}"
        mode = None if wanted.mode is None else wanted.mode & 0o7777
        mtime = None if wanted.mtime is None else datetime.fromtimestamp(wanted.mtime, UTC)
        if mode is not None or owner or mtime is not None:
            await self._files.set_attributes(*self._where, path, mode, owner, mtime)

    # --- directories and names --------------------------------------------------------------------

    async def _opendir(self, request: int, fields: Reader) -> bytes:
        path = self._path(fields)
        self._room()
        info = await self._info(path)
        if "directory" not in (info.kind, info.target_kind):
            raise Refused(Status.FAILURE, "not a directory")
        kept = self._kept(OpenDirectory(self._visit, path))
        return wire.reply(Kind.HANDLE, request, wire.string(kept))

    async def _readdir(self, request: int, fields: Reader) -> bytes:
        directory = self._handles.get(fields.string())
        if not isinstance(directory, OpenDirectory):
            raise Refused(Status.FAILURE, "no such handle")
        found = await directory.read()
        if not found:
            return wire.status(request, Status.EOF)
        return wire.names(
            request, [(info.name, listing.line(info), listing.attrs(info)) for info in found]
        )

    async def _remove(self, request: int, fields: Reader) -> bytes:
        path = self._path(fields)
        if (await self._info(path, follow=False)).kind == "directory":
            raise Refused(Status.FAILURE, "is a directory")
        await self._files.remove(*self._where, path)
        return wire.status(request, Status.OK)

    async def _rmdir(self, request: int, fields: Reader) -> bytes:
        path = self._path(fields)
        if (await self._info(path, follow=False)).kind != "directory":
            raise Refused(Status.FAILURE, "not a directory")
        await self._files.remove(*self._where, path)
        return wire.status(request, Status.OK)

    async def _mkdir(self, request: int, fields: Reader) -> bytes:
        path, wanted = self._path(fields), fields.attrs()
        mode = 0o777 if wanted.mode is None else wanted.mode
        await self._files.make_dir(
            *self._where, path, False, mode & 0o777 & ~UMASK, self._visit.user or ""
        )
        return wire.status(request, Status.OK)

    async def _realpath(self, request: int, fields: Reader) -> bytes:
        """By its text alone: what is a link stays one."""
        path = posixpath.normpath(self._path(fields))
        path = b"/" + path.lstrip(b"/")
        return wire.names(request, [(path, path, Attrs())])

    async def _readlink(self, request: int, fields: Reader) -> bytes:
        info = await self._info(self._path(fields), follow=False)
        if info.link_target is None:
            raise Refused(Status.FAILURE, "not a link")
        return wire.names(request, [(info.link_target, info.link_target, Attrs())])

    async def _rename(self, request: int, fields: Reader) -> bytes:
        source, destination = self._path(fields), self._path(fields)
        await self._files.move(*self._where, source, destination)
        return wire.status(request, Status.OK)

    async def _symlink(self, request: int, fields: Reader) -> bytes:
        """The draft has the link first and then what it leads to; OpenSSH's client has always done otherwise."""
        first, second = fields.string(), fields.string()
        target, link = (first, second) if self._target_first else (second, first)
        path = posixpath.join(self._home, link)
        await self._link(path, ["ln", "-s", "--", _text(target), _text(path)])
        return wire.status(request, Status.OK)

    async def _link(self, path: bytes, argv: list[str]) -> None:
        try:
            await self._info(path, follow=False)
        except RoostError as failure:
            if failure.code != "FILE_NOT_FOUND":
                raise
        else:
            raise Refused(Status.FAILURE, "it exists already")
        await self._helper(argv)

    async def _extended(self, request: int, fields: Reader) -> bytes:
        match fields.string():
            case b"posix-rename@openssh.com":
                source, destination = self._path(fields), self._path(fields)
                await self._files.move(*self._where, source, destination, overwrite=True)
            case b"hardlink@openssh.com":
                source, destination = self._path(fields), self._path(fields)
                await self._link(destination, ["ln", "--", _text(source), _text(destination)])
            case b"fsync@openssh.com":
                await self._file(fields).settle()
            case b"limits@openssh.com":
                limits = (wire.MAX_PACKET, wire.MAX_DATA, wire.MAX_DATA, HANDLES)
                return wire.reply(Kind.EXTENDED_REPLY, request, struct.pack(">QQQQ", *limits))
            case _:
                raise Refused(Status.OP_UNSUPPORTED)
        return wire.status(request, Status.OK)

    # --- helpers ----------------------------------------------------------------------------------

    def _path(self, fields: Reader) -> bytes:
        return posixpath.join(self._home, fields.string())

    def _file(self, fields: Reader) -> OpenFile:
        file = self._handles.get(fields.string())
        if not isinstance(file, OpenFile):
            raise Refused(Status.FAILURE, "no such handle")
        return file

    def _room(self) -> None:
        if len(self._handles) >= HANDLES:
            raise Refused(Status.FAILURE, f"{HANDLES} files are open, the most there may be")

    def _kept(self, handle: OpenFile | OpenDirectory) -> bytes:
        self._next += 1
        name = struct.pack(">Q", self._next)
        self._handles[name] = handle
        return name

    async def _info(self, path: bytes, follow: bool = True) -> FileInfo:
        return await self._files.stat(*self._where, path, follow)

    async def _directory(self) -> bytes:
        """Where the user's commands begin."""
        return (await self._helper(["pwd"])).removesuffix(b"\n") or b"/"

    async def _helper(self, argv: list[str]) -> bytes:
        """What a small program of the machine says, run as the session's user."""
        spec = StartExecution(argv, user=self._visit.user, timeout_ms=HELPER_MS, ours=True)
        row = await self._visit.inside.executions.run(*self._where, spec)
        if row.exit_code != 0:
            said = (row.stderr or b"").decode(errors="replace").strip()
            raise Refused(Status.FAILURE, said[:300] or f"{argv[0]} failed")
        return row.stdout or b""


async def _nothing() -> AsyncGenerator[bytes, None]:
    return
    yield b""


def _text(path: bytes) -> str:
    try:
        return path.decode()
    except UnicodeDecodeError:
        raise Refused(Status.FAILURE, "a name that is not UTF-8 cannot be linked or cut") from None


def _offset(value: int) -> int:
    if value > 1 << 50:
        raise Refused(Status.FAILURE, "beyond the end of any file")
    return value
