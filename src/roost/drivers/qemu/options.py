"""The VMM's command line, pure: from typed values only.

Nothing here is a text that anybody outside chose: disks, sockets and the tap come as descriptors, files lie
under fixed names in the jail, what remains are numbers and words of a checked alphabet. QEMU splits options
at commas, so none of those alphabets has one; the kernel's command line is an argument of its own.

What of it must be the same for a snapshot to load (machine options, CPU model, devices and their order) is
``fingerprint``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from roost.errors import InternalError

# Where the jail has them.
BINARY = "/vmm"
FIRMWARE = "/firmware"
BIOS = "/guest/firmware"
KERNEL = "/guest/vmlinux"
INITRD = "/guest/initrd"
MEMORY = "/memory"

BLOCK = "mem0"  # the RAM block's name in a migration stream
AGENT_PORT = "roost.agent"
CPU_MODEL = (
    "Haswell-v4"  # AVX2; no TSX. Every feature both TCG and a KVM host of the last decade have.
)
# What of the model TCG lacks: said, so that it is not left out with a warning.
NOT_EMULATED = ("pcid=off", "tsc-deadline=off", "invpcid=off", "spec-ctrl=off")

DEVICES = 1  # of what ``arguments`` adds: another number when those or their order change
_MACHINE = "microvm,suppress-vmdesc=on,isa-serial=on,rtc=on,pic=on,pit=on"
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_CONSOLE_BYTES = 64 << 10  # a power of two
TB_MIB = 32  # below, executions are many times slower

_CPU = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FEATURE = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}=(on|off)")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_LINE = re.compile(r"[\x20-\x7e]{0,2000}")


class Accel(StrEnum):
    KVM = "kvm"
    TCG = "tcg"


class Console(StrEnum):
    RING = "ring"  # for QMP's ringbuf-read
    STDOUT = "stdout"


_CONSOLES = {
    Console.RING: f"ringbuf,id=console,size={_CONSOLE_BYTES}",
    Console.STDOUT: "stdio,id=console,signal=off",
}


@dataclass(frozen=True, slots=True)
class Cpu:
    model: str = CPU_MODEL
    features: tuple[str, ...] = ()  # "name=on" or "name=off"
    count: int = 1


@dataclass(frozen=True, slots=True)
class SnapshotMemory:
    """The guest's memory is ``MEMORY``, mapped privately from ``offset`` on."""

    offset: int


@dataclass(frozen=True, slots=True)
class Later:
    """A VMM of a pool: it waits before its machine is made (``--preconfig``) and is given memory and disks
    by ``attach``."""


@dataclass(frozen=True, slots=True)
class Boot:
    """``KERNEL`` and ``INITRD`` with this command line, in memory of its own."""

    command_line: str


@dataclass(frozen=True, slots=True)
class Descriptors:
    """As the VMM's process has them. Sockets listen; disks are open for what the guest may do to them."""

    qmp: int
    agent: int
    disk: int | None = None
    modules: int | None = None
    tap: int | None = None
    mtu: int = 1500  # of the tap
    kvm: int | None = None
    volumes: tuple[tuple[int, bool], ...] = ()  # each with whether the guest may only read it

    def all(self) -> list[int]:
        values = (self.qmp, self.agent, self.disk, self.modules, self.tap, self.kvm)
        return [fd for fd in (*values, *(fd for fd, _ in self.volumes)) if fd is not None]


@dataclass(frozen=True, slots=True)
class Vmm:
    memory_mib: int
    start: Boot | SnapshotMemory | Later
    fds: Descriptors
    mac: str
    accel: Accel = Accel.TCG
    cpu: Cpu = Cpu()
    tb_mib: int = TB_MIB
    console: Console = Console.RING
    io_bytes_per_s: int = 0  # of its disks together; 0: without limit
    io_ops_per_s: int = 0


def arguments(vmm: Vmm) -> list[str]:
    """argv, the binary first."""
    _check(vmm)
    fds = vmm.fds
    later = isinstance(vmm.start, Later)
    line = [
        BINARY,
        *("-nodefaults", "-no-user-config", "-display", "none"),
        # The VMM stays, stopped, when its guest ends: how it ended and its console are there to be read.
        *("-action", "reboot=shutdown,shutdown=pause"),
        *("-L", FIRMWARE, "-bios", BIOS),
        *("-sandbox", _SANDBOX),
        *("-M", _MACHINE if later else f"{_MACHINE},memory-backend={BLOCK}"),
        *(["-add-fd", f"fd={fds.kvm},set={_FDSETS['kvm']}"] if fds.kvm is not None else []),
        *("-accel", _accel(vmm)),
        *("-cpu", ",".join((vmm.cpu.model, *vmm.cpu.features))),
        *("-smp", str(vmm.cpu.count)),
        *("-m", f"{vmm.memory_mib}M"),
        *("-chardev", f"socket,id=qmp,fd={fds.qmp},server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-chardev", _CONSOLES[vmm.console], "-serial", "chardev:console"),
    ]
    match vmm.start:
        case Boot(command_line):
            line += ["-object", _json(own_memory(vmm.memory_mib))]
            line += ["-kernel", KERNEL, "-initrd", INITRD, "-append", command_line]
        case SnapshotMemory(offset):
            line += ["-object", _json(snapshot_memory(vmm.memory_mib, offset))]
            line += ["-S", "-incoming", "defer"]
        case Later():
            line += ["--preconfig", "-S", "-incoming", "defer"]
    disks = [(fds.disk, "disk", True), (fds.modules, "modules", False)]
    disks += [(fd, f"volume{n}", not only_read) for n, (fd, only_read) in enumerate(fds.volumes)]
    for fd, name, writable in disks:
        if fd is None:
            continue
        if not later:
            number = _fdset(name)
            line += ["-add-fd", f"fd={fd},set={number}"]
            line += ["-blockdev", _json(block_device(name, number, writable))]
        line += ["-device", f"virtio-blk-device,drive={_throttled(vmm, name, line)}"]
    if fds.tap is not None:
        line += ["-netdev", f"tap,id=net,fd={fds.tap}"]
        line += ["-device", f"virtio-net-device,netdev=net,mac={vmm.mac},host_mtu={fds.mtu}"]
    line += ["-object", "rng-builtin,id=rng", "-device", "virtio-rng-device,rng=rng"]
    line += ["-device", "virtio-serial-device,max_ports=2"]
    line += ["-chardev", f"socket,id=agent,fd={fds.agent},server=on,wait=off"]
    line += ["-device", f"virtserialport,chardev=agent,name={AGENT_PORT}"]
    return line


