"""What a driver is: how machines of one rung are made, kept and ended.

A driver knows machines by id, their root, their size and their network slot; never a tenant, a key or
the database. The engine calls it from journaled steps, so every method that makes something has an
idempotent opposite: ``remove(machine_id)`` undoes whatever ``start`` or ``restore`` got done, half-done
work of a crashed daemon included, and is safe to call when there is nothing.

Drivers of rungs 2-3 get a disk image (``Root.image``) and a network slot; those of rungs 0-1 get a
directory and none. The driver mounts the image where its rung needs a directory; the engine never does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from roost.errors import UnsupportedError
from roost.host.idmaps import Block


class Isolation(StrEnum):
    WORKSPACE = "workspace"
    USER = "user"
    CONTAINER = "container"
    MICROVM = "microvm"


LEVELS = {
    Isolation.WORKSPACE: 0,
    Isolation.USER: 1,
    Isolation.CONTAINER: 2,
    Isolation.MICROVM: 3,
}


class ForkKind(StrEnum):
    NONE = "none"
    DISK = "disk"
    MEMORY = "memory"  # memory and disk of one instant


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a rung is and can, as told to the user; never more than is true on this host."""

    isolation: Isolation
    boundary: str  # what stands between machine and host, in words
    claim: str  # a sentence of ``roost.claims``
    own_kernel: bool
    own_network: bool  # needs a network slot
    disk_image: bool  # root is an image; otherwise a directory
    raw_disk: (
        bool  # the guest writes the image's blocks itself: the host never mounts it afterwards
    )
    memory_snapshot: bool
    fork: ForkKind
    egress_enforced: bool
    needs_root: bool
    accelerated: bool | None  # None where acceleration means nothing
    freeze: bool = (
        False  # it can stand still with its memory resident, and go on within milliseconds
    )
    own_clock: bool = True  # and random pool: both are given to it at every start

    @property
    def level(self) -> int:
        return LEVELS[self.isolation]

    @property
    def one_user(self) -> bool:
        """Its programs run as one user that is not root, whoever a template would have them be."""
        return self.level < LEVELS[Isolation.CONTAINER]

    @property
    def rank(self) -> tuple[int, bool]:
        """Up the ladder is what has more of it: of two of a level, the one with a kernel of its own."""
        return self.level, self.own_kernel


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether this host can run the driver now, and if not why and what mends it."""

    available: bool
    version: str | None = None
    reason: str | None = None
    remedy: str | None = None  # a command, where one exists
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Size:
    vcpu: float
    memory_mib: int
    storage_gib: int
    pids: int = 1024  # a fork bomb above this takes the agent too long to end


@dataclass(frozen=True, slots=True)
class Root:
    """Exactly one of the two: a raw ext4 image in the pool, or a directory."""

    image: Path | None = None
    directory: Path | None = None


@dataclass(frozen=True, slots=True)
class NetworkSlot:
    """A machine's place on the network: its rules stand before it is handed out."""

    index: int
    netns: Path  # the machine's own namespace, e.g. /run/netns/rst-m0007
    interface: str  # inside it
    mac: str
    address: str  # inside, the same in every machine, "10.0.0.2/30"
    gateway: str  # inside, "10.0.0.1"
    host_address: str  # where the daemon, and only it, reaches the agent's port
    users: Block | None = None  # the namespace belongs to a user namespace of theirs


@dataclass(frozen=True, slots=True)
class Volume:
    """A disk of its own (raw ext4) that is mounted at ``path`` before the agent answers; the path is made where there
    is none. One that is not ``read_only`` is this machine's alone."""

    image: Path
    path: str  # of ``engine.mounts.check_paths``
    read_only: bool


@dataclass(frozen=True, slots=True)
class StartSpec:
    machine_id: str
    hostname: str
    size: Size
    root: Root
    slot: NetworkSlot | None
    agent_token: str  # for ``restore``: the one that the agent in the capture knows
    linux_id: str  # for /etc/machine-id of a fresh disk: 32 lower-case hex digits
    env: Mapping[str, str] = field(default_factory=dict)  # of PID 1; no secrets
    no_new_privs: bool = False
    unrestricted: bool = (
        False  # without the agent's guardrails, where the rung has some; the boundary stands
    )
    volumes: tuple[
        Volume, ...
    ] = ()  # for ``restore``: those of the captured, which nobody else wrote since


