"""Known ways out of what machines are kept by, and which of them this host's versions have.

A number alone tells little, since distributions mend old versions: a program from a package of its own is looked up by
what its changelog says, then by the revisions below; one that came in another's package (Docker's containerd.io has a
runc) by its own number. What cannot be told is said so.

``here`` says why a way out leads nowhere from Roost's machines though the version has it: then it is a warning. Without
that the driver is refused (its ``probe``). Facts are from the makers' own advisories and the CVE records; a new line
here needs those, not a rumour.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from roost.host import packages
from roost.host.packages import Installed, numbers


class State(enum.Enum):
    MENDED = "mended"
    AFFECTED = "affected"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Advisory:
    id: str
    program: str  # "runc", "runsc", "qemu-system-x86_64", "linux"
    what: str
    fixed: tuple[str, ...]  # the first mended version of each series, oldest first
    drivers: tuple[str, ...]  # whose machines it concerns
    debian: tuple[str, ...] = ()  # revisions of an older version that have it mended
    here: str = ""


REMEDY = "apt-get update && apt-get upgrade"
_RUNC = ("runc", "user")
_CONFINED = (*_RUNC, "systemd")  # whose machines call the host's kernel themselves
_OWN_MOUNTS = (
    "each machine starts from a disk of its own and without a terminal, shares no mount that another writes, and its root "
    "may not write the host's /proc"
)
_NOBODYS = "the runtime makes files as a user that owns nothing on the host"
_NO_SOCKET = "machines can open no sockets of that family (seccomp)"

ADVISORIES = (
    Advisory(
        "CVE-2024-21626",
        "runc",
        "a descriptor of the host's file system is left open in the container",
        ("1.1.12",),
        debian=("1.1.5+ds1-1+deb12u1",),
        drivers=_RUNC,
    ),
    Advisory(
        "CVE-2024-45310",
        "runc",
        "containers that share a volume have the runtime make empty files on the host",
        ("1.1.14", "1.2.0-rc.3"),
        here=f"a volume that is written is one machine's alone, and {_NOBODYS}",
        drivers=_RUNC,
    ),
    Advisory(
        "CVE-2025-31133",
        "runc",
        "masked paths can be redirected by a container that shares mounts with one that starts",
        ("1.2.8", "1.3.3", "1.4.0"),
        here=_OWN_MOUNTS,
        drivers=_RUNC,
    ),
    Advisory(
        "CVE-2025-52565",
        "runc",
        "the mount of /dev/console can be redirected in the same way",
        ("1.2.8", "1.3.3", "1.4.0"),
        here=_OWN_MOUNTS,
        drivers=_RUNC,
    ),
    Advisory(
        "CVE-2025-52881",
        "runc",
        "writes of the runtime to /proc can be redirected in the same way",
        ("1.2.8", "1.3.3", "1.4.0"),
        here=_OWN_MOUNTS,
        drivers=_RUNC,
    ),
    Advisory(
        "CVE-2026-41579",
        "runc",
        "an image whose /dev is a link has the runtime make files on the host",
        ("1.3.6", "1.4.3", "1.5.0"),
        here=f"/dev, /proc, /sys and /run are made directories before each start, and {_NOBODYS}",
        drivers=_RUNC,
    ),
    Advisory(
        "CVE-2025-2713",
        "runsc",
        "unprivileged users reach restricted files before the first fork",
        ("20250319.0",),
        here="it is of host users who run runsc themselves; machines are started by the daemon alone",
        drivers=("gvisor",),
    ),
    Advisory(
        "CVE-2026-96812",
        "runsc",
        "a device node in an image opens the host's device (/dev/cuse)",
        ("20261005.0",),
        here="disks are mounted nodev: a device node on one opens nothing",
        drivers=("gvisor",),
    ),
    Advisory(
        "CVE-2023-6693",
        "qemu-system-x86_64",
        "virtio-net: a stack overflow from the guest",
        ("8.2.1",),
        drivers=("qemu",),
    ),
    Advisory(
        "CVE-2024-3446",
        "qemu-system-x86_64",
        "virtio devices, the serial bus among them: a double free from the guest",
        ("8.2.3", "9.0.0"),
        drivers=("qemu",),
    ),
    Advisory(
        "CVE-2022-0847",
        "linux",
        "Dirty Pipe: whoever may read a file writes its cached pages",
        ("5.10.102", "5.15.25", "5.16.11", "5.17"),
        drivers=_CONFINED,
    ),
    Advisory(
        "CVE-2025-21756",
        "linux",
        "vsock: a use after free",
        ("5.10.235", "5.15.179", "6.1.131", "6.6.79", "6.12.16", "6.13.4", "6.14"),
        here=_NO_SOCKET,
        drivers=_CONFINED,
    ),
    Advisory(
        "CVE-2026-31431",
        "linux",
        "Copy Fail, AF_ALG: whoever may read a file writes its cached pages",
        (
            *("5.10.254", "5.15.204", "6.1.170", "6.6.137", "6.12.85", "6.18.22", "6.19.12"),
            "7.0",
        ),
        here=_NO_SOCKET,
        drivers=_CONFINED,
    ),
    Advisory(
        "CVE-2026-43284",
        "linux",
        "Dirty Frag, ESP: the same, by whoever administers a network",
        ("5.10.255", "5.15.206", "6.1.172", "6.6.138", "6.12.87", "6.18.28", "7.0.5", "7.1"),
        here="machines have no CAP_NET_ADMIN, and make no namespaces to have it in",
        drivers=_CONFINED,
    ),
    Advisory(
        "CVE-2026-43500",
        "linux",
        "Dirty Frag, AF_RXRPC: the same",
        ("6.18.29", "7.0.6", "7.1"),
        here=_NO_SOCKET,
        drivers=_CONFINED,
    ),
)


@dataclass(frozen=True, slots=True)
class Finding:
    advisory: Advisory
    state: State
    version: str

    @property
    def refuses(self) -> bool:
        return self.state is State.AFFECTED and self.open

    @property
    def open(self) -> bool:
        """Whether it may lead out of a machine here, as far as can be told."""
        return not self.advisory.here

    @property
    def text(self) -> str:
        it = self.advisory
        said = f"{it.program} {self.version}: {it.id}, {it.what}"
        if self.state is State.UNKNOWN:
            said += "; it cannot be told whether this one has it"
        return f"{said}; not reached from machines here: {it.here}" if it.here else said


AtLeast = Callable[[str, str], bool]


def judge(it: Advisory, has: Installed, at_least: AtLeast = packages.at_least) -> State:
    """Pure but for ``at_least``, which orders revisions as dpkg does."""
    if not has.numbers:
        return State.UNKNOWN
    if _mended_by_number(it.fixed, has.numbers):
        return State.MENDED
    if has.mended is not None and it.id in has.mended:
        return State.MENDED
    for revision in it.debian:
        if has.revision and packages.upstream(revision) == has.version:
            return State.MENDED if at_least(has.revision, revision) else State.AFFECTED
    if has.patched and (has.mended is None or has.trimmed):
        return State.UNKNOWN
    return State.AFFECTED


def _mended_by_number(fixed: Iterable[str], has: tuple[int, ...]) -> bool:
    """Of a series by its own first mended version; those after the last series are, those before the first are not."""
    first = [numbers(each) for each in fixed]
    if has >= first[-1]:
        return True
    return any(has[:2] == each[:2] and has >= each for each in first)


def look(driver: str) -> list[Finding]:
    """What concerns the driver's machines on this host and is not mended. Blocking; empty where nothing is installed."""
    found = []
    for it in ADVISORIES:
        if driver not in it.drivers:
            continue
        has = packages.kernel() if it.program == "linux" else packages.found(it.program)
        if has is None:
            continue
        if (state := judge(it, has)) is not State.MENDED:
            found.append(Finding(it, state, has.revision or has.version or "of unknown version"))
    return found


def refusal(driver: str) -> str | None:
    """Why the driver must not be used on this host."""
    said = [each.text for each in look(driver) if each.refuses]
    return "; ".join(said) if said else None
