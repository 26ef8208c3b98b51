"""Machines of one user without root, on the host's kernel.

The same image as a container's, and the same runtime, so that templates, forks, volumes and climbing to another rung are
one operation each; ``confined`` says what is taken away.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from roost import claims
from roost.drivers import account, confined, oci
from roost.drivers.interface import Capabilities, ForkKind, Isolation, StartSpec
from roost.drivers.runc import RuncDriver
from roost.host import syscalls
from roost.storage import mounting

_PORTS_OF_ROOT = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


class UserDriver(RuncDriver):
    name = "user"
    mount_attributes = syscalls.MOUNT_ATTR_NOSUID

    def capabilities(self) -> Capabilities:
        return Capabilities(
            isolation=Isolation.USER,
            boundary=claims.boundary("user"),
            claim=claims.claim("user"),
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

    def _refine(
        self, bundle: dict[str, Any], spec: StartSpec, places: oci.Places
    ) -> dict[str, Any]:
        assert spec.slot is not None
        assert spec.slot.users is not None
        return confined.bundle(
            bundle,
            rootfs=places.root,
            homes=account.homes(places.root, spec.slot.users.first + confined.UID),
            volumes=[each.path for each in spec.volumes if not each.read_only],
            guarded=not spec.unrestricted,
        )

    def _in_namespace(self) -> None:
        """Every port is its user's."""
        super()._in_namespace()
        with contextlib.suppress(OSError):
            _PORTS_OF_ROOT.write_text("0")