def fingerprint(
    *, memory_mib: int, accel: Accel, cpu: Cpu, mac: str | None, volumes: Sequence[bool] = ()
) -> dict[str, Any]:
    """JSON-able; two VMMs with the same one (and the same VMM version) can load each other's state. ``mac``: of
    its network card, None without one. ``volumes``: whether each may only be read."""
    return {
        **({"volumes": list(volumes)} if volumes else {}),
        "devices": DEVICES,
        "machine": _MACHINE,
        "accel": accel.value,
        "cpu_model": ",".join((cpu.model, *cpu.features)),
        "vcpus": cpu.count,
        "memory_mib": memory_mib,
        "mac": mac,
    }


# --- pieces that QMP takes too -------------------------------------------------------------------------


def own_memory(memory_mib: int) -> dict[str, Any]:
    return {
        "qom-type": "memory-backend-ram",
        "id": BLOCK,
        "size": memory_mib << 20,
        "share": False,
    }


def snapshot_memory(memory_mib: int, offset: int) -> dict[str, Any]:
    """``rom`` off: QEMU takes a read-only file for a ROM otherwise; pages that the guest writes are then
    private ones of the VMM."""
    return {
        "qom-type": "memory-backend-file",
        "id": BLOCK,
        "size": memory_mib << 20,
        "mem-path": MEMORY,
        "offset": offset,
        "share": False,
        "readonly": True,
        "rom": "off",
    }


_FDSETS = {"disk": 1, "modules": 2, "kvm": 3}
_FIRST_VOLUME = 4


def _fdset(name: str) -> int:
    known = _FDSETS.get(name)
    return known if known is not None else _FIRST_VOLUME + int(name.removeprefix("volume"))


def block_device(name: str, fdset: int, writable: bool) -> dict[str, Any]:
    """Write-back in the host's page cache; a guest's flush is an fdatasync of the image, so what the guest
    was told is durable is. No lock: the daemon reflinks the image while the VMM has it open."""
    return {
        "driver": "raw",
        "node-name": name,
        "read-only": not writable,
        "discard": "unmap" if writable else "ignore",
        "cache": {"direct": False, "no-flush": False},
        "file": {
            "driver": "file",
            "filename": f"/dev/fdset/{fdset}",
            "aio": "threads",
            "locking": "off",
            "read-only": not writable,
            "discard": "unmap" if writable else "ignore",
            "cache": {"direct": False, "no-flush": False},
        },
    }


def _throttled(vmm: Vmm, name: str, line: list[str]) -> str:
    """The node that a disk of the guest's is: with a limit, one that is put before ``name``. The root disk and
    volumes share one."""
    limits = {"bps-total": vmm.io_bytes_per_s, "iops-total": vmm.io_ops_per_s}
    limits = {key: value for key, value in limits.items() if value}
    if not limits or name == "modules":
        return name
    if name == "disk":
        line += ["-object", _json({"qom-type": "throttle-group", "id": "io", "limits": limits})]
    slow = "slow" if name == "disk" else f"slow-{name}"
    node = {"driver": "throttle", "node-name": slow, "throttle-group": "io", "file": name}
    line += ["-blockdev", _json(node)]
    return slow


def _accel(vmm: Vmm) -> str:
    if vmm.accel is Accel.KVM:
        assert vmm.fds.kvm is not None
        return f"kvm,device=/dev/fdset/{_FDSETS['kvm']}"
    # One thread for one CPU: the other mode only adds locked instructions.
    return f"tcg,tb-size={vmm.tb_mib},thread={'multi' if vmm.cpu.count > 1 else 'single'}"


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))


def _check(vmm: Vmm) -> None:
    """What fails here is a mistake of ours: the settings were checked when they were read."""
    cpu = vmm.cpu
    sound = (
        _CPU.fullmatch(cpu.model) is not None
        and all(_FEATURE.fullmatch(f) for f in cpu.features)
        and _MAC.fullmatch(vmm.mac) is not None
        and 1 <= cpu.count <= 255
        and 32 <= vmm.memory_mib <= 1 << 20
        and 8 <= vmm.tb_mib <= 4096
        and 0 <= vmm.io_bytes_per_s < 1 << 50
        and 0 <= vmm.io_ops_per_s < 1 << 30
        and all(0 <= fd < 1 << 20 for fd in vmm.fds.all())
    )
    match vmm.start:
        case Boot(command_line):
            sound = sound and _LINE.fullmatch(command_line) is not None
        case SnapshotMemory(offset):
            sound = sound and 0 <= offset < 1 << 40 and offset % 4096 == 0
    if not sound:
        raise InternalError(f"The VMM cannot be started with these values: {vmm!r}.")
