"""What machines of OCI runtimes have in common.

A machine has a directory of its own under the run directory: its console (a FIFO), the runtime's state,
and ``machine.json``, which says which disk it runs on, so that a later daemon can take everything away. Its
cgroup is the second place it is found by.

Starting is one blocking pass in a thread of its own: the thread leaves the daemon's mount and network
namespaces, mounts the disk where nobody else sees it, and starts the runtime, which inherits all that
without a helper program. When the machine's last process is gone so is the mount.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from roost.drivers import oci, saved, tree
from roost.drivers.interface import (
    Capture,
    Driver,
    Exit,
    Handle,
    NetworkSlot,
    Size,
    StartSpec,
    Usage,
)
from roost.errors import CapacityError, InternalError, MachineError, RoostError
from roost.host import (
    apart,
    cgroups,
    console,
    ending,
    files,
    idmaps,
    processes,
    reaper,
    run,
    syscalls,
)
from roost.lasting import to_the_end
from roost.network.addresses import AGENT_PORT, instance_tag
from roost.settings import Settings
from roost.storage import disks, mounting

T = TypeVar("T")

_KILL_TIMEOUT_S = 10.0
_HELD = "held"  # beside machine.json while a capture keeps the machine from running
_FROZEN = "frozen"  # beside it from before ``freeze`` until after ``thaw``
_STOPPED = "stopped"  # the same, while it is put down for good
_MANIFEST = "manifest.json"  # beside the memory it tells of, last
_SIOCADDRT = 0x890B
_SIOCGIFADDR = 0x8915
_SIOCSIFADDR = 0x8916
_SIOCSIFNETMASK = 0x891C
# Covered in the launcher's own mount table. A runtime whose root is not the host's passes no directory of ours.
_SHOWN = Path("/mnt")
_TELLING = re.compile(r"error|fatal|cannot|failed|not defined", re.IGNORECASE)
_ENODATA = (99, 19)  # EADDRNOTAVAIL, ENODEV


@dataclass(slots=True)
class _Live:
    """A machine this daemon started or adopted."""

    handle: Handle
    pidfd: int
    console: console.Console
    exit: asyncio.Future[Exit]
    watcher: asyncio.Task[None] | None = None
    freezing: threading.Lock = field(default_factory=threading.Lock)  # of who makes it stand still
    removing: bool = False  # its end is then our doing, whoever gets to read its status


class ContainerDriver(Driver):
    """Base of ``RuncDriver`` and ``GVisorDriver``."""

    volumes = True
    own_users = False  # its users are the block's of its slot on the host, not the host's own
    mount_attributes = 0  # more of ``MOUNT_ATTR_*``, where it has own users

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._base = settings.run_dir / "machines"
        self._home = self._base / self.name
        self.agent = tree.AgentBinary(tree.default_agent())
        self.cgroups = cgroups.Cgroups(f"roost-{instance_tag(settings.run_dir)}")
        self._threads = ThreadPoolExecutor(8, thread_name_prefix=self.name)
        self._live: dict[str, _Live] = {}
        self._ready = False
        self._ready_lock = threading.Lock()
        self._keeper: asyncio.Task[None] | None = None
        self._reaper = reaper.Reaper()
        self._known = saved.Known()

    # --- what differs ----------------------------------------------------------------------------

    @abstractmethod
    def _limits(self, size: Size) -> cgroups.Limits:
        """Of the machine's cgroup on the host."""

    @abstractmethod
    def _command(self, directory: Path, machine_id: str) -> list[str]:
        """Starts the bundle in ``directory`` detached and writes ``directory/pid``."""

    def _seccomp(self) -> Mapping[str, Any] | None:
        return None

    def _refine(
        self, bundle: dict[str, Any], spec: StartSpec, places: oci.Places
    ) -> dict[str, Any]:
        """What the runtime is told, of what ``oci.spec`` made."""
        return bundle

    def _apparmor(self) -> str | None:
        """A profile that is loaded, for machines to run under."""
        return None

    def _restore_command(self, directory: Path, machine_id: str, image: Path) -> list[str]:
        """As ``_command``, from a memory image."""
        raise NotImplementedError

    def _settle(self, handle: Handle) -> None:
        """Before the machine is stopped."""

    def _stop(self, machine_id: str) -> None:
        """The machine stands still until ``_go_on``; on failure it does not."""
        self.cgroups.freeze(self._group(machine_id), True)

    def _go_on(self, machine_id: str) -> None:
        self.cgroups.freeze(self._group(machine_id), False)

    def _go_on_again(self, handle: Handle) -> None:
        """Of one that a daemon which died may have stopped, or not."""
        self._go_on(handle.machine_id)

    def _save(self, machine_id: str, into: Path, meanwhile: Callable[[], None] | None) -> None:
        """A stopped machine's memory. ``meanwhile`` is called every few ms of it, or not at all."""
        raise NotImplementedError

    def _record(self) -> dict[str, Any]:
        """What is kept beside the machine's disk in ``machine.json``."""
        return {}

    def _traits(self) -> dict[str, Any]:
        """What a memory image depends on beside itself; JSON."""
        return {}

    def _fits(self, traits: Mapping[str, Any]) -> None:
        """Raises SNAPSHOT_INVALID where this host is not one they were written down on, or like it."""

    def _in_namespace(self) -> None:
        """In the launching thread, in the machine's network namespace and a mount namespace that only
        the runtime will see."""

    def traits(self) -> dict[str, Any]:
        return self._traits()

    def environment(self) -> Mapping[str, str]:
        return tree.CA_ENVIRONMENT if self.settings.host_ca else {}

    # --- names -----------------------------------------------------------------------------------

    def _directory(self, machine_id: str) -> Path:
        return self._home / disks.check_id(machine_id)

    def _group(self, machine_id: str) -> str:
        return f"{self.name}-{machine_id}"

    async def _run(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    def _prepare_host(self) -> None:
        with self._ready_lock:
            if not self._ready:
                self._base.mkdir(parents=True, exist_ok=True, mode=0o700)
                os.chmod(
                    self._base, 0o700
                )  # a setuid file on a machine's disk is nobody's on the host
                self._home.mkdir(exist_ok=True, mode=0o700)
                self.cgroups.prepare()
                syscalls.set_child_subreaper(True)
                self._ready = True

    # --- start -----------------------------------------------------------------------------------

    async def start(self, spec: StartSpec) -> Handle:
        return await self._bring_up(spec, None)

    async def restore(self, spec: StartSpec, capture: Capture) -> Handle:
        if not self.capabilities().memory_snapshot:
            return await super().restore(spec, capture)
        if not capture.memory:
            raise saved.invalid("it is of a disk alone")
        await self._run(self._check, capture)
        return await self._bring_up(spec, capture)

    def _check(self, capture: Capture) -> None:
        self._fits(capture.manifest.get("host", {}))
        sealed = capture.manifest.get("files")
        if not sealed:
            raise saved.invalid("nothing is known of its files")
        saved.check(capture.directory, sealed, self._known)

    async def _bring_up(self, spec: StartSpec, capture: Capture | None) -> Handle:
        if spec.root.image is None or spec.slot is None:
            raise InternalError(f"The {self.name} driver needs a disk image and a network slot.")
        await self._run(self._clear, spec.machine_id, spec.root.image)
        task: asyncio.Future[tuple[Handle, int, console.Console]] = (
            asyncio.get_running_loop().create_future()
        )
        thread = _Launch(lambda: self._start(spec, capture), task)
        thread.start()
        try:
            # The thread cannot be stopped: it ends, and its mounts with it.
            handle, pidfd, fifo = await to_the_end(task, _let_go)
        except BaseException:
            await self._run(self._remove, spec.machine_id, spec.root.image)
            raise
        self._watch(handle, pidfd, fifo)
        return handle

    def _start(
        self, spec: StartSpec, capture: Capture | None
    ) -> tuple[Handle, int, console.Console]:
        assert spec.root.image is not None
        self._prepare_host()
        fifo: console.Console | None = None
        try:
            directory = self._directory(spec.machine_id)
            directory.mkdir(mode=0o700)
            files.write_json(
                directory / "machine.json",
                {
                    "disk": str(spec.root.image),
                    "volumes": [str(each.image) for each in spec.volumes if not each.read_only],
                    "users": [spec.slot.users.first, spec.slot.users.count]
                    if self.own_users and spec.slot and spec.slot.users
                    else None,
                    **self._record(),
                },
                durable=False,
            )
            with contextlib.ExitStack() as held:
                disk = held.enter_context(mounting.attached(spec.root.image))
                volumes = [
                    held.enter_context(mounting.attached(each.image, shared=each.read_only))
                    for each in spec.volumes
                ]
                apart.enter()
                mounting.mount(disk, directory / "rootfs")
                for number, volume in enumerate(spec.volumes):
                    mounting.mount(
                        volumes[number],
                        directory / "volumes" / str(number),
                        read_only=volume.read_only,
                    )
                # A machine that goes on has its files open and cached: nothing may be written under it.
                identified = capture is None and self._prepare_disk(
                    spec, disk, directory / "rootfs"
                )
                if capture is None:
                    tree.make_mount_points(
                        directory / "rootfs", [each.path for each in spec.volumes]
                    )
                disks.mark_used(spec.root.image)
                for volume in spec.volumes:
                    if not volume.read_only:
                        disks.mark_used(volume.image)
                places = oci.Places(directory / "rootfs", directory / "volumes")
                users = self._users(spec, held) if self.own_users else None
                if users is not None:
                    places = _show(places, len(spec.volumes), users[0], self.mount_attributes)
                self._write_bundle(spec, directory, places, users[1] if users else None)
                fifo = console.Console(directory / "console")
                command = (
                    self._command(directory, spec.machine_id)
                    if capture is None
                    else self._restore_command(directory, spec.machine_id, capture.directory)
                )
                pid = self._launch(spec, directory, command, fifo)
            ticks = processes.start_ticks(pid)
            pidfd = None if ticks is None else processes.open_pidfd(pid, ticks)
            if ticks is None or pidfd is None:
                raise MachineError(
                    f"The machine ended at once: {_last(fifo.tail())}", code="MACHINE_FAILED"
                )
            (directory / "config.json").unlink()
            assert spec.slot is not None
            handle = Handle(
                driver=self.name,
                machine_id=spec.machine_id,
                pid=pid,
                pid_start_ticks=ticks,
                boot_id=processes.boot_id(),
                agent_target=f"{spec.slot.host_address}:{AGENT_PORT}",
                identity_on_disk=identified,
            )
            return handle, pidfd, fifo
        except BaseException as exc:
            if fifo is not None:
                fifo.close()
            if isinstance(exc, RoostError) or not isinstance(exc, Exception):
                raise
            raise MachineError(
                f"The machine could not be started: {exc}.", code="MACHINE_FAILED"
            ) from exc

    def _prepare_disk(self, spec: StartSpec, disk: mounting.Attached, root: Path) -> bool:
        """Whether a fresh disk has all of its identity now."""
        assert spec.slot is not None
        return tree.prepare(
            root,
            self.agent,
            has_agent=disk.info.fresh and disk.info.agent_digest == self.agent.digest,
            hostname=spec.hostname,
            linux_id=spec.linux_id if disk.info.fresh else None,
            nameserver=spec.slot.gateway,
            host_ca=self.settings.host_ca,
        )

    def _users(self, spec: StartSpec, held: contextlib.ExitStack) -> tuple[int, oci.Users]:
        """The user namespace that the machine's network belongs to: a descriptor, and what the runtime is told."""
        assert spec.slot is not None
        network = os.open(spec.slot.netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            namespace = idmaps.owner_of(network)
        finally:
            os.close(network)
        if namespace is None or spec.slot.users is None:
            raise InternalError(
                "The machine's network is of an earlier version of Roost; try again.",
                retryable=True,
            )
        held.callback(os.close, namespace)
        path = f"/proc/{os.getpid()}/fd/{namespace}"
        return namespace, oci.Users(path, spec.slot.users)

    def _write_bundle(
        self, spec: StartSpec, directory: Path, places: oci.Places, users: oci.Users | None
    ) -> None:
        bundle = oci.spec(
            spec,
            limits=self._limits(spec.size),
            cgroup=self.cgroups.path_for_runtime(self._group(spec.machine_id)),
            environment=self.environment(),
            seccomp=self._seccomp(),
            network_namespace=str(spec.slot.netns) if spec.slot else None,
            places=places,
            users=users,
            apparmor=self._apparmor(),
        )
        bundle = self._refine(bundle, spec, places)
        fd = os.open(directory / "config.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as file:
            json.dump(bundle, file)

    def _launch(
        self, spec: StartSpec, directory: Path, command: list[str], fifo: console.Console
    ) -> int:
        assert spec.slot is not None
        self._enter_network(spec.slot)
        output = fifo.open_for_machine()
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env={"PATH": os.environ.get("PATH", os.defpath)},
                process_group=0,
            )
        finally:
            os.close(output)
        # Not Popen.wait(timeout): it looks only every 50 ms.
        pidfd = os.pidfd_open(process.pid)
        try:
            if not processes.wait_pidfds([pidfd], self.settings.operation_timeout_s):
                raise MachineError(
                    f"The machine did not start within {self.settings.operation_timeout_s:.0f} s; "
                    "try again.",
                    code="TIMEOUT",
                )
        finally:
            os.close(pidfd)
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if (code := process.returncode) != 0:
            raise MachineError(
                f"The runtime refused to start the machine: {_last(fifo.tail())}",
                code="MACHINE_FAILED",
                details={"exit_code": code},
            )
        # Not told to the runtime, which fails where the kernel does not count swap; only the agent runs yet.
        limits = self._limits(spec.size)
        self.cgroups.bound_memory(self._group(spec.machine_id), limits.memory_bytes)
        return int((directory / "pid").read_text())

    def _enter_network(self, slot: NetworkSlot) -> None:
        """For the launching thread, which ends afterwards."""
        syscalls.join(slot.netns, syscalls.CLONE_NEWNET)
        _put_address_back(slot.interface, slot.address, slot.gateway)
        self._in_namespace()

    # --- watching --------------------------------------------------------------------------------

    def _watch(self, handle: Handle, pidfd: int, fifo: console.Console) -> None:
        loop = asyncio.get_running_loop()
        live = _Live(handle, pidfd, fifo, loop.create_future())
        self._live[handle.machine_id] = live
        live.watcher = loop.create_task(self._follow(live), name=f"watch-{handle.machine_id}")
        if self._keeper is None or self._keeper.done():
            self._keeper = loop.create_task(self._keep(), name=f"{self.name}-keeper")

    async def _follow(self, live: _Live) -> None:
        await processes.ended(live.pidfd)
        if live.exit.done():
            return
        status = processes.reap(live.handle.pid)
        killed = await self._run(self.cgroups.oom_kills, self._group(live.handle.machine_id))
        if not live.exit.done():
            live.exit.set_result(Exit("killed") if live.removing else _exit(status, killed))

    async def _keep(self) -> None:
        """While there are machines: empties their consoles, lets go of frozen ones that were killed, reaps what
        they leave behind."""
        left = 0
        while self._live or left:
            await asyncio.sleep(1.0)
            for live in list(self._live.values()):
                live.console.drain()
                if self._mark(live.handle).exists() and processes.is_killed(live.handle.pid):
                    with contextlib.suppress(MachineError):
                        await self.thaw(live.handle)
            left = self._reaper.sweep()

    def _forget(self, machine_id: str) -> None:
        live = self._live.pop(machine_id, None)
        if live is None:
            return
        if live.watcher is not None:
            live.watcher.cancel()
        if not live.exit.done():
            live.exit.set_result(Exit("killed"))
        asyncio.get_running_loop().remove_reader(live.pidfd)
        os.close(live.pidfd)
        live.console.close()

    async def adopt(self, handle: Handle) -> bool:
        if handle.machine_id in self._live:
            return self._live[handle.machine_id].handle == handle
        if handle.driver != self.name or handle.boot_id != processes.boot_id():
            return False
        await self._run(self._prepare_host)
        pidfd = processes.open_pidfd(handle.pid, handle.pid_start_ticks)
        if pidfd is None:
            return False
        try:
            await self._run(self._release, handle)
            fifo = console.Console(self._directory(handle.machine_id) / "console")
        except (OSError, RoostError):
            os.close(pidfd)
            return False
        self._watch(handle, pidfd, fifo)
        with contextlib.suppress(MachineError):
            # What a daemon that was killed left frozen goes on, unless that is what it was told to be.
            await (self.freeze if self._mark(handle).exists() else self.thaw)(handle)
        return True

    async def wait(self, handle: Handle) -> Exit:
        live = self._live.get(handle.machine_id)
        if live is None or live.handle != handle:
            if not await self.adopt(handle):
                killed = await self._run(self.cgroups.oom_kills, self._group(handle.machine_id))
                return Exit("oom" if killed else "unknown")
            live = self._live[handle.machine_id]
        return await asyncio.shield(live.exit)

    async def console_tail(self, machine_id: str) -> str:
        live = self._live.get(machine_id)
        return live.console.tail() if live else ""

    # --- removal ---------------------------------------------------------------------------------

    async def remove(self, machine_id: str) -> None:
        if machine_id in self._live:
            self._live[machine_id].removing = True
        await self._run(self._remove, machine_id, None)
        self._forget(machine_id)

    def _clear(self, machine_id: str, disk: Path) -> None:
        """Before a start. Nothing is there of a machine that has neither directory nor cgroup."""
        if self._directory(machine_id).exists() or self.cgroups.exists(self._group(machine_id)):
            self._remove(machine_id, disk)

    def _remove(self, machine_id: str, disk: Path | None) -> None:
        """Every step is safe to repeat; the directory goes last, since it is what the rest is found by."""
        directory = self._directory(machine_id)
        group = self._group(machine_id)
        record = files.read_json(directory / "machine.json")
        if disk is None and record is not None:
            disk = Path(record["disk"])
        if disk is not None and (directory / _HELD).exists():
            mounting.thaw(disk)  # a frozen one is never unmounted
        ending.end_group(self.cgroups, group, _KILL_TIMEOUT_S)
        if users := (record or {}).get("users"):  # before they are anybody's again
            ending.end_users(idmaps.Block(*users), _KILL_TIMEOUT_S)
        if disk is not None:
            mounting.wait_free(disk)
        for volume in (record or {}).get("volumes", ()):  # or the next machine would find it in use
            mounting.wait_free(Path(volume))
        self.cgroups.remove(group)
        if directory.exists():
            # Not with its content, should one ever be mounted there.
            for each in (directory / "rootfs", *(directory / "volumes").glob("*")):
                with contextlib.suppress(FileNotFoundError):
                    each.rmdir()
            shutil.rmtree(directory)

    async def list_ids(self) -> set[str]:
        return await self._run(self._list)

    def _list(self) -> set[str]:
        found = {p.name for p in self._home.iterdir()} if self._home.exists() else set()
        prefix = f"{self.name}-"
        return found | {
            n.removeprefix(prefix) for n in self.cgroups.names() if n.startswith(prefix)
        }

    # --- while it runs ---------------------------------------------------------------------------

    async def usage(self, handle: Handle) -> Usage:
        try:
            reading = await self._run(self.cgroups.read, self._group(handle.machine_id))
        except FileNotFoundError as exc:
            raise _gone(handle) from exc
        return Usage(
            reading.cpu_usage_us, reading.memory_bytes, reading.memory_limit_bytes, reading.pids
        )

    async def resize(self, handle: Handle, size: Size) -> None:
        try:
            await self._run(
                self.cgroups.set_limits, self._group(handle.machine_id), self._limits(size)
            )
        except FileNotFoundError as exc:
            raise _gone(handle) from exc
        except OSError as exc:
            raise MachineError(
                f"The machine cannot be resized now: {exc.strerror}. It may use more memory than asked "
                "for; end something in it or sleep it first.",
                code="MACHINE_FAILED",
            ) from exc

    async def freeze(self, handle: Handle) -> None:
        with _freezer(handle):
            await self._to_the_end(
                lambda: self._set_frozen(handle, True), lambda: self._set_frozen(handle, False)
            )

    async def thaw(self, handle: Handle) -> None:
        with _freezer(handle):
            await self._to_the_end(lambda: self._set_frozen(handle, False), lambda: None)

    async def frozen(self, handle: Handle) -> bool:
        return self._mark(handle).exists()

    def _mark(self, handle: Handle) -> Path:
        return self._directory(handle.machine_id) / _FROZEN

    def _set_frozen(self, handle: Handle, on: bool) -> None:
        mark = self._mark(handle)
        with self._freezing(handle):
            if on:
                mark.touch()
            try:
                self.cgroups.freeze(self._group(handle.machine_id), on)
            except BaseException:
                if on:
                    mark.unlink(missing_ok=True)
                raise
            if not on:
                mark.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _freezing(self, handle: Handle) -> Iterator[None]:
        """One at a time, of whoever makes that machine stand still. Raises FileNotFoundError where it is gone or about
        to be: nobody waits for whoever removes it, nor the other way round."""
        live = self._live.get(handle.machine_id)
        if live is None or live.handle != handle:
            raise FileNotFoundError(f"machine {handle.machine_id} is not watched")
        with live.freezing:
            if live.removing:
                raise FileNotFoundError(f"machine {handle.machine_id} is being removed")
            yield

    async def freeze_disk(self, handle: Handle) -> None:
        await self._run(mounting.freeze, await self._run(self._disk, handle.machine_id))

    async def thaw_disk(self, handle: Handle) -> None:
        await self._run(mounting.thaw, await self._run(self._disk, handle.machine_id))

    # --- one instant kept ------------------------------------------------------------------------

    async def capture(
        self,
        handle: Handle,
        into: Path,
        disk_to: Path,
        *,
        durable: bool = True,
        memory: bool = True,
    ) -> Capture:
        memory = memory and self.capabilities().memory_snapshot
        return await self._to_the_end(
            lambda: self._capture(handle, into, disk_to, durable, memory),
            lambda: _discard(into, disk_to),
        )

    def _capture(
        self, handle: Handle, into: Path, disk_to: Path, durable: bool, memory: bool
    ) -> Capture:
        try:
            with _told(handle), self._freezing(handle):
                self._must_run(handle)
                paused_ms = apart.run(lambda: self._instant(handle, into, disk_to, memory))
                manifest = self._manifest(into, disk_to, durable=durable)
        except BaseException:
            _discard(into, disk_to)
            raise
        return Capture(into, manifest, paused_ms, memory)

    def _instant(self, handle: Handle, into: Path, disk_to: Path, memory: bool) -> float:
        """Memory and disk, in a thread apart; for how many milliseconds it stood still."""
        machine_id = handle.machine_id
        with mounting.in_use(
            self._disk(machine_id), self._directory(machine_id) / "rootfs"
        ) as disk:
            if memory:
                self._settle(handle)
            with self._held(machine_id):
                if not memory:  # else while it is saved, which takes longer
                    disk.get_ready()
                with self._standing(machine_id) as since:
                    if memory:
                        self._save(machine_id, into, disk.get_ready)
                    disk.copy(disk_to)
            return (time.monotonic() - since) * 1000

    async def hibernate(self, handle: Handle, into: Path) -> Capture:
        if not self.capabilities().memory_snapshot:
            return await super().hibernate(handle, into)
        machine_id = handle.machine_id

        def undo() -> None:
            self._stand_up(machine_id)
            _discard(into)

        capture = await self._to_the_end(lambda: self._put_down(handle, into), undo)
        await to_the_end(self.remove(machine_id))
        return capture

    def _put_down(self, handle: Handle, into: Path) -> Capture:
        """Its memory in ``into``; it stands still afterwards."""
        machine_id = handle.machine_id
        with _told(handle), self._freezing(handle):
            self._must_run(handle)
            self._settle(handle)
            since = time.monotonic()
            (self._directory(machine_id) / _STOPPED).touch()
            try:
                self._stop(machine_id)
            except BaseException:  # it runs on
                (self._directory(machine_id) / _STOPPED).unlink(missing_ok=True)
                raise
            try:
                self._save(machine_id, into, None)
                manifest = self._manifest(into)
                # For a daemon that comes after this one, while the host is up (``kept``): nothing else outlasts it.
                files.write_json(into / _MANIFEST, manifest, durable=False)
            except BaseException:
                _discard(into)
                self._stand_up(machine_id)
                raise
        return Capture(into, manifest, (time.monotonic() - since) * 1000)

    def _stand_up(self, machine_id: str) -> None:
        self._go_on(machine_id)
        (self._directory(machine_id) / _STOPPED).unlink(missing_ok=True)

    async def kept(self, directory: Path) -> Capture | None:
        manifest = await self._run(files.read_json, directory / _MANIFEST)
        return None if manifest is None else Capture(directory, manifest)

    def _must_run(self, handle: Handle) -> None:
        """Its own kernel is to write itself down, and the end of a capture would let it go on."""
        if self._mark(handle).exists():
            raise InternalError(f"Machine {handle.machine_id} is frozen; thaw it first.")

    def _manifest(self, into: Path, *beside: Path, durable: bool = True) -> dict[str, Any]:
        sealed = saved.seal(into, self._known, durable=durable, beside=beside)
        return {"driver": self.name, "host": self._traits(), "files": sealed}

    @contextlib.contextmanager
    def _held(self, machine_id: str) -> Iterator[None]:
        """A daemon that dies in it leaves a mark for the next one: the machine or its disk may stand still."""
        mark = self._directory(machine_id) / _HELD
        mark.touch()
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _standing(self, machine_id: str) -> Iterator[float]:
        """Within it the machine stands still, since the time it gives; after it the machine runs on, whatever
        happens."""
        since = time.monotonic()
        self._stop(machine_id)
        try:
            yield since
        finally:
            self._go_on(machine_id)

    def _release(self, handle: Handle) -> None:
        """What a daemon that died in a capture left standing still."""
        mark = self._directory(handle.machine_id) / _HELD
        if mark.exists():
            mounting.thaw(self._disk(handle.machine_id))
            with _told(handle):
                self._go_on_again(handle)
            mark.unlink(missing_ok=True)
        if (self._directory(handle.machine_id) / _STOPPED).exists():
            with _told(handle):
                self._go_on_again(handle)
            (self._directory(handle.machine_id) / _STOPPED).unlink(missing_ok=True)

    async def _to_the_end(self, work: Callable[[], T], undo: Callable[[], None]) -> T:
        """In a thread, which cannot be stopped."""
        return await to_the_end(self._run(work), lambda _: self._run(undo))

    def _disk(self, machine_id: str) -> Path:
        record = files.read_json(self._directory(machine_id) / "machine.json")
        if record is None:
            raise InternalError(f"Machine {machine_id} is not this driver's.")
        return Path(record["disk"])


class _Launch(threading.Thread):
    """A thread that is used once: it changes its own namespaces, so no pool may get it back."""

    def __init__(self, function: Callable[[], T], future: asyncio.Future[T]) -> None:
        super().__init__(name="launch", daemon=True)
        self._function = function
        self._future: asyncio.Future[Any] = future
        self._loop = future.get_loop()

    def run(self) -> None:
        try:
            result = self._function()
        except BaseException as exc:
            self._loop.call_soon_threadsafe(self._fail, exc)
        else:
            self._loop.call_soon_threadsafe(self._future.set_result, result)

    def _fail(self, exc: BaseException) -> None:
        self._future.set_exception(exc)


async def _let_go(started: tuple[Handle, int, console.Console]) -> None:
    """Of what nobody watches."""
    _, pidfd, fifo = started
    os.close(pidfd)
    fifo.close()


def _exit(status: tuple[int | None, int | None] | None, oom_kills: int) -> Exit:
    code, killed_by = status if status is not None else (None, None)
    if oom_kills and code is None:
        return Exit("oom")
    if killed_by is not None:
        return Exit("killed")
    return Exit("unknown") if code is None else Exit("exited", code)


def _gone(handle: Handle) -> MachineError:
    return MachineError(
        f"Machine {handle.machine_id} does not run any more.", code="MACHINE_FAILED"
    )


@contextlib.contextmanager
def _freezer(handle: Handle) -> Iterator[None]:
    """What can go wrong with it, typed."""
    try:
        yield
    except FileNotFoundError as exc:
        raise _gone(handle) from exc
    except TimeoutError as exc:
        raise MachineError(f"The machine cannot be frozen: {exc}.", code="TIMEOUT") from exc


@contextlib.contextmanager
def _told(handle: Handle) -> Iterator[None]:
    """What can go wrong while an instant is kept, typed."""
    try:
        yield
    except (OSError, RoostError) as exc:
        if not processes.is_same(handle.pid, handle.pid_start_ticks, handle.boot_id):
            raise _gone(handle) from exc
        if isinstance(exc, RoostError):
            raise
        if isinstance(exc, TimeoutError):
            raise MachineError(f"The machine could not be saved: {exc}.", code="TIMEOUT") from exc
        # The first line says it; under it a runtime shows where in its code it was.
        said = exc.done.stderr.strip() if isinstance(exc, run.CommandError) else str(exc)
        if exc.errno == errno.ENOSPC or os.strerror(errno.ENOSPC).lower() in said.lower():
            raise CapacityError(
                "There is no space for the machine's memory or disk. Destroy machines or snapshots, or "
                "give the disk pool more space; the machine runs on.",
                code="STORAGE_FULL",
            ) from exc
        raise MachineError(
            f"The machine could not be saved: {said.partition(chr(10))[0][:500]}. It runs on.",
            code="MACHINE_FAILED",
        ) from exc


def _discard(into: Path, disk_to: Path | None = None) -> None:
    saved.clear(into)
    if disk_to is not None:
        disk_to.unlink(missing_ok=True)


def _show(places: oci.Places, volumes: int, users: int, attributes: int) -> oci.Places:
    """What is mounted there where a runtime of those users finds it, and theirs; in a thread apart."""
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
    syscalls.mount("tmpfs", _SHOWN, "tmpfs", flags, "mode=0711,size=64k")
    shown = oci.Places(_SHOWN / "root", _SHOWN / "volumes")
    shown.volumes.mkdir()
    shown.volumes.chmod(0o711)  # whatever the daemon's umask is
    pairs = [(places.root, shown.root)]
    pairs += [(places.volumes / str(n), shown.volumes / str(n)) for n in range(volumes)]
    for source, target in pairs:
        target.mkdir()
        idmaps.show(source, target, users, attributes=attributes)
        syscalls.umount(source, syscalls.MNT_DETACH)
    return shown


def _last(text: str) -> str:
    """The line of a runtime's output that says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if _TELLING.search(line)] or lines
    return telling[-1][-500:] if telling else "it said nothing."


def _put_address_back(interface: str, address: str, gateway: str) -> None:
    """In the calling thread's network namespace. gVisor takes the address for its own stack when it
    starts, and the next start in the same slot must find it again."""
    ip, _, prefix = address.partition("/")
    name = interface.encode().ljust(16, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            fcntl.ioctl(control, _SIOCGIFADDR, name + bytes(24))
            return
        except OSError as exc:
            if exc.errno not in _ENODATA:
                raise
        mask = socket.inet_ntoa(struct.pack("!I", (0xFFFFFFFF << (32 - int(prefix))) & 0xFFFFFFFF))
        fcntl.ioctl(control, _SIOCSIFADDR, name + _sockaddr(ip) + bytes(8))
        fcntl.ioctl(control, _SIOCSIFNETMASK, name + _sockaddr(mask) + bytes(8))
        # struct rtentry: pad, destination, gateway, mask, flags (up, gateway), the rest zero
        route = (
            bytes(8)
            + _sockaddr("0.0.0.0")  # noqa: S104
            + _sockaddr(gateway)
            + _sockaddr("0.0.0.0")  # noqa: S104
            + struct.pack("H", 0x3)
        )
        with contextlib.suppress(FileExistsError):
            fcntl.ioctl(control, _SIOCADDRT, route.ljust(120, b"\0"))


def _sockaddr(ip: str) -> bytes:
    return struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(ip))
