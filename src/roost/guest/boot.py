"""How a guest is booted: the kernel's command line, and what its agent and its host agree on."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

PORT = "roost.agent"
"""The virtio port that leads to the agent."""

FIRST_TOKEN = "roost-guest"  # noqa: S105
"""The agent's token after a boot, and after a restore of what was captured before ``RenewIdentity``. No secret:
see ``agent/src/guest``. Renew it before anything else is done."""

ROOT_DEVICE = "/dev/vda"
MODULES_DEVICE = "/dev/vdb"
_FIRST_VOLUME = "c"  # /dev/vdc
_MAX_BYTES = 2048  # COMMAND_LINE_SIZE of the kernel
_PATH = re.compile(r"/[A-Za-z0-9/.@+_-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Network:
    """Of eth0 inside: the same in every machine, so that a restored one keeps it."""

    address: str  # "10.0.0.2/30"
    gateway: str
    nameserver: str

    def __post_init__(self) -> None:
        ipaddress.IPv4Interface(self.address)
        ipaddress.IPv4Address(self.gateway)
        ipaddress.IPv4Address(self.nameserver)


def command_line(
    *,
    tsc_khz: int | None,
    network: Network | None = None,
    volumes: Sequence[tuple[str, bool]] = (),
) -> str:
    """``tsc_khz``: without KVM, of this host's time stamp counter, which is the guest's, too; None under
    KVM, which tells the guest itself. ``volumes``: the disks after the modules', where each is mounted, and whether it
    may only be read. Raises ValueError for an address that is none, and a path that is not one word."""
    words = [
        "console=ttyS0",
        "quiet",  # each character of the console is a trap
        "panic=-1",  # at once; the monitor ends with the guest (-no-reboot)
        "reboot=t",
        "cryptomgr.notests",
        "rcupdate.rcu_expedited=1",  # drivers and namespaces wait for no idle tick
        "nowatchdog",  # of lock-ups: a machine that was asleep would look like one
        "transparent_hugepage=madvise",  # each of 2 MiB is one that siblings share no more
        f"root={ROOT_DEVICE}",
        f"roost.modules={MODULES_DEVICE}",
    ]
    if tsc_khz is not None:
        # Of microvm's clocks only the local APIC's timer is left to calibrate with, and on a busy host
        # that hangs the boot: the guest is told.
        words += ["tsc=reliable", f"tsc_early_khz={tsc_khz}", "no_timer_check"]
        # Nothing speculates in an emulated CPU.
        words += ["mitigations=off"]
    if network is not None:
        words += [
            f"roost.address={network.address}",
            f"roost.gateway={network.gateway}",
            f"roost.nameserver={network.nameserver}",
        ]
    for number, (path, read_only) in enumerate(volumes):
        if not _PATH.fullmatch(path):
            raise ValueError(f"not a path for a kernel's command line: {path!r}")
        device = f"/dev/vd{chr(ord(_FIRST_VOLUME) + number)}"
        words.append(f"roost.volume={device}:{'ro' if read_only else 'rw'}:{path}")
    line = " ".join(words)
    if len(line) >= _MAX_BYTES:
        raise ValueError("the kernel's command line is too long")
    return line
