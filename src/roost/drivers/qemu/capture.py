"""Memory snapshots of a running VMM: live, of the whole; or stopped, of what it changed.

```
live     migrate to a file while the guest runs --> it stops by itself, whole --> disk --> cont | settle, manifest
delta    stop --> device state --> reflink of the file it was restored from + its private pages | manifest
```
A VMM maps its guest's memory privately from a snapshot file; pages that the guest wrote since are anonymous
pages of the VMM, which ``/proc/PID/pagemap`` tells. A delta writes only those, into a reflink, and puts the
new device state in place of the old one: the result is a snapshot like any other, however long the chain.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from roost.drivers import saved
from roost.drivers.qemu import manifest as manifests
from roost.drivers.qemu import mappedram, options
from roost.drivers.qemu.manifest import Manifest
from roost.drivers.qemu.mappedram import SnapshotInvalid
from roost.drivers.qemu.qmp import Qmp, VmmError
from roost.errors import CapacityError
from roost.host import files
from roost.lasting import to_the_end

T = TypeVar("T")
_FDSET = 10  # the saving's own; disks have others
_TARGET = f"/dev/fdset/{_FDSET}"
_DOWNTIME_MS = 50
_CONVERGE_S = 10.0  # a guest that writes faster than we save is stopped after that
_SAVE_S = 120.0
_STEP_S = 10.0
_CHUNK = 1 << 20
_FINAL = ("completed", "failed", "cancelled")

# /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst): of an entry's last byte, bit 7 present,
# 6 swapped, 5 a page of a file. Present or swapped and not the file's: the VMM's own.
_PRIVATE = bytes(int(bool(top & 0xC0) and not top & 0x20) for top in range(256))
_ENTRY = 8


@dataclass(frozen=True, slots=True)
class Source:
    """The VMM to capture and what its snapshot's manifest will say."""

    qmp: Qmp
    pid: int
    runtime: str
    guest: str
    fingerprint: dict[str, object]
    tsc_khz: int
    memory_bytes: int  # of the guest
    snapshot: tuple[int, int] | None  # device and inode of the file that its memory is mapped from


async def live(
    source: Source, into: Path, disk: Path, disk_to: Path, *, durable: bool
) -> tuple[Manifest, float]:
    """Whole memory into the directory ``into``, and of the same instant ``disk``, the guest's, reflinked to
    ``disk_to``. The guest runs on, whatever happens; on failure there is neither. The pause in ms. Without
    ``durable`` they do not outlast a power cut, and must then not be kept. Raises VmmError, CapacityError
    STORAGE_FULL, OSError."""
    qmp, path = source.qmp, into / manifests.MEMORY
    try:
        # What is on its way to the image goes while the guest runs, not while it is stopped.
        await _in_thread(files.sync, disk)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            async with _running_again(qmp):
                async with _target(qmp, path):
                    stopped = await _save(qmp)
                    await _in_thread(files.reflink, disk, disk_to, durable=False)
                    await resume(qmp)
                    paused_ms = (time.monotonic() - stopped) * 1000
            if durable:
                await _in_thread(files.sync, disk_to)
                await _in_thread(files.sync_dir, disk_to.parent)
            made = await _in_thread(_seal_whole, source, fd, into, durable)
        finally:
            os.close(fd)
    except BaseException:
        saved.clear(into)
        with contextlib.suppress(OSError):
            os.unlink(disk_to)
        raise
    return made, paused_ms


