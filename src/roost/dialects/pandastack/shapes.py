"""What things are called there."""

from __future__ import annotations

import math
import stat
from typing import Any

from roost.gateway.respond import rfc3339
from roost.network.addresses import MACHINE_ADDRESS
from roost.services.files import FileInfo
from roost.services.models import Build, Key, Machine, Snapshot, Template, Volume

Object = dict[str, Any]

TREE = "fork_tree_id"  # labels of a fork, which are metadata there
PARENT = "fork_parent_id"

_STATUS = {
    "running": "running",
    "stopping": "hibernating",
    "waking": "waking",
    "failed": "failed",
    "destroying": "stopping",
    "destroyed": "deleted",
}
_BUILD = {"succeeded": "done", "failed": "failed", "cancelled": "failed", "running": "running"}
_KIND = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
}


def status(machine: Machine) -> str:
    if machine.phase == "sleeping":
        return "paused" if machine.frozen else "hibernated"
    return _STATUS.get(machine.phase, "creating")


def sandbox(machine: Machine, boot_ms: int | None = None) -> Object:
    said: Object = {
        "id": machine.id,
        "template": machine.template,
        "cpu": max(1, math.ceil(machine.vcpu)),
        "memory_mb": machine.memory_mib,
        "status": status(machine),
        "guest_ip": MACHINE_ADDRESS,
        "metadata": dict(machine.labels),
        "persistent": machine.autosleep_seconds is not None,
        "ttl_seconds": machine.ttl_seconds or 0,
        "created_at": rfc3339(machine.created_at),
    }
    if machine.from_snapshot_id is not None:
        said["from_snapshot"] = machine.from_snapshot_id
    if boot_ms is not None:
        said["boot_ms"] = boot_ms
        said["boot_mode"] = "cold" if machine.from_snapshot_id is None else "snapshot"
    return said


def lifecycle(machine: Machine) -> Object:
    """Zeros are: none. ``idle_seconds``: after which it hibernates."""
    return {
        "ttl_seconds": machine.ttl_seconds or 0,
        "persistent": machine.autosleep_seconds is not None,
        "idle_seconds": machine.autosleep_seconds or 0,
        "expires_at": None if machine.expires_at is None else rfc3339(machine.expires_at),
    }


def snapshot(found: Snapshot) -> Object:
    return {
        "id": found.id,
        "sandbox_id": found.machine_id,
        "template": found.template,
        "workspace": found.tenant_id,
        "size_bytes": found.size_bytes or 0,
        "created_at": rfc3339(found.created_at),
    }


def volume(found: Volume) -> Object:
    return {
        "name": found.name,
        "size_mb": found.size_gib << 10,
        "size_bytes": found.size_gib << 30,
        "attached_to": [each.machine_id for each in found.attachments],
        "created_at": rfc3339(found.created_at),
    }


def entry(info: FileInfo) -> Object:
    """A link is what it leads to, but for its name."""
    kind = info.target_kind or info.kind
    return {
        "name": info.name.decode(errors="replace"),
        "is_dir": kind == "directory",
        "size": info.size,
        "mode": stat.filemode(_KIND.get(info.kind, 0) | info.mode),
        "mtime": info.mtime_ns // 1_000_000_000,
    }


def template(found: Template, name: str | None = None) -> Object:
    size = found.config.get("size")
    its = size if isinstance(size, dict) else {}
    shown = name or (found.tags[0] if found.tags else found.name)
    said: Object = {
        "name": shown.removesuffix(":latest"),
        "rootfs_path": "",
        "size_bytes": found.size_bytes or 0,
        "is_global": found.tenant_id is None,
        "status": found.status,
    }
    if isinstance(its.get("vcpu"), int | float):
        said["cpu"] = max(1, math.ceil(its["vcpu"]))
    if isinstance(its.get("memory_mib"), int):
        said["memory_mb"] = its["memory_mib"]
    if found.tenant_id is not None:
        said["workspace"] = found.tenant_id
    if isinstance(description := found.config.get("description"), str):
        said["description"] = description
    return said


def build(found: Build, size_mb: int | None = None) -> Object:
    said: Object = {
        "id": found.id,
        "name": (found.tags[0] if found.tags else found.id).removesuffix(":latest"),
        "status": _BUILD.get(found.status, "queued"),
        "started_at": rfc3339(found.started_at or found.created_at),
        "size_mb": size_mb or 0,
    }
    if found.ended_at is not None:
        said["ended_at"] = rfc3339(found.ended_at)
    if found.error is not None:
        said["error"] = str(found.error.get("message", "the build failed"))
    elif found.status == "cancelled":
        said["error"] = "the build was cancelled"
    return said


def token(key: Key) -> Object:
    """Only a digest of a key's secret is kept, so what tells keys apart is their id."""
    said: Object = {
        "prefix": key.id,
        "label": key.name,
        "name": key.name,
        "created_at": rfc3339(key.created_at),
    }
    if key.expires_at is not None:
        said["expires_at"] = rfc3339(key.expires_at)
    if key.secret is not None:
        said["token"] = f"pds_{key.secret.rpartition('_')[2]}"
    return said
