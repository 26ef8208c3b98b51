"""What goes in and out of the services: plain records, no behaviour but their own derivation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from roost.engine.machine import Machine
from roost.storage.interface import Image

if TYPE_CHECKING:
    from roost.agent.client import AgentClient

T = TypeVar("T")

__all__ = [
    "TOKENS",
    "UNSET",
    "AuditEntry",
    "CreateMachine",
    "ForkMachine",
    "Key",
    "Live",
    "Machine",
    "MachineEvent",
    "MachineUsage",
    "Page",
    "PatchMachine",
    "Principal",
    "Progress",
    "Role",
    "Snapshot",
    "Template",
    "Tenant",
    "Unset",
]


class Unset(Enum):
    """The type of ``UNSET``: a field that was not named, where None means something."""

    UNSET = "unset"


UNSET: Final = Unset.UNSET


@dataclass(frozen=True, slots=True)
class CreateMachine:
    """A machine as asked for. The service validates it; nothing here has been checked."""

    template: str = "base"
    key: str | None = None
    name: str | None = None
    vcpu: float = 1.0
    memory_mib: int = 1024
    storage_gib: int = 10
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


@dataclass(frozen=True, slots=True)
class ForkMachine:
    count: int = 1
    name: str | None = None  # of each child
    labels: Mapping[str, str] | None = None  # None: the parent's
    ttl_seconds: int | None = None
    created_by: str | None = None  # as of ``CreateMachine``


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


@dataclass(frozen=True, slots=True)
class Live:
    """A running machine and the way to its agent. ``config`` is its template's (env, user, workdir, ...)."""

    machine: Machine
    agent: AgentClient
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class MachineEvent:
    at: datetime
    event: str
    message: str


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
    image: Image | None = None  # set by ``resolve``


class Role(StrEnum):
    """What a key or token may do at most; ``gateway.access`` holds calls to it."""

    ADMIN = "admin"  # everything of its own tenant; tenants, the host, the whole audit log
    TENANT = "tenant"  # everything of its own tenant
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

    @property
    def is_token(self) -> bool:
        return self.role in TOKENS


@dataclass(frozen=True, slots=True)
class Tenant:
    id: str
    name: str
    quotas: Mapping[str, Any]  # those it has, by name
    created_at: datetime
    usage: Mapping[str, Any] | None = None  # only where asked for one


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
