"""The microVM rung: one jailed VMM a machine, KVM where it works, emulation otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import os
import platform
import re
import resource
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import structlog

from roost import claims
from roost.drivers import saved, sizes, tree
from roost.drivers.interface import (
    Capabilities,
    Capture,
    Driver,
    Exit,
    ForkKind,
    Handle,
    Isolation,
    Probe,
    Size,
    StartSpec,
    Usage,
)
from roost.drivers.qemu import capture as captures
from roost.drivers.qemu import launch, options
from roost.drivers.qemu import manifest as manifests
from roost.drivers.qemu.launch import Place, Plan
from roost.drivers.qemu.machine import Machine
from roost.drivers.qemu.mappedram import SnapshotInvalid
from roost.drivers.qemu.probe import Acceleration, acceleration, known
from roost.drivers.qemu.qmp import Qmp
from roost.drivers.qemu.runtime import Runtime, Runtimes, installed
from roost.errors import InternalError, MachineError, RoostError
from roost.guest import FIRST_TOKEN, Guest, Guests, Network, command_line, tsc
from roost.host import advisories, cgroups, console, ending, files, processes
from roost.lasting import to_the_end
from roost.network.addresses import MAX_SLOTS, instance_tag
from roost.settings import Settings
from roost.storage import disks

T = TypeVar("T")
log = structlog.get_logger(__name__)

_QMP_S = 20.0  # until a new VMM answers, on a host that hardly runs
_KILL_S = 10.0
_STEP_S = 10.0
# Users of VMMs: beyond every range that distributions give out (systemd.io/UIDS-GIDS), by daemon and slot.
_UID_BASE = 0x70000000
# What the VMM uses beside its guest's memory: itself, its translation buffer, page tables.
_OVERHEAD_MIB = 128
_OVERHEAD_SHARE = 64
_THREADS = 96  # the VMM's own, most of them for disk requests
_BOOT_TB_MIB = 256  # a kernel's boot translates more code than a machine at work
_BOOT_TRIES = 2


class QemuDriver(Driver):
    name = "qemu"
    bakes = True
    renames = True
    volumes = True
    first_token = FIRST_TOKEN

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.guests = Guests(settings.data_dir, tree.default_agent())
        self.runtimes = Runtimes(settings.data_dir)
        self._home = settings.run_dir / "machines" / self.name
        tag = instance_tag(settings.run_dir)
        self._probe_uid = _UID_BASE - 1 - int(tag, 16)  # nobody else's, of any daemon of this host
        self._uid_base = _UID_BASE + (int(tag, 16) >> 2) * MAX_SLOTS
        self.cgroups = cgroups.Cgroups(f"roost-{tag}")
        self.cpu = options.Cpu(settings.vm_cpu)
        self._threads = ThreadPoolExecutor(8, thread_name_prefix=self.name)
        self._live: dict[str, Machine] = {}
        self._acceleration: Acceleration | None = None
        self._guest: Guest | None = None
        self._ready = False

    # --- what it is --------------------------------------------------------------------------------

    async def probe(self) -> Probe:
        """Tries nothing: KVM is tried by ``prepare``, with the guest that is made then."""
        if platform.machine() != "x86_64":
            return Probe(False, reason=f"there is no microVM rung for {platform.machine()} yet")
        try:
            _, version = await self._run(installed)
            if why := await self._run(advisories.refusal, self.name):
                return Probe(False, reason=why, remedy=advisories.REMEDY)
            if self._acceleration is None:
                self._acceleration = await self._run(self._known)
        except RoostError as exc:
            return Probe(False, reason=exc.message, remedy=exc.details.get("remedy"))
        except OSError as exc:
            return Probe(False, reason=f"QEMU or its files cannot be looked at: {exc}")
        found = self._acceleration
        details = {
            "kvm": found is not None and found.works,
            "kvm_reason": found.reason if found else "/dev/kvm is tried with the first microVM",
        }
        return Probe(True, version, details=details)

    def _known(self) -> Acceleration | None:
        guest = self.guests.kept()
        return known(self.settings.run_dir, self.runtimes.current(), guest)

    @property
    def undecided(self) -> bool:
        return self._acceleration is None

    async def prepare(self) -> None:
        await self._accelerated(await self._current())

    async def _current(self) -> Guest:
        if self._guest is None:
            self._guest = await self.guests.ensure(_log)
        return self._guest

    async def _accelerated(self, guest: Guest) -> Acceleration:
        if self._acceleration is None:
            runtime = await self._run(self.runtimes.current)
            self._acceleration = await self._run(
                acceleration, self.settings.run_dir, runtime, guest, self._probe_uid
            )
        return self._acceleration

    def fit(self, size: Size) -> Size:
        """Memory and storage of the next larger bake: what is in a snapshot knows how much it has."""
        return sizes.rounded(size)

    def traits(self) -> dict[str, Any]:
        assert self._guest is not None
        return {
            "runtime": self.runtimes.current().digest,
            "guest": self._guest.digest,
            "cpu": self.cpu.model,
            "accelerated": self.capabilities().accelerated,
            "devices": options.DEVICES,
        }

    def environment(self) -> Mapping[str, str]:
        return tree.CA_ENVIRONMENT if self.settings.host_ca else {}

    def given(self) -> Mapping[str, bytes]:
        return tree.host_authorities() if self.settings.host_ca else {}

    def capabilities(self) -> Capabilities:
        accelerated = self._acceleration is not None and self._acceleration.works
        return Capabilities(
            isolation=Isolation.MICROVM,
            boundary=claims.boundary(self.name, accelerated=accelerated),
            claim=claims.claim(self.name, accelerated=accelerated),
            own_kernel=True,
            own_network=True,
            disk_image=True,
            raw_disk=True,
            memory_snapshot=True,
            fork=ForkKind.MEMORY,
            egress_enforced=True,
            needs_root=True,
            accelerated=accelerated,
            freeze=True,
        )

    # --- life --------------------------------------------------------------------------------------

    async def start(self, spec: StartSpec) -> Handle:
        """Returns with the agent up. A boot that is stuck is tried once more; then MACHINE_FAILED tells the last
        the console said."""
        guest = await self._current()
        runtime = await self._run(self.runtimes.current)
        accelerated = (await self._accelerated(guest)).works
        slot = spec.slot
        line = command_line(
            tsc_khz=None if accelerated else await self._run(tsc.khz),
            network=Network(slot.address, slot.gateway, slot.gateway) if slot else None,
            volumes=[(each.path, each.read_only) for each in spec.volumes],
        )
        boot = options.Boot(line)
        plan = self._plan(spec, runtime, guest, accelerated, boot, None, tb_mib=_BOOT_TB_MIB)
        for tries_left in reversed(range(_BOOT_TRIES)):
            handle = await self._start(plan, FIRST_TOKEN)
            if await self._came_up(handle):
                return handle
            tail = _printable(await self.console_tail(spec.machine_id))
            await to_the_end(self.remove(spec.machine_id))
            log.warning("qemu.boot", machine_id=spec.machine_id, tries_left=tries_left, said=tail)
        raise MachineError(
            f"The machine's kernel or agent did not come up within {self._boot_s:g} s, in "
            f"{_BOOT_TRIES} tries. Its console said last: {tail[-500:]}",
            code="MACHINE_FAILED",
            details={"console": tail},
        )

    @property
    def _boot_s(self) -> float:
        return self.settings.operation_timeout_s / _BOOT_TRIES

    async def _came_up(self, handle: Handle) -> bool:
        """That its agent is there, or the boot is stuck or over."""
        machine = self._machine(handle)
        answers = asyncio.ensure_future(machine.agent_answers())
        try:
            over: asyncio.Future[Any] = machine.exit
            await asyncio.wait(
                {answers, over},
                timeout=self._boot_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            return answers.done() and answers.exception() is None
        except asyncio.CancelledError:
            await to_the_end(self.remove(handle.machine_id))
            raise
        finally:
            answers.cancel()
            await asyncio.wait({answers})

    async def restore(self, spec: StartSpec, capture: Capture) -> Handle:
        """Raises SNAPSHOT_INVALID, before anything is started, for a capture that is not whole or not of
        this VMM, guest, CPU and size."""
        memory = capture.directory / manifests.MEMORY
        manifest = await self._run(_read_checked, capture.directory)
        guest = self.guests.get(manifest.guest) or await self._current()
        runtime = self.runtimes.get(manifest.runtime)
        if runtime is None:
            runtime = await self._run(self.runtimes.current)
        accelerated = (await self._accelerated(guest)).works
        start = options.SnapshotMemory(manifest.pages_offset)
        plan = self._plan(spec, runtime, guest, accelerated, start, memory)
        manifests.require(
            manifest,
            runtime=runtime.digest,
            vmm_version=runtime.version,
            guest=guest.digest,
            fingerprint=launch.fingerprint(plan),
            tsc_khz=0 if accelerated else await self._run(tsc.khz),
        )
        return await self._start(plan, spec.agent_token)

    def _plan(
        self,
        spec: StartSpec,
        runtime: Runtime,
        guest: Guest,
        accelerated: bool,
        start: options.Boot | options.SnapshotMemory,
        snapshot: Path | None,
        **more: Any,
    ) -> Plan:
        if spec.root.image is None or spec.slot is None:
            raise InternalError(f"The {self.name} driver needs a disk image and a network slot.")
        return Plan(
            spec=spec,
            place=self._place(spec.machine_id),
            uid=self._uid_base + spec.slot.index,
            runtime=runtime,
            guest=guest,
            start=start,
            snapshot=snapshot,
            accel=options.Accel.KVM if accelerated else options.Accel.TCG,
            cpu=dataclasses.replace(
                self.cpu,
                features=() if accelerated else options.NOT_EMULATED,
                count=max(1, math.ceil(spec.size.vcpu)),
            ),
            io_bytes_per_s=self.settings.vm_disk_mib_per_s << 20,
            io_ops_per_s=self.settings.vm_disk_ops_per_s,
            **more,
        )

    async def _start(self, plan: Plan, token: str) -> Handle:
        machine_id = plan.spec.machine_id
        if machine_id in self._live or plan.place.directory.exists():
            await self.remove(machine_id)
        await self._run(self._prepare_host)
        launching = asyncio.ensure_future(self._run(launch.launch, plan))
        try:
            launched = await asyncio.shield(launching)
            machine = await self._take(plan, launched, token)
            self._live[machine_id] = machine
            if isinstance(plan.start, options.SnapshotMemory):
                await machine.dial_ahead()
                await captures.load(machine.qmp)
                await machine.qmp.execute("cont", timeout_s=_STEP_S)
        except BaseException as exc:
            # The thread cannot be stopped: let it end, then take away what it made.
            await asyncio.wait([launching])
            if not launching.exception() and machine_id not in self._live:
                launching.result().console.close()
            await to_the_end(self.remove(machine_id))
            if isinstance(exc, OSError):
                raise MachineError(
                    f"The machine could not be started: {exc}.", code="MACHINE_FAILED"
                ) from exc
            raise
        return machine.handle

    async def _take(self, plan: Plan, launched: launch.Launched, token: str) -> Machine:
        """The new VMM: into its group while it comes up, then its monitor."""
        group = self._group(plan.spec.machine_id)
        assert plan.spec.root.image is not None
        # The largest is the limit of them all: of each its own size is the guest's.
        images = (plan.spec.root.image, *(each.image for each in plan.spec.volumes))
        disk_bytes = max(each.stat().st_size for each in images)
        confined = asyncio.ensure_future(
            self._run(self._confine, group, plan.spec.size, launched.pid, disk_bytes)
        )
        try:
            ticks = processes.start_ticks(launched.pid)
            pidfd = None if ticks is None else processes.open_pidfd(launched.pid, ticks)
            if ticks is None or pidfd is None:
                raise _ended_at_once(launched.console)
            try:
                qmp = await Qmp.connect(plan.place.qmp, _QMP_S)
            except MachineError as exc:
                os.close(pidfd)
                if processes.start_ticks(launched.pid) is None:
                    raise _ended_at_once(launched.console) from exc
                raise
        finally:
            await asyncio.wait([confined])
        try:
            confined.result()
            handle = Handle(
                driver=self.name,
                machine_id=plan.spec.machine_id,
                pid=launched.pid,
                pid_start_ticks=ticks,
                boot_id=processes.boot_id(),
                agent_target=f"unix:{plan.place.grpc}",
            )
            machine = Machine(handle, plan.place, qmp, pidfd, launched.console, token)
        except BaseException:
            await qmp.close()
            os.close(pidfd)
            raise
        await machine.open(lambda: self._run(self.cgroups.oom_kills, group))
        return machine

    def _confine(self, group: str, size: Size, pid: int, disk_bytes: int) -> None:
        memory = size.memory_mib + _OVERHEAD_MIB + size.memory_mib // _OVERHEAD_SHARE
        self.cgroups.create(
            group, cgroups.Limits(size.vcpu, memory << 20, _THREADS + math.ceil(size.vcpu))
        )
        self.cgroups.add(group, pid)
        # The image's size is the machine's limit, also for a monitor that its guest has taken over.
        largest = max(disk_bytes, (size.memory_mib + _OVERHEAD_MIB) << 20)
        with contextlib.suppress(PermissionError):  # a root without CAP_SYS_RESOURCE
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (largest, largest))
            resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
        # Not the daemon's own score: where memory is short, machines go before what keeps them.
        with contextlib.suppress(PermissionError):
            Path(f"/proc/{pid}/oom_score_adj").write_text("500")

    async def adopt(self, handle: Handle) -> bool:
        if handle.machine_id in self._live:
            return self._live[handle.machine_id].handle == handle
        if handle.driver != self.name or handle.boot_id != processes.boot_id():
            return False
        place = self._place(handle.machine_id)
        pidfd = processes.open_pidfd(handle.pid, handle.pid_start_ticks)
        if pidfd is None:
            return False
        try:
            said = console.Console(place.log)
        except OSError:
            os.close(pidfd)
            return False
        try:
            qmp = await Qmp.connect(place.qmp, _QMP_S)
        except MachineError:
            said.close()
            os.close(pidfd)
            return False
        machine = Machine(handle, place, qmp, pidfd, said, "")
        group = self._group(handle.machine_id)
        await machine.open(lambda: self._run(self.cgroups.oom_kills, group))
        self._live[handle.machine_id] = machine
        await machine.settle()
        return True

    def use_token(self, handle: Handle, token: str) -> None:
        self._machine(handle).dialler.use_token(token)

    async def wait(self, handle: Handle) -> Exit:
        machine = self._live.get(handle.machine_id)
        if machine is None or machine.handle != handle:
            if not await self.adopt(handle):
                killed = await self._run(self.cgroups.oom_kills, self._group(handle.machine_id))
                return Exit("oom" if killed else "unknown")
            machine = self._live[handle.machine_id]
        return await asyncio.shield(machine.exit)

    async def console_tail(self, machine_id: str) -> str:
        machine = self._live.get(machine_id)
        return await machine.console_tail() if machine else ""

    async def remove(self, machine_id: str) -> None:
        machine = self._live.get(machine_id)
        if machine is not None:
            machine.removing = True
        await self._run(self._remove, machine_id)
        # Who sweeps and who ends it may both have come this far; it is closed once.
        if machine is not None and self._live.get(machine_id) is machine:
            del self._live[machine_id]
            await machine.close()

    def _remove(self, machine_id: str) -> None:
        """Every step is safe to repeat; the directory goes last, since it is what the rest is found by."""
        place = self._place(machine_id)
        group = self._group(machine_id)
        ending.end_group(self.cgroups, group, _KILL_S)
        record = place.record()
        if record is not None:
            # One that a daemon which died had started but not yet put into its group.
            ending.end_user(int(record["uid"]), _KILL_S)
        self.cgroups.remove(group)
        launch.discard(place)

    async def list_ids(self) -> set[str]:
        return await self._run(self._list)

    def _list(self) -> set[str]:
        found = {p.name for p in self._home.iterdir()} if self._home.exists() else set()
        prefix = f"{self.name}-"
        return found | {
            n.removeprefix(prefix) for n in self.cgroups.names() if n.startswith(prefix)
        }

    # --- while it runs -----------------------------------------------------------------------------

    async def tidy(self, kept: Sequence[Mapping[str, Any]]) -> None:
        if self._guest is None:  # nothing was started: what is current cannot be told
            return
        records = [r for i in await self.list_ids() if (r := self._place(i).record()) is not None]
        found = [*kept, *records]
        current = await self._run(self.runtimes.current)
        await self._run(
            self.runtimes.sweep, {current.digest, *(str(each.get("runtime")) for each in found)}
        )
        await self._run(
            self.guests.sweep, {self._guest.digest, *(str(each.get("guest")) for each in found)}
        )

    async def usage(self, handle: Handle) -> Usage:
        try:
            reading = await self._run(self.cgroups.read, self._group(handle.machine_id))
        except FileNotFoundError as exc:
            raise _gone(handle) from exc
        return Usage(
            reading.cpu_usage_us, reading.memory_bytes, reading.memory_limit_bytes, reading.pids
        )

    async def freeze(self, handle: Handle) -> None:
        machine = self._machine(handle)
        async with machine.busy:
            machine.place.frozen.touch()
            await machine.qmp.execute("stop", timeout_s=_STEP_S)

    async def thaw(self, handle: Handle) -> None:
        machine = self._machine(handle)
        async with machine.busy:
            await machine.qmp.execute("cont", timeout_s=_STEP_S)
            machine.place.frozen.unlink(missing_ok=True)

    async def frozen(self, handle: Handle) -> bool:
        return self._machine(handle).place.frozen.exists()

    async def freeze_disk(self, handle: Handle) -> None:
        """The image as after a power cut at this instant, all that the guest flushed in it."""
        await self.freeze(handle)
        await self._run(files.sync, self._disk(handle))

    async def thaw_disk(self, handle: Handle) -> None:
        await self.thaw(handle)

    # --- memory ------------------------------------------------------------------------------------

    async def capture(
        self,
        handle: Handle,
        into: Path,
        disk_to: Path,
        *,
        durable: bool = True,
        memory: bool = True,
    ) -> Capture:
        machine = self._machine(handle)
        async with machine.busy:
            if not memory:
                paused_ms = await captures.disk_alone(
                    machine.qmp, self._disk(handle), disk_to, durable=durable
                )
                return Capture(into, {}, paused_ms, memory=False)
            manifest, paused_ms = await captures.live(
                self._source(machine), into, self._disk(handle), disk_to, durable=durable
            )
        return Capture(into, manifest.to_json(), paused_ms)

    async def hibernate(self, handle: Handle, into: Path) -> Capture:
        machine = self._machine(handle)
        source = self._source(machine)
        async with machine.busy:
            manifest: manifests.Manifest | None = None
            if source.snapshot is not None:
                with contextlib.suppress(SnapshotInvalid, OSError):
                    manifest = await captures.delta(source, into)
            if manifest is None:
                manifest = await captures.whole(source, into)
            try:
                for image in (self._disk(handle), *self._volumes(handle)):
                    await self._run(files.sync, image)
            except BaseException:
                await to_the_end(self._go_on(machine, into))
                raise
        await to_the_end(self.remove(handle.machine_id))
        return Capture(into, manifest.to_json())

    async def kept(self, directory: Path) -> Capture | None:
        try:
            manifest = await self._run(_read_checked, directory)
        except SnapshotInvalid:
            return None
        return Capture(directory, manifest.to_json())

    async def _go_on(self, machine: Machine, into: Path) -> None:
        await captures.resume(machine.qmp)
        await self._run(saved.clear, into)

    def _source(self, machine: Machine) -> captures.Source:
        record = machine.place.record()
        if record is None:
            raise InternalError(f"Machine {machine.handle.machine_id} has no record of its start.")
        return captures.Source(
            qmp=machine.qmp,
            pid=machine.handle.pid,
            runtime=str(record["runtime"]),
            guest=str(record["guest"]),
            fingerprint=dict(record["fingerprint"]),
            tsc_khz=0 if record["fingerprint"]["accel"] == options.Accel.KVM else tsc.khz(),
            memory_bytes=int(record["fingerprint"]["memory_mib"]) << 20,
            snapshot=None if record["snapshot"] is None else tuple(record["snapshot"]),
        )

    # --- names -------------------------------------------------------------------------------------

    def _place(self, machine_id: str) -> Place:
        return Place(self._home / disks.check_id(machine_id))

    def _group(self, machine_id: str) -> str:
        return f"{self.name}-{machine_id}"

    def _machine(self, handle: Handle) -> Machine:
        machine = self._live.get(handle.machine_id)
        if machine is None or machine.handle != handle:
            raise _gone(handle)
        return machine

    def _disk(self, handle: Handle) -> Path:
        record = self._place(handle.machine_id).record()
        if record is None:
            raise _gone(handle)
        return Path(record["disk"])

    def _volumes(self, handle: Handle) -> list[Path]:
        record = self._place(handle.machine_id).record() or {}
        return [Path(each) for each in record.get("volumes", ())]

    async def _run(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    def _prepare_host(self) -> None:
        if not self._ready:
            self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.chmod(self._home.parent, 0o700)
            self.cgroups.prepare()
            self._ready = True


def _read_checked(directory: Path) -> manifests.Manifest:
    manifest = manifests.read(directory)
    try:
        fd = os.open(directory / manifests.MEMORY, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as exc:
        raise SnapshotInvalid(
            f"The memory snapshot cannot be read: {exc.strerror}. The machine can start from its disk."
        ) from exc
    try:
        manifests.verify(fd, manifest)
    finally:
        os.close(fd)
    return manifest


def _printable(text: str) -> str:
    """Of a hostile one."""
    return re.sub(r"[^\x20-\x7e\n]", "?", text)


def _log(stage: str, percent: int | None, what: str) -> None:
    log.info("qemu.guest", stage=stage, percent=percent, what=what)


def _ended_at_once(console_log: console.Console) -> MachineError:
    lines = [line for line in console_log.tail().splitlines() if line.strip()]
    said = _printable(lines[-1])[-500:] if lines else "it said nothing"
    return MachineError(f"The VMM ended at once: {said}.", code="MACHINE_FAILED")


def _gone(handle: Handle) -> MachineError:
    return MachineError(
        f"Machine {handle.machine_id} does not run any more.", code="MACHINE_FAILED"
    )
