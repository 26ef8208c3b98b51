"""Mounting a machine's disk on the host: only a file system that no guest could write raw.

The kernel's ext4 trusts what it reads. A guest behind gVisor or runc writes through that same ext4, so its
disk is as sound as the host's own; a virtual machine, or whoever made an imported image, wrote the blocks
as it liked, and the kernel must never be shown them.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from roost.errors import InternalError, UnsupportedError
from roost.host import apart, files, loop, mounts, syscalls
from roost.storage import disks
from roost.storage.disks import DiskInfo

# noinit_itable: no background thread that fills inode tables with zeros, which would cost each machine
# its own copy of what siblings share.
_OPTIONS = "discard,errors=remount-ro,noinit_itable"
_READ = "errors=remount-ro"
_repairing = threading.Lock()


@dataclass(frozen=True, slots=True)
class Attached:
    info: DiskInfo
    device: Path


@contextlib.contextmanager
def attached(disk: Path, *, shared: bool = False) -> Iterator[Attached]:
    """The disk as a block device, which goes with its last user: the block, or what was mounted in it.
    To be entered in the host's own mount table, by whose paths the device is found again. ``shared``: others may have
    it, too, who all only read it."""
    info = disks.read(disk)
    if info is None:
        raise InternalError(f"Nothing is known of disk {disk.name}; it is not mounted on the host.")
    if info.raw_written or info.imported:
        raise UnsupportedError(
            "This disk was written by a virtual machine or came from elsewhere; the host does not "
            "mount it. Start the machine at isolation `microvm`.",
            details={"raw_written": info.raw_written, "imported": info.imported},
        )
    if not shared:
        wait_free(disk)
    device, fd = loop.attach(disk, direct_io=True)
    try:
        yield Attached(info, device)
    finally:
        os.close(fd)


def mount(disk: Attached, target: Path, *, read_only: bool = False) -> None:
    """For a thread apart (``host.apart``). One that was not unmounted is repaired from its journal, also where it is
    mounted to be read: nobody else comes between."""
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not read_only:
        syscalls.mount(disk.device, target, "ext4", syscalls.MS_NODEV, _OPTIONS)
        return
    with _repairing:
        flags = syscalls.MS_NODEV | syscalls.MS_RDONLY
        syscalls.mount(disk.device, target, "ext4", flags, _READ)


def wait_free(disk: Path, timeout_s: float = 10.0) -> None:
    """Until the disk is mounted nowhere and all that was written to it lies in it. Raises INTERNAL
    (retryable) where something holds it on."""
    deadline = time.monotonic() + timeout_s
    for device in loop.devices_of(disk):
        if not loop.wait_gone(device, disk, max(0.1, deadline - time.monotonic())):
            raise InternalError(
                f"Disk {disk.name} is still in use on {device}; try again.", retryable=True
            )


def freeze(disk: Path) -> None:
    """The disk's file system, wherever it is mounted: all of it is in the image, and writers wait."""
    apart.run(lambda: mounts.freeze(_at_hand(disk)))


def thaw(disk: Path) -> None:
    """Of one that is not frozen, or not in use, too."""
    if loop.devices_of(disk):
        apart.run(lambda: mounts.thaw(_at_hand(disk)))


class InUse:
    """The disk of a machine that runs, for a thread apart (``host.apart``), in whose mount table alone it is mounted
    once more."""

    def __init__(self, root: Path, source: int) -> None:
        self._root = root
        self._source = source

    def get_ready(self) -> None:
        """For a ``copy`` within the next 10 ms or so. What is to be written goes to the image; and the first freeze of
        a file system that nobody froze lately waits 25 ms for the kernel's readers (RCU) while writers wait, those
        soon after it do not."""
        mounts.freeze(self._root)
        mounts.thaw(self._root)

    def copy(self, target: Path) -> None:
        """A reflink, whole as of one instant; writers wait meanwhile. Not yet durable. On failure there is no
        ``target``."""
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            try:
                mounts.freeze(self._root)
                files.reflink_fd(self._source, fd)
            finally:
                mounts.thaw(self._root)
        except BaseException:
            target.unlink()
            raise
        finally:
            os.close(fd)


@contextlib.contextmanager
def in_use(disk: Path, at: Path) -> Iterator[InUse]:
    """``at``: a directory, covered in the calling thread's own mount table meanwhile."""
    source = os.open(disk, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _mount(disk, at)
        try:
            yield InUse(at, source)
        finally:
            syscalls.umount(at, syscalls.MNT_DETACH)
    finally:
        os.close(source)


def _at_hand(disk: Path) -> Path:
    """The mounted file system once more, in the calling thread's own mount table."""
    target = disk.parent  # any directory will do: nobody else sees it covered
    _mount(disk, target)
    return target


def _mount(disk: Path, target: Path) -> None:
    devices = loop.devices_of(disk)
    if not devices:
        raise InternalError(f"Disk {disk.name} is not in use.")
    syscalls.mount(devices[0], target, "ext4", syscalls.MS_NODEV | syscalls.MS_NOSUID, _OPTIONS)