async def disk_alone(qmp: Qmp, disk: Path, disk_to: Path, *, durable: bool) -> float:
    """As ``live`` without memory; the pause in ms."""
    await _in_thread(files.sync, disk)
    try:
        stopped = time.monotonic()
        try:
            await qmp.execute("stop", timeout_s=_STEP_S)
            await _in_thread(files.reflink, disk, disk_to, durable=False)
        finally:
            await asyncio.shield(resume(qmp))
        paused_ms = (time.monotonic() - stopped) * 1000
        if durable:
            await _in_thread(files.sync, disk_to)
            await _in_thread(files.sync_dir, disk_to.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(disk_to)
        raise
    return paused_ms


async def _in_thread(function: Callable[..., T], *args: Any, **named: Any) -> T:
    """Cancelled, it ends when the thread does: what that has open or writes to is then the caller's again."""
    return await to_the_end(asyncio.to_thread(function, *args, **named))


async def whole(source: Source, into: Path) -> Manifest:
    """As ``live``, durable, but the guest stays stopped. After a failure it runs again."""
    path = into / manifests.MEMORY
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            async with _running_again(source.qmp):
                async with _target(source.qmp, path):
                    await _save(source.qmp)
                return await _in_thread(_seal_whole, source, fd, into, True)
        finally:
            os.close(fd)
    except BaseException:
        saved.clear(into)
        raise


async def delta(source: Source, into: Path) -> Manifest:
    """Stops the guest and saves it as ``live`` does, as the change to ``source.snapshot``. The guest stays
    stopped; after a failure it runs again. Raises as ``live``; SnapshotInvalid where the VMM's memory is not
    mapped from that file."""
    qmp, path = source.qmp, into / manifests.MEMORY
    assert source.snapshot is not None
    try:
        await qmp.execute("stop", timeout_s=_STEP_S)
        try:
            state = await _device_state(qmp, into / ".devices")
            return await _in_thread(_write_delta, source, path, state)
        except BaseException:
            await asyncio.shield(resume(qmp))
            raise
    except BaseException:
        saved.clear(into)
        raise


async def prepare(qmp: Qmp) -> None:
    """Once per connection, before ``live`` or ``load``."""
    names = ("mapped-ram", "events")
    await qmp.execute(
        "migrate-set-capabilities",
        {"capabilities": [{"capability": name, "state": True} for name in names]},
    )


async def load(qmp: Qmp, memory: str = options.MEMORY) -> None:
    """Into a VMM that waits for it, from the file that it has under that name; the guest is stopped on
    return. Raises SnapshotInvalid where it cannot, else VmmError."""
    await prepare(qmp)
    async with _within(_SAVE_S):
        with qmp.listen("MIGRATION") as events:
            await qmp.execute("migrate-incoming", {"uri": f"file:{memory}"}, timeout_s=_STEP_S)
            while (status := (await events.next(_SAVE_S)).data.get("status")) not in _FINAL:
                pass
    if status != "completed":
        raise SnapshotInvalid(f"The VMM could not load the snapshot: {await _why(qmp)}.")


async def resume(qmp: Qmp) -> None:
    """The guest runs. A save that has just ended is, for a moment, not over for the VMM, and it has no
    event for that."""
    async with _within(_STEP_S):
        while (await qmp.execute("query-status")).get("status") == "finish-migrate":  # noqa: ASYNC110
            await asyncio.sleep(0.0005)
    await qmp.execute("cont", timeout_s=_STEP_S)


# --- live ----------------------------------------------------------------------------------------------


async def _save(qmp: Qmp) -> float:
    """Until the guest is stopped and the file whole; when it stopped, by our clock."""
    await prepare(qmp)
    parameters = {"max-bandwidth": 1 << 40, "downtime-limit": _DOWNTIME_MS}
    await qmp.execute("migrate-set-parameters", parameters)
    stopped: float | None = None
    deadline = time.monotonic() + _SAVE_S
    converge = time.monotonic() + _CONVERGE_S
    with qmp.listen("MIGRATION", "STOP") as events:
        await qmp.execute("migrate", {"uri": f"file:{_TARGET}"}, timeout_s=_STEP_S)
        while True:
            now = time.monotonic()
            try:
                event = await events.next(min(deadline, converge) - now)
            except VmmError as exc:
                if exc.code != "TIMEOUT" or time.monotonic() >= deadline:
                    raise
                converge = deadline
                await qmp.execute("stop", timeout_s=_STEP_S)
                continue
            if event.name == "STOP":
                stopped = time.monotonic()
            elif (status := event.data.get("status")) in _FINAL:
                break
    if status != "completed":
        why = await _why(qmp)
        if "No space left" in why:
            raise CapacityError(
                "The disk pool is full: the machine's memory could not be saved. Free space, then try again.",
                code="STORAGE_FULL",
            )
        raise VmmError(f"The machine's memory could not be saved: {why}.")
    return time.monotonic() if stopped is None else stopped


@contextlib.asynccontextmanager
async def _running_again(qmp: Qmp) -> AsyncIterator[None]:
    """After a failure or cancellation in the block no save goes on and the guest runs."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(VmmError):
            await asyncio.shield(give_up(qmp))
        raise


@contextlib.asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    """In all, however often the VMM says something. Raises VmmError TIMEOUT."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise VmmError(f"The VMM was not done within {seconds:g} s.", code="TIMEOUT") from None


async def give_up(qmp: Qmp) -> None:
    """No save goes on and the guest runs."""
    async with _within(_STEP_S):
        with qmp.listen("MIGRATION") as events:
            status = (await qmp.execute("query-migrate")).get("status", "none")
            if status not in (*_FINAL, "none"):
                await qmp.execute("migrate_cancel")
                while (await events.next(_STEP_S)).data.get("status") not in _FINAL:
                    pass
    await resume(qmp)


@contextlib.asynccontextmanager
async def _target(qmp: Qmp, path: Path) -> AsyncIterator[None]:
    """``path`` is what the VMM, which can open nothing, writes to as ``_TARGET``."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        await qmp.execute("add-fd", {"fdset-id": _FDSET}, fd=fd)
    finally:
        os.close(fd)
    try:
        yield
    finally:
        with contextlib.suppress(VmmError):
            await asyncio.shield(qmp.execute("remove-fd", {"fdset-id": _FDSET}))


async def _why(qmp: Qmp) -> str:
    with contextlib.suppress(VmmError):
        info = await qmp.execute("query-migrate")
        return str(info.get("error-desc", "it does not say why"))[:300]
    return "it does not say why"


def _seal_whole(source: Source, fd: int, into: Path, durable: bool) -> Manifest:
    layout = mappedram.read_layout(fd, source.memory_bytes)
    memory_bytes = mappedram.settle(fd, layout.block(options.BLOCK))
    return _seal(source, fd, into, layout, memory_bytes, durable)


def _seal(
    source: Source,
    fd: int,
    into: Path,
    layout: mappedram.Layout,
    memory_bytes: int,
    durable: bool,
) -> Manifest:
    """The manifest last, when all it speaks of is durable. Readable by any VMM, in a directory that only the
    daemon reaches into."""
    os.fchmod(fd, 0o444)
    if durable:
        os.fsync(fd)
        files.sync_dir(into)
    made = Manifest(
        format=manifests.FORMAT,
        runtime=source.runtime,
        vmm_version=source.qmp.version,
        guest=source.guest,
        fingerprint=source.fingerprint,
        pages_offset=layout.block(options.BLOCK).pages_offset,
        file_size=layout.size,
        state_digest=manifests.digest(fd, layout),
        memory_bytes=memory_bytes,
        tsc_khz=source.tsc_khz,
    )
    manifests.write(into, made, durable=durable)
    return made


# --- delta ---------------------------------------------------------------------------------------------


async def _device_state(qmp: Qmp, path: Path) -> bytes:
    """The sections of a stream without memory. QEMU can save such a stream but not load it, nor need it."""
    try:
        async with _target(qmp, path):
            await qmp.execute(
                "xen-save-devices-state", {"filename": _TARGET, "live": False}, timeout_s=_STEP_S
            )
        return mappedram.device_sections(await _in_thread(_read_bounded, path))
    finally:
        os.unlink(path)


def _read_bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(mappedram.MAX_STATE + 1)


def _write_delta(source: Source, path: Path, sections: bytes) -> Manifest:
    mapping = _mapping(source)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _reflink_mapped(source, mapping, fd)
        layout = mappedram.read_layout(fd, source.memory_bytes)
        block = layout.block(options.BLOCK)
        if (mapping.offset, mapping.length) != (block.pages_offset, block.length):
            raise _not_as_started()
        written = _copy_private_pages(source.pid, mapping.start, block, fd)
        mappedram.replace_devices(fd, layout, sections)
        layout = mappedram.read_layout(fd, source.memory_bytes)  # with the new devices
        return _seal(source, fd, path.parent, layout, written, durable=True)
    finally:
        os.close(fd)


def _reflink_mapped(source: Source, mapping: _Mapping, target: int) -> None:
    """From what the VMM has mapped, not by a name: that file may be deleted by now, or be another."""
    link = f"/proc/{source.pid}/map_files/{mapping.start:x}-{mapping.start + mapping.length:x}"
    origin = os.open(link, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(origin)
        if (status.st_dev, status.st_ino) != source.snapshot:
            raise _not_as_started()
        files.reflink_fd(origin, target)
    finally:
        os.close(origin)


def _copy_private_pages(pid: int, base: int, block: mappedram.Block, fd: int) -> int:
    """The VMM must be stopped. Bytes written."""
    pages = block.length // mappedram.PAGE
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(base // mappedram.PAGE * _ENTRY)
        entries = pagemap.read(pages * _ENTRY)
    if len(entries) != pages * _ENTRY:
        raise SnapshotInvalid(
            "The VMM's memory cannot be told; its machine is saved whole instead."
        )
    written = 0
    buffer = memoryview(bytearray(_CHUNK))
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for first, end in mappedram.runs(entries[_ENTRY - 1 :: _ENTRY].translate(_PRIVATE), b"\1"):
            at, stop = first * mappedram.PAGE, end * mappedram.PAGE
            while at < stop:
                part = buffer[: min(_CHUNK, stop - at)]
                count = os.preadv(memory, [part], base + at)
                if count <= 0 or os.pwrite(fd, part[:count], block.pages_offset + at) != count:
                    raise OSError("a page could not be copied")
                at += count
            written += stop - first * mappedram.PAGE
    finally:
        os.close(memory)
    return written


@dataclass(frozen=True, slots=True)
class _Mapping:
    start: int
    length: int
    offset: int  # in the file


def _mapping(source: Source) -> _Mapping:
    """Where the VMM has its snapshot file's pages, in one piece. Raises SnapshotInvalid."""
    assert source.snapshot is not None
    _, inode = source.snapshot
    found = []
    with open(f"/proc/{source.pid}/maps", encoding="ascii", errors="replace") as lines:
        for line in lines:
            span, permissions, offset, _, number = line.split()[:5]
            if int(number) == inode and permissions.endswith("p"):
                start, end = (int(each, 16) for each in span.split("-"))
                found.append(_Mapping(start, end - start, int(offset, 16)))
    if len(found) != 1:
        raise _not_as_started()
    return found[0]


def _not_as_started() -> SnapshotInvalid:
    return SnapshotInvalid(
        "The VMM's memory is not mapped as it was started; it is saved whole instead."
    )
