"""Machines behind gVisor: a kernel of their own in user space, between them and the host's."""

from __future__ import annotations

import contextlib
import functools
import platform
import shutil
from pathlib import Path

from roost.drivers.container import ContainerDriver
from roost.drivers.interface import Capabilities, ForkKind, Isolation, Probe, Size
from roost.host import cgroups, run, syscalls

# What gVisor itself uses beside the machine: about 55 MiB when idle, then tables that grow with use.
_OVERHEAD_MIB = 96
_OVERHEAD_SHARE = 16
# Its own threads, and for each of the machine's address spaces a process that stands in for it.
_OVERHEAD_PIDS = 512

_NET_CORE = "/proc/sys/net/core"


class GVisorDriver(ContainerDriver):
    name = "gvisor"

    async def probe(self) -> Probe:
        return await self._run(_probe)

    def capabilities(self) -> Capabilities:
        return Capabilities(
            isolation=Isolation.CONTAINER,
            boundary="gVisor's own kernel in user space (systrap), itself unprivileged and behind seccomp "
            "and namespaces; the host's kernel serves it a narrow set of calls",
            claim="sandboxed by gVisor",
            own_kernel=True,
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
        memory = size.memory_mib + _OVERHEAD_MIB + size.memory_mib // _OVERHEAD_SHARE
        return cgroups.Limits(size.vcpu, memory << 20, size.pids + _OVERHEAD_PIDS)

    def _in_namespace(self) -> None:
        # runsc takes this directory for the mark of the host's own network namespace, which it refuses;
        # newer kernels have it in every namespace.
        if Path(_NET_CORE, "rmem_default").exists():
            syscalls.mount(
                "tmpfs",
                _NET_CORE,
                "tmpfs",
                syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC,
                "size=4k",
            )

    def _command(self, directory: Path, machine_id: str) -> list[str]:
        return [
            "runsc",
            f"--root={directory / 'runtime'}",
            "--platform=systrap",
            "--network=sandbox",
            "--overlay2=none",
            "--net-disconnect-ok",
            "--cpu-num-from-quota",
            *(["--allow-suid"] if _honours_setuid() else []),
            "run",
            "--detach",
            f"--bundle={directory}",
            f"--pid-file={directory / 'pid'}",
            machine_id,
        ]


@functools.cache
def _honours_setuid() -> bool:
    """Older releases run every program with no_new_privs, so that sudo is of no use to users; newer ones
    do so unless told."""
    with contextlib.suppress(OSError, TimeoutError):
        return "-allow-suid" in run.run(["runsc", "flags"], timeout_s=10, check=False).stdout
    return False


@functools.cache
def _probe() -> Probe:
    if platform.machine() not in ("x86_64", "aarch64"):
        return Probe(False, reason=f"gVisor has no build for {platform.machine()}")
    if shutil.which("runsc") is None:
        return Probe(
            False,
            reason="runsc is not installed",
            remedy="apt-get install -t bookworm-backports runsc",
        )
    try:
        done = run.run(["runsc", "--version"], timeout_s=10)
    except (OSError, TimeoutError) as exc:
        return Probe(
            False,
            reason=f"runsc does not run: {exc}",
            remedy="apt-get install -t bookworm-backports --reinstall runsc",
        )
    words = done.stdout.split()
    return Probe(
        True,
        version=words[2] if len(words) > 2 else None,
        details={"setuid": _honours_setuid()},
    )
