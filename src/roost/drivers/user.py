"""Machines of one user without root, on the host's kernel.

The same image as a container's, and the same runtime, so that templates, forks, volumes and climbing to another rung are
one operation each; ``confined`` says what is taken away. What a block of users left on the host is looked for before
the block is anybody's again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roost.drivers import account, confined, oci
from roost.drivers.interface import Capabilities, ForkKind, Isolation, StartSpec
from roost.drivers.runc import RuncDriver
from roost.errors import InternalError
from roost.host import files, processes, syscalls
from roost.host.idmaps import Block
from roost.storage import mounting

_PORTS_OF_ROOT = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
_GONE_S = 5.0


class UserDriver(RuncDriver):
    name = "user"
    mount_attributes = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV

    def capabilities(self) -> Capabilities:
        return Capabilities(
            isolation=Isolation.USER,
            boundary="One unprivileged user of a block of its own: Linux namespaces, no capabilities, a read-only "
            "system, a seccomp allow-list, Landlock, cgroups; shares the host's kernel",
            claim="isolated workspace: one user without root (no sudo, no installing of packages), who writes "
            "to a home of its own alone; it shares the host's kernel",
            own_kernel=False,
            own_clock=False,
            own_network=True,
            disk_image=True,
            raw_disk=False,
            memory_snapshot=False,
            fork=ForkKind.DISK,
            egress_enforced=True,
            needs_root=True,
            accelerated=None,
            freeze=True,
        )

    def _prepare_disk(self, spec: StartSpec, disk: mounting.Attached, root: Path) -> bool:
        """All of its identity: what is left (SSH host keys) only root of the machine could renew, or read."""
        super()._prepare_disk(spec, disk, root)
        account.prepare(root)
        return True

    def _refine(self, bundle: dict[str, Any], spec: StartSpec, places: oci.Places) -> dict[str, Any]:
        writable = [each.path for each in spec.volumes if not each.read_only]
        return confined.bundle(bundle, rootfs=places.root, volumes=writable)

    def _in_namespace(self) -> None:
        """Every port is its user's."""
        super()._in_namespace()
        _PORTS_OF_ROOT.write_text("0")

    def _record(self, spec: StartSpec) -> Mapping[str, Any]:
        users = spec.slot.users if spec.slot else None
        return {"users": [users.first, users.count] if users else None}

    def _remove(self, machine_id: str, disk: Path | None) -> None:
        record = files.read_json(self._directory(machine_id) / "machine.json") or {}
        super()._remove(machine_id, disk)
        if found := record.get("users"):
            _nobody_left(Block(*found))


def _nobody_left(users: Block) -> None:
    """All that was theirs went with the machine's cgroup and namespaces (IPC, /tmp, mounts), and nothing of theirs lies
    on a disk. Raises InternalError where that is not so."""
    deadline = time.monotonic() + _GONE_S
    while left := processes.of_users(users.first, users.count):
        if time.monotonic() > deadline:
            raise InternalError(
                f"Processes of users {users.first} to {users.first + users.count - 1} do not end; look at them "
                f"with `ps` ({sorted(left)[:5]}).",
                retryable=True,
            )
        time.sleep(0.01)
