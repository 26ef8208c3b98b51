"""Snapshots in the pool: ``<id>/disk.ext4``, ``<id>/disk.json`` (what is known of it), ``<id>/memory/``; of a machine that
is a directory ``<id>/home/``."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from roost.errors import NotFoundError
from roost.host import files
from roost.storage import disks, trees
from roost.storage.interface import Snapshot
from roost.storage.pool import Pool


class Snapshots:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def at(self, snapshot_id: str) -> Snapshot:
        return Snapshot(self._pool.snapshots / disks.check_id(snapshot_id))

    def begin(self, snapshot_id: str) -> Snapshot:
        snapshot = self.at(snapshot_id)
        _remove(snapshot.directory)
        snapshot.directory.mkdir(mode=0o700)
        snapshot.memory.mkdir(mode=0o700)
        return snapshot

    def copy_disk(self, disk: Path, snapshot_id: str) -> None:
        files.reflink(disk, self.at(snapshot_id).disk)

    def copy_memory(self, memory: Path, snapshot_id: str) -> None:
        for file in sorted(memory.iterdir()):
            copy = self.at(snapshot_id).memory / file.name
            files.reflink(file, copy)
            shutil.copymode(file, copy)  # who restores from it may be another user

    def seal(self, snapshot_id: str, disk: Path) -> int:
        """``disk``: the machine's own, whose record is kept with the copy."""
        snapshot = self.at(snapshot_id)
        info = disks.read(disk)
        if info is None:
            raise NotFoundError(f"Nothing is known of the disk {disk.name}.", code="NOT_FOUND")
        disks.write(snapshot.disk, info)
        files.sync_dir(self._pool.snapshots)
        return sum(p.stat().st_blocks * 512 for p in snapshot.directory.rglob("*") if p.is_file())

    def seal_home(self, snapshot_id: str) -> int:
        files.sync_dir(self.at(snapshot_id).directory)
        files.sync_dir(self._pool.snapshots)
        return trees.allocated(self.at(snapshot_id).home)

    def clone(self, snapshot_id: str, disk: Path) -> None:
        """A disk whose next start gives it an identity of its own, and our agent where it has another."""
        source = self.at(snapshot_id).disk
        info = disks.read(source)
        if info is None or not source.exists():
            raise NotFoundError(
                f"Snapshot {snapshot_id} is not in the pool any more.", code="SNAPSHOT_NOT_FOUND"
            )
        fresh = replace(info, fresh=True, agent_digest=None)
        disks.write(disk, fresh, durable=False)
        files.reflink(source, disk, durable=False)

    def delete(self, snapshot_id: str) -> None:
        _remove(self.at(snapshot_id).directory)

    def list(self) -> set[str]:
        return {p.name for p in self._pool.snapshots.iterdir()}


class Memories:
    """Of machines asleep: ``<machine id>/``."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def at(self, machine_id: str) -> Path:
        return self._pool.memory / disks.check_id(machine_id)

    def begin(self, machine_id: str) -> Path:
        directory = self.at(machine_id)
        _remove(directory)
        directory.mkdir(mode=0o700)
        return directory

    def delete(self, machine_id: str) -> None:
        _remove(self.at(machine_id))

    def list(self) -> set[str]:
        return {p.name for p in self._pool.memory.iterdir()}


def _remove(directory: Path) -> None:
    if directory.is_symlink() or directory.exists():
        trees.remove(directory)
