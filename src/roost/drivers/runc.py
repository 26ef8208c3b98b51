"""Machines as runc containers: native speed, the host's kernel."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roost.drivers import seccomp
from roost.drivers.container import ContainerDriver
from roost.drivers.interface import Capabilities, ForkKind, Isolation, Probe, Size
from roost.host import cgroups, run


class RuncDriver(ContainerDriver):
    name = "runc"

    async def probe(self) -> Probe:
        return await self._run(_probe)

    def capabilities(self) -> Capabilities:
        return Capabilities(
            isolation=Isolation.CONTAINER,
            boundary="Linux namespaces, cgroups, dropped capabilities and a seccomp allow-list; shares the "
            "host's kernel, and root in the machine is root's number on the host",
            claim="sandboxed by runc",
            own_kernel=False,
            own_clock=False,  # the host's, both
            own_network=True,
            disk_image=True,
            raw_disk=False,
            memory_snapshot=False,
            fork=ForkKind.DISK,
            egress_enforced=True,
            needs_root=True,
            accelerated=None,
        )

    def _limits(self, size: Size) -> cgroups.Limits:
        return cgroups.Limits(size.vcpu, size.memory_mib << 20, size.pids)

    def _seccomp(self) -> Mapping[str, Any]:
        return seccomp.profile()

    def _command(self, directory: Path, machine_id: str) -> list[str]:
        return [
            "runc",
            "--root",
            str(directory / "runtime"),
            "run",
            "--detach",
            "--bundle",
            str(directory),
            "--pid-file",
            str(directory / "pid"),
            machine_id,
        ]


@functools.cache
def _probe() -> Probe:
    if shutil.which("runc") is None:
        return Probe(False, reason="runc is not installed", remedy="apt-get install runc")
    try:
        done = run.run(["runc", "--version"], timeout_s=10)
    except (OSError, TimeoutError) as exc:
        return Probe(False, reason=f"runc does not run: {exc}", remedy="apt-get install runc")
    words = done.stdout.split()
    return Probe(True, version=words[2] if len(words) > 2 else None)
