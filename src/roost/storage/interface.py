"""Storage as the engine sees it: template images in, machine disks out, all reflinks in one pool."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """Bytes. ``backing_*`` is the file system under a loop-backed pool, else the same as the pool's."""

    total: int
    free: int
    backing_total: int
    backing_free: int
    kind: str  # "xfs-loop", "xfs", "btrfs", "directory" (no reflinks: copies are whole ones)


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
    content: str | None = None  # digest of what is in it, our agent apart, where it was taken
    kind: str = ""  # "layer" or "template" of a build's


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A machine's disk at one instant, and its memory where the rung can."""

    directory: Path

    @property
    def disk(self) -> Path:
        return self.directory / "disk.ext4"

    @property
    def memory(self) -> Path:
        return self.directory / "memory"

    @property
    def home(self) -> Path:
        """In place of a disk, of a machine that is a directory."""
        return self.directory / "home"


@dataclass(frozen=True, slots=True)
class Holder:
    """A machine, a volume or a snapshot, as who has blocks of the pool."""

    id: str
    is_snapshot: bool


class Storage(Protocol):
    async def open(self) -> None:
        """Makes or mounts the pool; raises when the host cannot (with the remedy)."""

    async def usage(self) -> PoolUsage: ...

    async def require(self, bytes_needed: int) -> None:
        """Raises CapacityError STORAGE_FULL if the watermark would be passed."""

    async def clone(self, image: Image, machine_id: str, storage_gib: int) -> Path:
        """A machine's disk: a reflink of ``image`` (of its variant at that size, made once). Durable after
        ``sync_disk``."""

    async def make_home(self, machine_id: str) -> Path:
        """An empty directory in place of a disk. Durable on return."""

    def home(self, machine_id: str) -> Path:
        """Where a machine's directory lies (whether or not it is there)."""

    async def sync_disk(self, machine_id: str) -> None:
        """A cloned disk, or home, and its name outlive a power cut."""

    def disk(self, machine_id: str) -> Path:
        """Where a machine's disk lies (whether or not it is there)."""

    async def delete(self, machine_id: str) -> None:
        """Disk or home. Idempotent."""

    async def list_disks(self) -> set[str]:
        """Machine ids that have a disk or home in the pool."""

    async def delete_disk(self, machine_id: str) -> None:
        """Of one that has a directory as well, which stays. Idempotent."""

    async def pack_tree(self, machine_id: str, most: int) -> None:
        """What is in a machine's directory, as a tar at ``tree``, for the disk it is to get. Durable on return. Raises
        MACHINE_DISK_FULL where it would be more than ``most`` bytes."""

    def tree(self, machine_id: str) -> Path:
        """Where that tar lies (whether or not it is there)."""

    async def delete_tree(self, machine_id: str) -> None:
        """Idempotent."""

    async def list_trees(self) -> set[str]:
        """Machine ids that have one."""

    async def list_homes(self) -> set[str]:
        """Machine ids that have a directory."""

    async def delete_home(self, machine_id: str) -> None:
        """The directory of a machine; a disk of its own stays. Idempotent."""

    async def shares(
        self, families: Sequence[Sequence[Holder]], free: Iterable[str]
    ) -> dict[str, int]:
        """Bytes each of these has to answer for: every block once, for the oldest of its family that has it; what
        images and the snapshots ``free`` have, too, for nobody. Families stand oldest first."""

    async def images(self) -> list[Image]: ...

    async def image(self, digest: str) -> Image | None: ...

    async def content(self, image: Image) -> str:
        """A digest of all that is in it. Reads it whole."""

    async def unique_bytes(self, digests: Sequence[str], others: Sequence[str]) -> dict[str, int]:
        """Bytes each of these images (oldest first) has to answer for: every block once, those of ``others`` not at
        all."""

    @property
    def tmp(self) -> Path:
        """For what is half made; emptied when it is opened."""

    async def copy_out(self, machine_id: str) -> Path:
        """The disk of a machine whose disk is frozen (or that does not run), as a file in the pool's ``tmp``. Not
        durable."""

    async def copy_out_snapshot(self, snapshot_id: str) -> Path:
        """Its disk, likewise. Raises SNAPSHOT_NOT_FOUND, UNSUPPORTED (it is of a directory)."""

    async def keep_image(
        self, made: Path, digest: str, of: Path, manifest: Mapping[str, Any]
    ) -> Image:
        """A file from ``copy_out`` as an image: whether the host may mount it is what is known of the disk ``of``.
        Durable on return."""

    def snapshot(self, snapshot_id: str) -> Snapshot:
        """Where it lies (whether or not it is there)."""

    async def begin_snapshot(self, snapshot_id: str) -> Snapshot:
        """Empty, ready to be captured into; what was there before is gone."""

    async def copy_disk(self, machine_id: str, snapshot_id: str) -> None:
        """The disk of a machine that does not run, into a begun snapshot, or its home, file by file as each then is.
        Durable on return."""

    async def copy_memory(self, machine_id: str, snapshot_id: str) -> None:
        """The memory of a machine asleep, into a begun snapshot. Durable on return."""

    async def seal_snapshot(self, snapshot_id: str, machine_id: str) -> int:
        """Keeps what is known of the machine's disk with its copy; the bytes allocated. Durable on return."""

    async def clone_snapshot(self, snapshot_id: str, machine_id: str) -> Path:
        """A machine's disk, or home, from a snapshot's; replaces what the machine had. Durable after ``sync_disk``.
        Raises SNAPSHOT_NOT_FOUND."""

    async def delete_snapshot(self, snapshot_id: str) -> None:
        """Idempotent."""

    async def list_snapshots(self) -> set[str]: ...

    def memory(self, machine_id: str) -> Path:
        """Where the memory of a machine asleep lies."""

    async def begin_memory(self, machine_id: str) -> Path:
        """An empty directory for it."""

    async def delete_memory(self, machine_id: str) -> None:
        """Idempotent."""

    async def list_memory(self) -> set[str]:
        """Machine ids that have a memory image of their own."""

    async def make_volume(self, volume_id: str, size_gib: int) -> None:
        """An empty file system of that size, which takes no room yet; what was there of that id is gone. Durable on
        return. Raises STORAGE_FULL."""

    def volume(self, volume_id: str) -> Path:
        """Where it lies (whether or not it is there)."""

    async def delete_volume(self, volume_id: str) -> None:
        """Idempotent."""

    async def list_volumes(self) -> set[str]: ...

    async def delete_image(self, digest: str) -> None: ...

    async def close(self) -> None: ...

    async def purge(self) -> None:
        """Unmounts and removes the pool and all in it."""
