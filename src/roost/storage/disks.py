"""Machines' disks and what the host knows of each: ``<machine_id>.ext4`` and ``<machine_id>.json``."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from roost.host import files

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, slots=True)
class DiskInfo:
    """``fresh`` until the first start: only then is its content what the image's manifest says."""

    source: str  # digest of the image it was cloned from
    storage_gib: int
    raw_written: bool
    imported: bool
    agent_digest: str | None
    fresh: bool


def read(disk: Path) -> DiskInfo | None:
    """None where nothing (readable) is known of the disk: it must then not be mounted."""
    data = files.read_json(disk.with_suffix(".json"))
    try:
        return None if data is None else DiskInfo(**data)
    except TypeError:
        return None


def write(disk: Path, info: DiskInfo, *, durable: bool = True, sync_parent: bool = True) -> None:
    path = disk.with_suffix(".json")
    files.write_json(path, asdict(info), durable=durable, sync_parent=sync_parent)


def mark_used(disk: Path, *, raw_written: bool = False) -> None:
    """Before a machine first runs from it. ``raw_written`` must be on the disk before the guest is;
    ``fresh`` may be lost in a power cut: it only saves a comparison."""
    info = read(disk)
    if info is not None and (info.fresh or (raw_written and not info.raw_written)):
        changed = replace(info, fresh=False, raw_written=info.raw_written or raw_written)
        write(disk, changed, durable=raw_written)


def check_id(machine_id: str) -> str:
    if not _ID.fullmatch(machine_id):
        raise ValueError(f"not a machine id: {machine_id[:80]!r}")
    return machine_id
