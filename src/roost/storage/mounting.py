"""Mounting a machine's disk on the host: only a file system that no guest could write raw.

The kernel's ext4 trusts what it reads. A guest behind gVisor or runc writes through that same ext4, so its
disk is as sound as the host's own; a virtual machine, or whoever made an imported image, wrote the blocks
as it liked, and the kernel must never be shown them.
"""

from __future__ import annotations

import contextlib
import os
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


@dataclass(frozen=True, slots=True)
class Attached:
    info: DiskInfo
    device: Path


@contextlib.contextmanager
def attached(disk: Path) -> Iterator[Attached]:
    """The disk as a block device, which goes with its last user: the block, or what was mounted in it.
    To be entered in the host's own mount table, by whose paths the device is found again."""
    info = disks.read(disk)
    if info is None:
        raise InternalError(f"Nothing is known of disk {disk.name}; it is not mounted on the host.")
    if info.raw_written or info.imported:
        raise UnsupportedError(
            "This disk was written by a virtual machine or came from elsewhere; the host does not "
            "mount it. Start the machine at isolation `microvm`.",
            details={"raw_written": info.raw_written, "imported": info.imported},
        )
    wait_free(disk)
    device, fd = loop.attach(disk, direct_io=True)
    try:
        yield Attached(info, device)
    finally:
        os.close(fd)


def mount(disk: Attached, target: Path) -> None:
    """For a thread apart (``host.apart``)."""
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    syscalls.mount(disk.device, target, "ext4", syscalls.MS_NODEV, _OPTIONS)


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


def copy(disk: Path, target: Path) -> None:
    """A reflink of a disk in use, whole as of one instant; writers wait meanwhile. Not yet durable. On
    failure there is no ``target``."""
    try:
        freeze(disk)
        files.reflink(disk, target, durable=False)
    finally:
        thaw(disk)


def _at_hand(disk: Path) -> Path:
    """The mounted file system once more, in the calling thread's own mount table."""
    devices = loop.devices_of(disk)
    if not devices:
        raise InternalError(f"Disk {disk.name} is not in use.")
    # Any directory will do: nobody else sees it covered.
    target = disk.parent
    syscalls.mount(devices[0], target, "ext4", syscalls.MS_NODEV | syscalls.MS_NOSUID, _OPTIONS)
    return target
