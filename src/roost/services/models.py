"""What goes in and out of the services: plain records, no behaviour but their own derivation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from roost.egress.policy import Policy
from roost.engine.allowance import NOTHING, Allowance
from roost.engine.machine import Machine
from roost.engine.mounts import Mount
from roost.engine.samples import Sample
from roost.engine.tools import OFF, Tools
from roost.storage.interface import Image

if TYPE_CHECKING:
    from roost.agent.client import AgentClient

T = TypeVar("T")

__all__ = [
    "TOKENS",
    "UNSET",
    "Allowance",
    "Attach",
    "Attachment",
    "AuditEntry",
    "Build",
    "CreateMachine",
    "ForkMachine",
    "Key",
    "Live",
    "Machine",
    "MachineEvent",
    "MachineUsage",
    "Mount",
    "Node",
    "Page",
    "PatchMachine",
    "Port",
    "Principal",
    "Progress",
    "Role",
    "Sample",
    "Snapshot",
    "Template",
    "Tenant",
    "Tree",
    "Unset",
    "Volume",
]


class Unset(Enum):
    """The type of ``UNSET``: a field that was not named, where None means something."""

    UNSET = "unset"


UNSET: Final = Unset.UNSET


@dataclass(frozen=True, slots=True)
class Attach:
    """A volume as asked for: its name or id, and where."""

    name: str
    path: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Volume:
    """A disk of its own. ``raw_written``: a microVM had it read-write, and only microVMs may from then on."""

    id: str
    tenant_id: str
    name: str
    size_gib: int
    raw_written: bool
    created_at: datetime
    attachments: tuple[Attachment, ...] = ()


@dataclass(frozen=True, slots=True)
class Attachment:
    machine_id: str
    path: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class CreateMachine:
    """A machine as asked for. The service validates it; nothing here has been checked."""

    template: str = "base"
    key: str | None = None
    name: str | None = None
    vcpu: float | None = None  # None: the template's, else the host's default; of each
    memory_mib: int | None = None
    storage_gib: int | None = None
    isolation: str = "auto"  # auto | workspace | user | container | microvm
    driver: str | None = None  # a driver's name; wins over isolation and must agree with it
    env: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    autosleep_seconds: int | None = 300  # None: never
    hibernate_after_seconds: int | Unset | None = UNSET  # UNSET: the host's; None: never
    ttl_seconds: int | None = None
    snapshot: str | None = None  # id or name; template, rung, size and env are then the snapshot's
    created_by: str | None = None  # the caller's key: its usage is counted under that
    memory: bool = True  # the snapshot's; False: from its disk alone
    egress: Policy | None = None  # None: the host's default
    inside: Allowance = NOTHING  # what it may ask of its daemon itself
    volumes: Sequence[Attach] = ()  # it boots then, from no bake and no snapshot's memory
    expiry: str = "destroy"  # destroy | sleep: what its ttl ends in; asleep it has none any more
    autowake: bool = True  # what needs it wakes it; else only ``wake``
    unrestricted: bool = False  # without our guardrails inside it (``claims.UNRESTRICTED``)
    tools: Tools = OFF  # what may be run in it without asking
    run_as: str | None = (
        None  # whom commands and terminals run as unless they say; None: the template's
    )


@dataclass(frozen=True, slots=True)
class ForkMachine:
    count: int = 1
    key: str | None = field(default=None, kw_only=True)  # of the one child there then is
    name: str | None = None  # of each child
    labels: Mapping[str, str] | None = None  # None: the parent's
    ttl_seconds: int | None = None
    created_by: str | None = None  # as of ``CreateMachine``
    egress: Policy | None = None  # None: the parent's, at the instant they go on from
    inherit_secrets: bool = False
    snapshot: str | None = None  # of the parent, id or name: its instant; None: now
    inside: Allowance = NOTHING  # the parent's is not inherited
    volumes: Sequence[Attach] | None = None  # None: those that the parent has read-only
    expiry: str | None = None  # None: the parent's
    autowake: bool | None = None  # None: the parent's


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A machine at one instant; ``memory``: with its processes, not the disk alone. ``status``: ready, or quarantined
    for ``reason`` once its memory could not be loaded."""

    id: str
    tenant_id: str
    name: str | None
    machine_id: str
    driver: str
    template: str
    vcpu: float
    memory_mib: int
    storage_gib: int
    memory: bool
    status: str
    reason: str | None
    size_bytes: int | None
    paused_ms: float | None
    created_at: datetime

    @staticmethod
    def from_row(row: Mapping[Any, Any]) -> Snapshot:
        of = row["machine"]
        plain = ("id", "tenant_id", "name", "machine_id", "status", "size_bytes", "paused_ms")
        taken = ("driver", "template", "vcpu", "memory_mib", "storage_gib")
        return Snapshot(
            **{name: row[name] for name in plain},
            **{name: of[name] for name in taken},
            memory=row["memory_image"] is not None,
            reason=of.get("quarantined"),
            created_at=row["created_at"],
        )


@dataclass(frozen=True, slots=True)
class PatchMachine:
    """What to change; what is UNSET stays."""

    name: str | Unset | None = UNSET
    labels: Mapping[str, str] | Unset = UNSET  # replaces all of them
    autosleep_seconds: int | Unset | None = UNSET
    hibernate_after_seconds: int | Unset | None = UNSET
    ttl_seconds: int | Unset | None = UNSET  # counted from now; None: no expiry
    vcpu: float | Unset = UNSET
    memory_mib: int | Unset = UNSET
    storage_gib: int | Unset = UNSET  # may only grow
    expiry: str | Unset = UNSET
    autowake: bool | Unset = UNSET
    run_as: str | Unset | None = UNSET
    allow_inside: Sequence[str] | Unset = UNSET  # replaces all of it
    inside_forks: int | Unset = UNSET


