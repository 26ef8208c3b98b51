"""Volumes: ``<volume_id>.ext4`` and, as beside every disk, ``<volume_id>.json`` with what is known of it."""

from __future__ import annotations

import os
from pathlib import Path

from roost.errors import InternalError
from roost.host import files, run
from roost.storage import disks

_SUPERBLOCK = 1024
_INCOMPAT = _SUPERBLOCK + 0x60
_NEEDS_RECOVERY = 0x4
_MKFS_S = 60.0


def make(path: Path, size_gib: int) -> None:
    """Sparse. The manifest is there first: a disk of which nothing is known is never mounted. Raises OSError, INTERNAL."""
    path.unlink(missing_ok=True)
    info = disks.DiskInfo(
        source="volume",
        storage_gib=size_gib,
        raw_written=False,
        imported=False,
        agent_digest=None,
        fresh=True,
    )
    disks.write(path, info)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size_gib << 30)
        finally:
            os.close(fd)
        lazily = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"
        run.run(
            ["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-E", lazily, str(path)],
            timeout_s=_MKFS_S,
        )
        # An empty volume is empty (what a repair finds it can put into one it makes), and all its machine's users may
        # write into it, as into /tmp: who they will be nobody knows yet.
        for change in ("rmdir lost+found", "set_inode_field / mode 041777"):
            run.run(["debugfs", "-w", "-R", change, str(path)], timeout_s=_MKFS_S)
        files.sync(path)
        files.sync_dir(path.parent)
    except BaseException as exc:
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)
        if isinstance(exc, run.CommandError | TimeoutError):
            raise InternalError(f"The volume's file system could not be made: {exc}.") from exc
        raise


def list_ids(directory: Path) -> set[str]:
    """A manifest alone counts as well, so that what is half made or half deleted is found."""
    return {
        p.stem
        for p in directory.iterdir()
        if p.suffix in (".ext4", ".json") and not p.name.startswith(".")
    }


def needs_recovery(path: Path) -> bool:
    """Whether its journal has to be replayed first: whoever had it read-write ended without unmounting it. Two bytes
    are read, no file system is mounted."""
    with path.open("rb") as file:
        file.seek(_INCOMPAT)
        return bool(int.from_bytes(file.read(4), "little") & _NEEDS_RECOVERY)
