"""Storage as the engine sees it: template images in, machine disks out, all reflinks in one pool."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """Bytes. ``backing_*`` is the file system under a loop-backed pool, else the same as the pool's."""

    total: int
    free: int
    backing_total: int
    backing_free: int
    kind: str  # "xfs-loop", "xfs", "btrfs"


@dataclass(frozen=True, slots=True)
class Image:
    """An immutable root image. Its manifest lies beside it; ``digest`` names its content."""

    digest: str  # "sha256:<64 hex>"
    path: Path
    size_bytes: int  # apparent
    allocated_bytes: int
    raw_written: bool  # a guest could write its blocks: never mount it on the host
    imported: bool  # came from elsewhere: never mount it on the host
    agent_digest: str | None


class Storage(Protocol):
    async def open(self) -> None:
        """Makes or mounts the pool; raises when the host cannot (with the remedy)."""

    async def usage(self) -> PoolUsage: ...

    async def require(self, bytes_needed: int) -> None:
        """Raises CapacityError STORAGE_FULL if the watermark would be passed."""

    async def clone(self, image: Image, machine_id: str, storage_gib: int) -> Path:
        """A machine's disk: a reflink of ``image`` (of its variant at that size, made once). Durable after
        ``sync_disk``."""

    async def sync_disk(self, machine_id: str) -> None:
        """A cloned disk and its name outlive a power cut."""

    def disk(self, machine_id: str) -> Path:
        """Where a machine's disk lies (whether or not it is there)."""

    async def delete(self, machine_id: str) -> None:
        """Idempotent."""

    async def list_disks(self) -> set[str]:
        """Machine ids that have a disk in the pool."""

    async def images(self) -> list[Image]: ...

    async def delete_image(self, digest: str) -> None: ...

    async def close(self) -> None: ...

    async def purge(self) -> None:
        """Unmounts and removes the pool and all in it."""