@dataclass(frozen=True, slots=True)
class Port:
    """A port of a machine that is shown outside. ``salt`` is in its links: another one ends them."""

    id: str
    machine_id: str
    tenant_id: str
    port: int
    protocol: str  # http | tcp
    visibility: str  # private | public
    name: str | None
    salt: str = field(repr=False)
    created_at: datetime
    host_id: str  # the machine its host is called after: the one it was made for
    from_inside: bool = False  # the machine asked for it itself

    @property
    def public(self) -> bool:
        return self.visibility == "public"


@dataclass(frozen=True, slots=True)
class Live:
    """A running machine and the way to its agent. ``config`` is its template's (env, user, workdir, ...)."""

    machine: Machine
    agent: AgentClient
    config: Mapping[str, Any]
    told: Mapping[str, str] = field(default_factory=dict)  # of its secrets, to its programs


@dataclass(frozen=True, slots=True)
class MachineEvent:
    at: datetime
    event: str
    message: str


@dataclass(frozen=True, slots=True)
class Node:
    """A machine, or a snapshot somebody made of one, and what it came of."""

    kind: str  # machine | snapshot
    id: str
    parent_id: str | None  # the machine it went on from, or was taken of
    from_snapshot_id: str | None  # of a machine that was made from one
    name: str | None
    key: str | None
    phase: str | None  # of a machine; destroyed: others that came of it live
    tier: str | None
    replaces: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Tree:
    """Oldest first. ``truncated``: there is more than is told."""

    nodes: list[Node]
    truncated: bool


@dataclass(frozen=True, slots=True)
class MachineUsage:
    """As the host sees it, with the disk and uptime as the agent sees them (None when it is silent)."""

    cpu_usage_us: int
    memory_bytes: int
    memory_limit_bytes: int | None
    pids: int
    disk_total_bytes: int | None
    disk_used_bytes: int | None
    uptime_ms: int | None


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    items: list[T]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Template:
    id: str
    tenant_id: str | None  # None: shipped, everybody's
    name: str
    status: str  # unbuilt | building | ready | failed
    digest: str | None
    recipe_digest: str | None
    size_bytes: int | None
    config: Mapping[str, Any]
    error: Mapping[str, Any] | None
    created_at: datetime
    updated_at: datetime
    parent_id: str | None = None  # what it was built FROM, where that is a template
    tags: tuple[str, ...] = ()  # "name:tag"
    image: Image | None = None  # set by ``resolve``


@dataclass(frozen=True, slots=True)
class Build:
    """waiting (for its context) | queued | running | succeeded | failed | cancelled"""

    id: str
    tenant_id: str
    tags: tuple[str, ...]
    driver: str | None
    status: str
    step: int  # of ``steps``: the one it is at, or was
    steps: int
    cached: int  # steps that did not run, since their layer was there
    template_id: str | None
    machine_id: str | None  # kept after it failed
    digest: str | None
    error: Mapping[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None

    @staticmethod
    def from_row(row: Mapping[Any, Any]) -> Build:
        plain = (
            "id", "tenant_id", "driver", "status", "step", "steps", "cached", "template_id", "machine_id", "digest",
            "error", "created_at", "started_at", "ended_at",
        )  # fmt: skip
        return Build(**{name: row[name] for name in plain}, tags=tuple(row["tags"]))


class Role(StrEnum):
    """What a key or token may do at most; ``gateway.access`` holds calls to it."""

    ADMIN = "admin"  # everything of its own tenant; tenants, the host, the whole audit log
    TENANT = "tenant"  # everything of its own tenant
    RUNNER = "runner"  # uses the machines there are; makes and changes none, approves of nothing
    READ_ONLY = "read_only"  # reads what is its tenant's; changes and wakes nothing
    MACHINE = "machine"  # a token: one machine's own status
    PREVIEW = (
        "preview"  # a token: one port of one machine, for the preview proxy; nothing of the API
    )


TOKENS = frozenset({Role.MACHINE, Role.PREVIEW})


@dataclass(frozen=True, slots=True)
class Key:
    """A key, or a token (then with ``machine_id``, and of a preview token the ``port``)."""

    id: str
    tenant_id: str
    name: str
    role: Role
    machine_id: str | None
    port: int | None
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    secret: str | None = None  # ``<prefix>_<64 hex>``, only from the call that made it


@dataclass(frozen=True, slots=True)
class Principal:
    tenant: str
    key_id: str
    prefix: str  # "roost", "dsk", ...: as sent, chooses a dialect, proves nothing
    role: Role = Role.TENANT
    machine_id: str | None = None  # of a token
    port: int | None = None  # of a preview token
    expires_at: datetime | None = None
    guest: bool = False  # who has proven nothing, and may ask what anybody may

    @property
    def is_token(self) -> bool:
        """Whether it must not use up what its tenant has."""
        return self.guest or self.role in TOKENS


@dataclass(frozen=True, slots=True)
class Tenant:
    id: str
    name: str
    quotas: Mapping[str, Any]  # those it has, by name
    created_at: datetime
    usage: Mapping[str, Any] | None = None  # only where asked for one
    isolation: str | None = None  # the least of its machines; None: the profile's


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One call that changed something, or tried to."""

    id: int
    at: datetime
    tenant_id: str
    key_id: str
    role: str
    action: str
    method: str
    path: str
    machine_id: str | None
    peer: str | None
    status: int
    error_code: str | None
    request_id: str


# stage, percent (None: unknown), message
Progress = Callable[[str, int | None, str], None]
