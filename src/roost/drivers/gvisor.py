"""Machines behind gVisor: a kernel of their own in user space, between them and the host's."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from roost import claims
from roost.drivers import saved, urpc
from roost.drivers.container import ContainerDriver
from roost.drivers.interface import Capabilities, ForkKind, Handle, Isolation, Probe, Size
from roost.errors import MachineError
from roost.host import advisories, cgroups, cpu, files, packages, run, syscalls, tcp

# What gVisor itself uses beside the machine: about 55 MiB when idle, then tables that grow with use.
_OVERHEAD_MIB = 96
_OVERHEAD_SHARE = 16
# Its own threads, and for each of the machine's address spaces a process that stands in for it.
_OVERHEAD_PIDS = 512

_IMAGE_FILES = ("checkpoint.img", "pages_meta.img", "pages.img")

_SETTLE_TIMEOUT_S = 5.0
_SOON_S = 0.5

# What a client of the agent says first, and an empty SETTINGS; whoever lives says SETTINGS, too.
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_ALIVE_TIMEOUT_S = 5.0

_NET_CORE = "/proc/sys/net/core"


class GVisorDriver(ContainerDriver):
    name = "gvisor"
    hangs_up = True

    async def probe(self) -> Probe:
        return await self._run(_probed)

    def capabilities(self) -> Capabilities:
        return Capabilities(
            isolation=Isolation.CONTAINER,
            boundary=claims.boundary(self.name),
            claim=claims.claim(self.name),
            own_kernel=True,
            own_clock=False,  # the host's, both
            own_network=True,
            disk_image=True,
            raw_disk=False,
            memory_snapshot=self.settings.gvisor_memory,
            fork=ForkKind.MEMORY if self.settings.gvisor_memory else ForkKind.DISK,
            egress_enforced=True,
            needs_root=True,
            accelerated=None,
            freeze=True,
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
        return [*_runsc(directory), "run", "--detach", *_bundle(directory), machine_id]

    # --- one instant kept ------------------------------------------------------------------------

    def _settle(self, handle: Handle) -> None:
        # A save cuts what is connected to the agent, in the machine that runs on and in what is restored. So
        # there must be nothing to cut.
        address, _, port = handle.agent_target.rpartition(":")
        # An agent that its machine's root has stopped would be kept as it stands, and found so at every wake.
        if not tcp.answers(address, int(port), _HTTP2_HELLO, _ALIVE_TIMEOUT_S):
            raise MachineError(
                "The machine's agent does not answer: nothing of its memory is kept.",
                code="AGENT_LOST",
            )
        for wait in (_SOON_S, 2 * _SOON_S, _SETTLE_TIMEOUT_S):
            if tcp.wait_closed(address, int(port), wait):
                return
            # A call that failed may be held by what it was caught in, a circle that only the collector ends; and a
            # call holds its connection.
            gc.collect()
        raise MachineError(
            "The connections to the machine's agent do not end; try again.", code="TIMEOUT"
        )

    def _record(self) -> dict[str, Any]:
        return {"release": _probed().version}

    def _socket(self, machine_id: str) -> Path | None:
        """Its control socket, where what is said over it is known; of a machine, since the host's runsc may be
        another by now."""
        directory = self._directory(machine_id)
        record = files.read_json(directory / "machine.json") or {}
        where = urpc.path(directory / "runtime", machine_id)
        return where if record.get("release") in urpc.RELEASES and where.exists() else None

    def _stop(self, machine_id: str) -> None:
        # The guest, not its kernel, which is to write itself down.
        where = self._socket(machine_id)
        try:
            if where is None:
                self._control(machine_id, "pause")
            else:
                urpc.pause(where, self.settings.operation_timeout_s)
        except TimeoutError:
            self._go_on(machine_id)
            raise

    def _go_on(self, machine_id: str) -> None:
        where = self._socket(machine_id)
        if where is not None:
            urpc.resume(where, self.settings.operation_timeout_s)
            return
        try:
            self._control(machine_id, "resume")
        except run.CommandError as exc:
            if "in state running" not in str(exc):  # it does already
                raise

    def _go_on_again(self, handle: Handle) -> None:
        # The sandbox does not tell, and does not survive to be resumed for nothing.
        address, _, port = handle.agent_target.rpartition(":")
        if self._socket(handle.machine_id) is None or not tcp.answers(
            address, int(port), _HTTP2_HELLO, _ALIVE_TIMEOUT_S
        ):
            self._go_on(handle.machine_id)

    def _save(self, machine_id: str, into: Path, meanwhile: Callable[[], None] | None) -> None:
        # One that runs on afterwards: a save that fails must leave a machine; one that is to end is killed.
        where = self._socket(machine_id)
        if where is None:
            self._control(
                machine_id,
                "checkpoint",
                "--leave-running",
                "--compression=none",
                f"--image-path={into}",
            )
        else:
            with contextlib.ExitStack() as opened:
                fds = [_created(opened, into / name) for name in _IMAGE_FILES]
                urpc.checkpoint(where, self.settings.operation_timeout_s, fds, meanwhile)
        for name in _IMAGE_FILES:
            if not (into / name).is_file() or not (into / name).stat().st_size:
                raise MachineError(
                    f"gVisor did not write the machine's memory ({name} is empty); try again.",
                    code="MACHINE_FAILED",
                )

    def _control(self, machine_id: str, command: str, *options: str) -> None:
        run.run(
            [*_runsc(self._directory(machine_id)), command, *options, machine_id],
            timeout_s=self.settings.operation_timeout_s,
        )

    def _traits(self) -> dict[str, Any]:
        return {
            "runsc": _probed().version,
            "machine": platform.machine(),
            "flags": _flags(),
            "cpu": sorted(cpu.features()),
        }

    def _fits(self, traits: Mapping[str, Any]) -> None:
        here = self._traits()
        if traits.get("runsc") != here["runsc"]:
            raise saved.invalid(
                f"it was saved by runsc {traits.get('runsc')}, and this host has {here['runsc']}"
            )
        if (traits.get("machine"), traits.get("flags")) != (here["machine"], here["flags"]):
            raise saved.invalid("it was saved by a runsc of another platform or other options")
        if lacking := sorted(set(traits.get("cpu", ())) - set(here["cpu"])):
            raise saved.invalid(
                f"this host's processor lacks {', '.join(lacking[:8])}", lacking=lacking
            )

    def _restore_command(self, directory: Path, machine_id: str, image: Path) -> list[str]:
        where = f"--image-path={image}"
        return [*_runsc(directory), "restore", "--detach", where, *_bundle(directory), machine_id]


def _created(opened: contextlib.ExitStack, path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    opened.callback(os.close, fd)
    return fd


def _runsc(directory: Path) -> list[str]:
    return ["runsc", f"--root={directory / 'runtime'}", *_flags()]


def _flags() -> list[str]:
    return [
        "--platform=systrap",
        "--network=sandbox",
        "--overlay2=none",
        "--net-disconnect-ok",
        "--cpu-num-from-quota",
        *(["--allow-suid"] if _honours_setuid() else []),
    ]


def _bundle(directory: Path) -> list[str]:
    return [f"--bundle={directory}", f"--pid-file={directory / 'pid'}"]


@functools.cache
def _honours_setuid() -> bool:
    """Older releases run every program with no_new_privs, so that sudo is of no use to users; newer ones
    do so unless told."""
    with contextlib.suppress(OSError, TimeoutError):
        return "-allow-suid" in run.run(["runsc", "flags"], timeout_s=10, check=False).stdout
    return False


def _probed() -> Probe:
    """What is not available now may be so tomorrow with no package renewed."""
    found = _probe(packages.state("runsc"))
    if not found.available:
        _probe.cache_clear()
    return found


@functools.lru_cache(maxsize=1)
def _probe(_: packages.State) -> Probe:
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
    if why := advisories.refusal("gvisor"):
        return Probe(False, reason=why, remedy=advisories.REMEDY)
    words = done.stdout.split()
    return Probe(
        True,
        version=words[2] if len(words) > 2 else None,
        details={"setuid": _honours_setuid()},
    )
