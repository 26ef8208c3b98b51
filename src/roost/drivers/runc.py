"""Machines as runc containers: native speed, the host's kernel."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roost import claims
from roost.drivers import apparmor, oci, seccomp
from roost.drivers.container import ContainerDriver
from roost.drivers.interface import (
    Capabilities,
    ForkKind,
    Handle,
    Isolation,
    Probe,
    Size,
    StartSpec,
)
from roost.errors import MachineError
from roost.host import advisories, cgroups, console, idmaps, packages, processes, run

_TUN = "c 10:200 rwm"


class RuncDriver(ContainerDriver):
    name = "runc"
    own_users = True

    async def probe(self) -> Probe:
        return await self._run(_probed)

    def capabilities(self) -> Capabilities:
        return Capabilities(
            isolation=Isolation.CONTAINER,
            boundary=claims.boundary(self.name),
            claim=claims.claim(self.name),
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
            freeze=True,
        )

    def _limits(self, size: Size) -> cgroups.Limits:
        return cgroups.Limits(size.vcpu, size.memory_mib << 20, size.pids)

    async def end_tree(self, handle: Handle, pid: int) -> bool:
        group = self._group(handle.machine_id)

        def end() -> bool:
            with self._freezing(handle):
                return _end_tree(self.cgroups, group, handle.pid, pid)

        try:
            return await self._run(end)
        except FileNotFoundError:
            return False
        except TimeoutError as exc:
            raise MachineError(f"The machine cannot be frozen: {exc}.", code="TIMEOUT") from exc

    def _seccomp(self) -> Mapping[str, Any]:
        return seccomp.profile()

    def _apparmor(self) -> str | None:
        return apparmor.loaded()

    def _launch(
        self, spec: StartSpec, directory: Path, command: list[str], fifo: console.Console
    ) -> int:
        pid = super()._launch(spec, directory, command, fifo)
        # Releases before 1.2 allow it whatever they are told; only the agent runs yet.
        self.cgroups.deny_device(self._group(spec.machine_id), _TUN)
        return pid

    def _command(self, directory: Path, machine_id: str) -> list[str]:
        files = oci.file_limit()
        return [
            "prlimit",
            f"--nofile={files}:{files}",
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


def _end_tree(groups: cgroups.Cgroups, group: str, init: int, pid: int) -> bool:
    """While the group is frozen nothing in it forks or ends; the blow falls at the latest when it thaws. One that
    was frozen before stays so."""
    was = groups.frozen(group)
    groups.freeze(group, True)
    try:
        members = groups.procs(group) - {init}
        top = next((p for p in members if processes.number_inside(p) == pid), None)
        victims = set() if top is None else processes.tree(top, members)
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        return bool(victims)
    finally:
        groups.freeze(group, was)


def _probed() -> Probe:
    """What is not available now may be so tomorrow with no package renewed."""
    found = _probe(packages.state("runc"))
    if not found.available:
        _probe.cache_clear()
    return found


@functools.lru_cache(maxsize=1)
def _probe(_: packages.State) -> Probe:
    if shutil.which("runc") is None:
        return Probe(False, reason="runc is not installed", remedy="apt-get install runc")
    try:
        done = run.run(["runc", "--version"], timeout_s=10)
    except (OSError, TimeoutError) as exc:
        return Probe(False, reason=f"runc does not run: {exc}", remedy="apt-get install runc")
    if why := idmaps.why_not():
        return Probe(False, reason=why, remedy="sysctl -w user.max_user_namespaces=65536")
    if why := advisories.refusal("runc"):
        return Probe(False, reason=why, remedy=advisories.REMEDY)
    words = done.stdout.split()
    return Probe(
        True,
        version=words[2] if len(words) > 2 else None,
        details={"apparmor": apparmor.why_not() or "machines run under its profile"},
    )
