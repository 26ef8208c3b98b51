"""What comes back, for the OpenAPI document and for tests that hold the API to it."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


# A stream of events, as schema tools read one: each an object with text in ``data`` (JSON, here).
EVENTS: dict[str, Any] = {
    "text/event-stream": {
        "schema": {
            "type": "object",
            "properties": {
                "event": {"type": "string"},
                "id": {"type": "string"},
                "data": {"type": "string", "contentMediaType": "application/json"},
            },
            "required": ["event", "data"],
        }
    }
}


class Problem(Answer):
    """Every error looks like this."""

    error_code: str = Field(examples=["MACHINE_NOT_FOUND"])
    message: str
    retryable: bool
    details: dict[str, Any]


class Page(Answer, Generic[T]):
    items: list[T]
    next_cursor: str | None


Phase = Literal[
    "accepted", "placement_pending", "starting", "running", "stopping", "sleeping", "waking",
    "destroying", "destroyed", "failed",
]  # fmt: skip


class MachineStatus(Answer):
    phase: Phase
    tier: Literal["frozen", "hibernated", "stopped"] | None = Field(
        description="How it sleeps: frozen (memory resident), hibernated (memory on the disk), stopped."
    )
    reason: str | None
    retryable: bool
    revision: int
    last_transition_at: datetime
    last_progress_at: datetime
    last_error: dict[str, Any] | None = None


class Isolation(Answer):
    level: int
    name: str
    driver: str
    boundary: str
    accelerated: bool | None
    claim: str


class Machine(Answer):
    machine_id: str
    key: str | None
    name: str | None
    labels: dict[str, str]
    template: str
    image_digest: str
    vcpu: float
    memory_mib: int
    storage_gib: int
    env: dict[str, str]
    autosleep_seconds: int | None
    hibernate_after_seconds: int | None
    ttl_seconds: int | None
    expires_at: datetime | None
    desired_state: Literal["running", "sleeping", "destroyed"]
    phase: Phase
    status: MachineStatus
    isolation: Isolation
    memory_kept: bool
    node_id: str
    created_at: datetime


class Machines(Answer):
    items: list[Machine]


class Snapshot(Answer):
    snapshot_id: str
    name: str | None
    machine_id: str
    driver: str
    template: str
    vcpu: float
    memory_mib: int
    storage_gib: int
    memory: bool = Field(description="With its processes; false: the disk alone.")
    status: Literal["ready", "quarantined"]
    reason: str | None = Field(description="Why it is quarantined: its memory cannot be loaded.")
    size_bytes: int | None
    paused_ms: float | None
    created_at: datetime


class Usage(Answer):
    cpu_usage_us: int
    memory_bytes: int
    memory_limit_bytes: int | None
    pids: int
    disk_total_bytes: int | None
    disk_used_bytes: int | None
    uptime_ms: int | None


class UsageAmounts(Answer):
    day: date | None = None
    machine_id: str | None = None
    key_id: str | None = None
    vcpu_seconds: float
    memory_gib_seconds: float
    storage_gib_hours: float
    egress_bytes: int
    cost: str = Field(description="Decimal, in the currency of prices.")


class UsageReport(Answer):
    model_config = ConfigDict(populate_by_name=True)

    from_: date = Field(alias="from")
    to: date
    group_by: list[str]
    prices: dict[str, str]
    items: list[UsageAmounts]
    total: UsageAmounts


class LogEntry(Answer):
    at: datetime
    event: str
    message: str


class Logs(Answer):
    items: list[LogEntry]


class Execution(Answer):
    execution_id: str
    machine_id: str
    command: list[str]
    cwd: str | None
    user: str | None
    status: Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]
    exit_code: int | None
    signal: int | None
    reason: str | None
    timeout_ms: int | None
    keep_awake: bool
    stdout_bytes: int
    stderr_bytes: int
    stdout_truncated: bool
    stderr_truncated: bool
    duration_ms: float | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class Finished(Execution):
    stdout: str
    stderr: str
    stdout_b64: str | None = None
    stderr_b64: str | None = None


class Output(Answer):
    execution_id: str
    stdout: str
    stderr: str
    stdout_b64: str | None = None
    stderr_b64: str | None = None
    stdout_bytes: int
    stderr_bytes: int
    stdout_truncated: bool
    stderr_truncated: bool


class Written(Answer):
    written: int


class Terminal(Answer):
    terminal_id: str
    machine_id: str
    status: Literal["ready", "closed"]
    width: int
    height: int
    protocol: Literal["websocket"]
    stream_url: str
    exit_code: int | None
    viewers: int
    created_at: datetime


class FileInfo(Answer):
    path: str
    name: str
    kind: Literal["file", "directory", "symlink", "other"]
    size: int
    mode: str
    uid: int
    gid: int
    owner: str
    group: str
    mtime: datetime
    link_target: str | None = None
    target_kind: str | None = None
    path_b64: str | None = None


class Unpacked(Answer):
    entries: int
    bytes: int


class Template(Answer):
    name: str
    template_id: str
    status: Literal["unbuilt", "building", "ready", "failed"]
    digest: str | None
    size_bytes: int | None
    config: dict[str, Any]
    error: dict[str, Any] | None = None
    created_at: datetime
    updated_at: datetime


class Key(Answer):
    key_id: str
    name: str
    tenant_id: str
    role: Literal["admin", "tenant", "read_only"]
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None


class NewKey(Key):
    key: str


class Token(Answer):
    token_id: str
    name: str
    scope: Literal["machine", "preview"]
    machine_id: str
    port: int | None
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None


class NewToken(Token):
    token: str


class Quotas(Answer):
    """null: no limit."""

    machines: int | None
    awake_machines: int | None
    vcpu: float | None
    memory_mib: int | None
    storage_gib: int | None
    forks_per_minute: int | None
    requests_per_second: float | None
    request_burst: int | None


class Used(Answer):
    machines: int
    awake_machines: int
    vcpu: float
    memory_mib: int
    storage_gib: int


class Tenant(Answer):
    tenant_id: str
    name: str
    quotas: Quotas
    created_at: datetime
    used: Used | None = None


class AuditEntry(Answer):
    id: int
    at: datetime
    tenant_id: str
    key_id: str
    role: Literal["admin", "tenant", "read_only", "machine", "preview"]
    action: str = Field(examples=["machines_create"])
    method: str
    path: str
    machine_id: str | None
    peer: str | None
    status: int
    error_code: str | None
    request_id: str


class Health(Answer):
    status: Literal["ok"]