@dataclass(frozen=True, slots=True)
class Handle:
    """A started machine, as kept in the database so that a later daemon can adopt it.

    A pid alone is never trusted: it counts only with its start time (field 22 of /proc/PID/stat) and the
    host's boot id.
    """

    driver: str
    machine_id: str
    pid: int
    pid_start_ticks: int
    boot_id: str
    agent_target: str  # what gRPC dials: "unix:/path" or "10.x.y.z:port"
    identity_on_disk: bool = False  # a fresh disk was given all of its own: nothing left to renew
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {f: getattr(self, f) for f in self.__slots__} | {"extra": dict(self.extra)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Handle:
        return Handle(**data)


@dataclass(frozen=True, slots=True)
class Exit:
    """How a machine's main process ended."""

    reason: (
        str  # "exited", "killed", "oom", "unknown"; with a kernel of its own "rebooted", "panicked"
    )
    exit_code: int | None = None
    console: str = ""  # the last it said, where that was still to be had


@dataclass(frozen=True, slots=True)
class Usage:
    """As the host sees it."""

    cpu_usage_us: int
    memory_bytes: int
    memory_limit_bytes: int | None
    pids: int


@dataclass(frozen=True, slots=True)
class Capture:
    """What was kept of a machine at one instant, in a directory of its own. ``manifest`` is JSON: what a
    restore needs to judge it (versions, digests, sizes); the engine keeps it and gives it back."""

    directory: Path
    manifest: Mapping[str, Any]
    paused_ms: float = 0.0  # how long the machine stood still; of the capture's own call only
    memory: bool = True  # False: the disk alone


class Driver(ABC):
    """One per kind of machine; stateless but for what it can rebuild from the host."""

    name: str
    hangs_up = False  # keeping its memory needs every connection to the agent closed first
    bakes = False  # a new machine goes on from one that was started once and captured
    renames = False  # a running machine can be given another host name
    volumes = False  # it mounts ``StartSpec.volumes``
    first_token = ""  # what the agent of a fresh start demands until it is renewed; "": its own

    # --- what it is ---------------------------------------------------------------------------

    @abstractmethod
    async def probe(self) -> Probe:
        """Looks at the host; never raises for a host that cannot. Cheap when asked again."""

    @abstractmethod
    def capabilities(self) -> Capabilities:
        """Valid after ``probe`` said available."""

    async def prepare(self) -> None:  # noqa: B027
        """What ``start`` needs and this host does not have yet, made, however long that takes. Idempotent.
        Raises HOST_UNSUPPORTED, DEPENDENCY_UNAVAILABLE."""

    @property
    def undecided(self) -> bool:
        """Whether ``prepare`` may still find out that it can more than ``capabilities`` says."""
        return False

    def fit(self, size: Size) -> Size:
        """The size that a machine asked to be of that size gets: no smaller."""
        return size

    def traits(self) -> Mapping[str, Any]:
        """What a bake depends on beside its image and size; JSON. After ``prepare``."""
        return {}

    def given(self) -> Mapping[str, bytes]:
        """Files (absolute path -> content) that a bake gets before its warm-up; others get them with their disk."""
        return {}

    def environment(self) -> Mapping[str, str]:
        """What every program in its machines is told, below the template's and the machine's own env."""
        return {}

    # --- life -----------------------------------------------------------------------------------

    @abstractmethod
    async def start(self, spec: StartSpec) -> Handle:
        """Boots the machine from its root. After it returns the agent is coming up or up (it may need
        tens of ms more). On failure everything made here is undone. Raises MachineError, CapacityError."""

    @abstractmethod
    async def remove(self, machine_id: str) -> None:
        """Ends the machine at once if it runs and takes away all this driver made for it (processes,
        mounts, loop devices, cgroups, bundles), but not its root or slot. Idempotent; two at once would be in each
        other's way, so it is taken ``to_the_end``."""

    @abstractmethod
    async def adopt(self, handle: Handle) -> bool:
        """True if exactly that machine still runs (pid + start time + boot id); starts watching it."""

    @abstractmethod
    async def wait(self, handle: Handle) -> Exit:
        """Returns when the machine's main process has ended, however it ended."""

    @abstractmethod
    async def list_ids(self) -> set[str]:
        """Machines this driver has anything of on this host, running or debris."""

    async def tidy(self, kept: Sequence[Mapping[str, Any]]) -> None:  # noqa: B027
        """Deletes what was kept of other versions of the runtime and that neither a machine that runs nor one of
        these captures (their manifests) needs any more."""

    # --- while it runs --------------------------------------------------------------------------

    def use_token(self, handle: Handle, token: str) -> None:  # noqa: B027
        """What the agent demands from now on: it was renewed, or its machine adopted."""

    async def console_tail(self, machine_id: str) -> str:
        """The last that the machine's console said; "" where nothing is known. Hostile text."""
        return ""

    @abstractmethod
    async def usage(self, handle: Handle) -> Usage: ...

    async def resize(self, handle: Handle, size: Size) -> None:
        """New CPU, memory and pids limits on a running machine."""
        raise UnsupportedError(
            f"The {self.name} driver cannot resize a running machine; sleep it first."
        )

    async def end_tree(self, handle: Handle, pid: int) -> bool:
        """Ends, from outside, the machine's process ``pid`` (its own number for it) and all below; nothing
        of that runs or forks in between. False where there is no such process. Never PID 1."""
        raise UnsupportedError(f"The {self.name} driver does not see into a machine.")

    async def freeze(self, handle: Handle) -> None:
        """Stops it being scheduled; memory stays. Idempotent. It stays frozen, whatever becomes of the daemon,
        until ``thaw``; ``remove`` takes it and ``wait`` tells its end all the same. On failure it runs on. Raises
        MACHINE_FAILED (it has ended), TIMEOUT."""
        raise UnsupportedError(f"The {self.name} driver cannot freeze a machine.")

    async def thaw(self, handle: Handle) -> None:
        """It goes on. Idempotent. Raises as ``freeze``."""
        raise UnsupportedError(f"The {self.name} driver cannot freeze a machine.")

    async def frozen(self, handle: Handle) -> bool:
        """Whether ``freeze``, of this daemon or an earlier one, is what it stands still by. After ``adopt``."""
        return False

    async def freeze_disk(self, handle: Handle) -> None:
        """Makes the image whole on the host (fsfreeze or flush) until ``thaw_disk``."""
        raise UnsupportedError(f"The {self.name} driver cannot freeze a disk.")

    async def thaw_disk(self, handle: Handle) -> None:
        raise UnsupportedError(f"The {self.name} driver cannot freeze a disk.")

    # --- one instant kept (capabilities: ``fork``; with memory where ``memory_snapshot``) ---------

    async def capture(
        self,
        handle: Handle,
        into: Path,
        disk_to: Path,
        *,
        durable: bool = True,
        memory: bool = True,
    ) -> Capture:
        """Memory (where the rung can) into the empty directory ``into`` and the disk, of the same instant,
        reflinked to ``disk_to`` (a new file on the same file system); both durable on return, or, where that is
        not asked, good until the host restarts. The machine runs on afterwards, whatever happens; on failure
        nothing is left in ``into`` or at ``disk_to``. Without ``memory`` the disk alone, as after a power cut at that
        instant: what is to be in it the caller has synced.

        Where ``hangs_up`` the caller has closed its connections to the agent and makes none until this returns;
        the machine's own connections to others are cut. The machine is not frozen.

        Raises MACHINE_FAILED (it ended meanwhile), STORAGE_FULL, TIMEOUT."""
        raise UnsupportedError(f"The {self.name} driver has no snapshots.")

    async def restore(self, spec: StartSpec, capture: Capture) -> Handle:
        """A machine that goes on from a capture with memory: ``spec.root`` is a clone of the disk of the same
        instant. Its agent still has the name, token, entropy and clock of the one captured; its connections
        are gone. May be called any number of times, at the same time too, with one capture.

        Raises SNAPSHOT_INVALID before anything ran where the capture does not fit this host or is damaged
        (the disk is good: the machine can be started from it), else as ``start``."""
        raise UnsupportedError(f"The {self.name} driver has no memory snapshots.")

    async def kept(self, directory: Path) -> Capture | None:
        """What ``hibernate`` left there if its caller died with it before it returned and the machine has ended:
        a capture that is whole, good until the host restarts; None where it is not."""
        return None

    async def hibernate(self, handle: Handle, into: Path) -> Capture:
        """Memory into the empty directory ``into``, durable; the machine's processes have ended on return (it is
        removed) and its disk is of that instant. On failure it runs on and nothing is left in ``into``; only a
        failure to end it, once its memory is whole, leaves both to the caller; who cancels by then waits for its end,
        and ``kept`` tells of it. Connections as for ``capture``.

        Raises as ``capture``."""
        raise UnsupportedError(f"The {self.name} driver has no memory snapshots.")
