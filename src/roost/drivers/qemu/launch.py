"""From a machine's specification to its running VMM: one blocking pass in a thread that ends with it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roost.drivers.interface import StartSpec
from roost.drivers.qemu import jail, options, tap
from roost.drivers.qemu.runtime import Runtime
from roost.errors import ConflictError
from roost.guest import Guest
from roost.host import apart, console, files, netns
from roost.storage import disks, mounting, volumes

RECORD = "machine.json"
_BACKLOG = 16


@dataclass(frozen=True, slots=True)
class Place:
    """A machine's directory: only the daemon reaches into it."""

    directory: Path

    @property
    def qmp(self) -> Path:
        return self.directory / "qmp"

    @property
    def agent(self) -> Path:
        """The VMM's end of the agent's byte stream."""
        return self.directory / "agent"

    @property
    def grpc(self) -> Path:
        """What gRPC dials."""
        return self.directory / "grpc"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def frozen(self) -> Path:
        """There while the machine is frozen on purpose: a daemon that finds it stopped otherwise resumes it."""
        return self.directory / "frozen"

    def record(self) -> dict[str, Any] | None:
        return files.read_json(self.directory / RECORD)


@dataclass(frozen=True, slots=True)
class Plan:
    spec: StartSpec
    place: Place
    uid: int
    runtime: Runtime
    guest: Guest
    start: options.Boot | options.SnapshotMemory
    snapshot: Path | None  # the memory file, for SnapshotMemory
    accel: options.Accel
    cpu: options.Cpu
    tb_mib: int = options.TB_MIB
    io_bytes_per_s: int = 0
    io_ops_per_s: int = 0


@dataclass(frozen=True, slots=True)
class Launched:
    pid: int
    console: console.Console


def launch(plan: Plan) -> Launched:
    """Blocking. The directory is made here and is the caller's to take away, also after a failure. Raises OSError,
    INVALID_STATE (a volume that is to be read needs repair), INTERNAL (one to be written is mounted on the host)."""
    plan.place.directory.mkdir(mode=0o700)
    assert plan.spec.root.image is not None
    for each in plan.spec.volumes:
        if (
            each.read_only
            and isinstance(plan.start, options.Boot)
            and volumes.needs_recovery(each.image)
        ):
            raise ConflictError(
                f"The volume for {each.path} was not unmounted by the machine that had it last: take it read-write"
                " once, which repairs it.",
                details={"path": each.path},
            )
    for each in plan.spec.volumes:
        if not each.read_only:  # the last container that read it may still be about to unmount it
            mounting.wait_free(each.image)
    with contextlib.ExitStack() as held:
        fds = _descriptors(plan, held)
        vmm = options.Vmm(
            memory_mib=plan.spec.size.memory_mib,
            start=plan.start,
            fds=fds,
            mac=plan.spec.slot.mac if plan.spec.slot is not None else _NO_MAC,
            accel=plan.accel,
            cpu=plan.cpu,
            tb_mib=plan.tb_mib,
            io_bytes_per_s=plan.io_bytes_per_s,
            io_ops_per_s=plan.io_ops_per_s,
        )
        argv = options.arguments(vmm)
        record = {
            "disk": str(plan.spec.root.image),
            "volumes": [str(each.image) for each in plan.spec.volumes if not each.read_only],
            "uid": plan.uid,
            "snapshot": None if plan.snapshot is None else _identity(plan.snapshot),
            "runtime": plan.runtime.digest,
            "guest": plan.guest.digest,
            "fingerprint": fingerprint(plan),
        }
        files.write_json(plan.place.directory / RECORD, record, durable=False)
        # Its blocks are the guest's from now on: no host mounts them again.
        disks.mark_used(plan.spec.root.image, raw_written=True)
        for each in plan.spec.volumes:
            if not each.read_only:
                disks.mark_used(each.image, raw_written=True)
        log = console.Console(plan.place.log)
        try:
            output = log.open_for_machine()
            held.callback(os.close, output)
            cell = jail.Jail(
                root=plan.runtime.root,
                uid=plan.uid,
                netns=plan.spec.slot.netns if plan.spec.slot is not None else None,
                files=_jail_files(plan),
            )

            def start() -> int:
                jail.enter(cell)
                return jail.spawn(argv, fds.all(), output)

            return Launched(apart.run(start), log)
        except BaseException:
            log.close()
            raise


def fingerprint(plan: Plan) -> dict[str, Any]:
    """What a snapshot of it must have been made with, and one taken of it says."""
    return options.fingerprint(
        memory_mib=plan.spec.size.memory_mib,
        accel=plan.accel,
        cpu=plan.cpu,
        mac=plan.spec.slot.mac if plan.spec.slot is not None else None,
        volumes=[each.read_only for each in plan.spec.volumes],
    )


def discard(place: Place) -> None:
    if place.directory.exists():
        shutil.rmtree(place.directory)


_NO_MAC = "02:72:73:74:00:02"


def _descriptors(plan: Plan, held: contextlib.ExitStack) -> options.Descriptors:
    """Closed with ``held``: the VMM then has the only ones."""

    def opened(path: Path, flags: int) -> int:
        fd = os.open(path, flags | os.O_CLOEXEC)
        held.callback(os.close, fd)
        return fd

    def listening(path: Path) -> int:
        """Made by us, so that no other socket can be put in its place, and so that it can be dialled before
        the VMM looks at it."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        held.callback(sock.close)
        sock.bind(str(path))
        sock.listen(_BACKLOG)
        return sock.fileno()

    assert plan.spec.root.image is not None
    card: int | None = None
    mtu = 1500
    if plan.spec.slot is not None:
        namespace = opened(plan.spec.slot.netns, os.O_RDONLY)
        with netns.entered(namespace):
            card, mtu = tap.plug(plan.spec.slot.interface)
        held.callback(os.close, card)
    return options.Descriptors(
        qmp=listening(plan.place.qmp),
        agent=listening(plan.place.agent),
        disk=opened(plan.spec.root.image, os.O_RDWR),
        modules=opened(plan.guest.modules, os.O_RDONLY),
        volumes=tuple(
            (opened(each.image, os.O_RDONLY if each.read_only else os.O_RDWR), each.read_only)
            for each in plan.spec.volumes
        ),
        tap=card,
        mtu=mtu,
        kvm=opened(Path("/dev/kvm"), os.O_RDWR) if plan.accel is options.Accel.KVM else None,
    )


def _jail_files(plan: Plan) -> dict[str, Path]:
    found = {"guest": plan.guest.kernel.parent}
    if plan.snapshot is not None:
        found["memory"] = plan.snapshot
    return found


def _identity(path: Path) -> list[int]:
    """Of the file itself, whatever becomes of its name."""
    status = path.stat()
    return [status.st_dev, status.st_ino]
