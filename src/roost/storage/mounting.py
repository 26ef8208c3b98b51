"""Mounting a machine's disk on the host: only a file system that no guest could write raw.

The kernel's ext4 trusts what it reads. A guest behind gVisor or runc writes through that same ext4, so its
disk is as sound as the host's own; a virtual machine, or whoever made an imported image, wrote the blocks
as it liked, and the kernel must never be shown them.
"""

from __future__ import annotations

import os
from pathlib import Path

from roost.errors import InternalError, UnsupportedError
from roost.host import loop, mounts
from roost.storage import disks
from roost.storage.disks import DiskInfo

# noinit_itable: no background thread that fills inode tables with zeros, which would cost each machine
# its own copy of what siblings share.
_OPTIONS = "discard,errors=remount-ro,noinit_itable"


def mount(disk: Path, target: Path) -> DiskInfo:
    """What is known of the disk. Nothing stays mounted on failure."""
    info = disks.read(disk)
    if info is None:
        raise InternalError(f"Nothing is known of disk {disk.name}; it is not mounted on the host.")
    if info.raw_written or info.imported:
        raise UnsupportedError(
            "This disk was written by a virtual machine or came from elsewhere; the host does not mount "
            "it. Start the machine at isolation `microvm`.",
            details={"raw_written": info.raw_written, "imported": info.imported},
        )
    for device in loop.devices_of(disk):
        loop.detach(device)
        if not loop.wait_gone(device, disk, 2.0):
            raise InternalError(
                f"Disk {disk.name} is still in use on {device}; try again.", retryable=True
            )
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    mounts.mount_image(disk, target, _OPTIONS)
    return info


def unmount(disk: Path, target: Path) -> None:
    """Idempotent; on return the disk may be mounted again."""
    mounts.unmount_image(disk, target)


def leftovers(directory: Path) -> list[Path]:
    """Mount points below ``directory``."""
    real = os.path.realpath(directory)
    return [Path(t) for t in mounts.below(Path(real))]
