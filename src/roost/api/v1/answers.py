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


class ContractLine(Answer):
    text: str
    known: Literal["measured", "tested", "unverified"] = Field(
        description="Found on this host just now; held by tests; or nobody could look."
    )
    by: str = Field(description="What looked, or which tests; of one that is unverified, why.")


class Contract(Answer):
    driver: str
    isolation: Literal["workspace", "user", "container", "microvm"]
    level: int
    claim: str
    boundary: str
    can: list[ContractLine]
    defends_against: list[ContractLine]
    does_not: list[ContractLine] = Field(description="What it does not defend against, or cannot.")
    available: bool
    allowed: bool = Field(
        description="To who asks: by the profile, and by what its tenant is held to."
    )
    reason: str | None = Field(description="Why it is not available; an admin's to know.")
    remedy: str | None


class Capabilities(Answer):
    profile: Literal["indie", "managed"]
    default_driver: str | None = Field(description="What isolation=auto takes for who asks.")
    least_level: int
    least_why: str | None
    rungs: list[Contract]
    unrestricted: str
    advice: str


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


class EgressPolicy(Answer):
    mode: Literal["open", "allowlist", "off"]
    allow: list[str]
    observe: bool


class EgressDecision(Answer):
    """``host``: the name, where one was said, else the address."""

    host: str
    port: int
    protocol: str = Field(examples=["tcp", "udp", "icmp"])
    via: str = Field(examples=["dns", "tls", "http", "packet"])
    allowed: bool
    reason: str = Field(description='Why it was refused; "" where it was not.')
    count: int
    first_at: datetime
    last_at: datetime


class EgressWildcard(Answer):
    entry: str
    instead_of: list[str] = Field(description="Entries of allow that it would stand for.")


class EgressSuggestion(Answer):
    """What would have let the refused through; of a machine that is open and observed, all that it tried."""

    allow: list[str]
    wildcards: list[EgressWildcard]
    left_out: int = Field(description="Entries beyond what a list may have.")


class Egress(EgressPolicy):
    decisions: list[EgressDecision] = Field(description="Since it last started, newest first.")
    suggested: EgressSuggestion


class Inside(Answer):
    """What it may ask of its daemon itself."""

    allow: list[str]
    forks: int
    forked: int


class Tool(Answer):
    program: str
    args: list[str] | None = Field(description="null: any.")
    env: list[str] = []
    users: list[str] = []


class Tools(Answer):
    """Which programs may be run without asking, and what becomes of the rest."""

    mode: Literal["off", "ask", "deny"]
    allow: list[Tool]


class AskedFor(Answer):
    """A call that waits, or waited: all of it, for who may decide."""

    command: list[str]
    cwd: str | None
    user: str | None = Field(description="null: the machine's own.")
    env: dict[str, str | None] = Field(
        description="null: hidden, from who may not decide, and once it is decided."
    )
    stdin: str | None = Field(description="null: hidden, as the values of env.")
    stdin_bytes: int
    stdin_stream: bool = Field(description="More may be written once it runs.")
    timeout_ms: int | None


class Approval(Answer):
    approval_id: str
    execution_id: str = Field(description="The same: an approval is of one execution.")
    machine_id: str
    status: Literal["pending", "approved", "denied", "expired", "cancelled"]
    asked: AskedFor
    asked_by: str | None = Field(description="Id of the key.")
    created_at: datetime
    expires_at: datetime
    decided_at: datetime | None
    decided_by: str | None = Field(description="Id of the key.")
    note: str | None


class Mount(Answer):
    volume_id: str
    name: str
    path: str
    read_only: bool


class Attachment(Answer):
    machine_id: str
    path: str
    read_only: bool


class Volume(Answer):
    volume_id: str
    name: str
    size_gib: int
    raw_written: bool = Field(
        description="A microVM had it read-write: only microVMs may have it from then on."
    )
    attachments: list[Attachment] = Field(description="Who has it, asleep too.")
    created_at: datetime


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
    egress: EgressPolicy
    parent_id: str | None = Field(description="The machine it went on from; it may be gone by now.")
    from_snapshot_id: str | None = Field(
        description="The parent's snapshot it was made from; null: a fork, or from a template."
    )
    replaces: str | None = Field(description="The machine whose place it took.")
    inside: Inside
    tools: Tools
    volumes: list[Mount]
    expiry: Literal["destroy", "sleep"] = Field(description="What its ttl ends in.")
    autowake: bool = Field(description="Whether what needs it wakes it.")
    unrestricted: bool
    warnings: list[str] = Field(description="What its owner ought to know of how it runs.")
    run_as: str | None = Field(
        description="Whom commands and terminals run as unless they say; null: the template's user."
    )
    node_id: str
    created_at: datetime


class Secret(Answer):
    """Its value is never shown."""

    name: str
    hosts: list[str]
    header: str | None
    format: str | None
    placeholder: str | None = Field(
        description="What the machine's programs send in its place; in their environment under the secret's name."
    )
    in_body: bool
    created_at: datetime
    updated_at: datetime


class Machines(Answer):
    items: list[Machine]


class Node(Answer):
    kind: Literal["machine", "snapshot"]
    id: str
    parent_id: str | None = Field(description="The machine it went on from, or was taken of.")
    from_snapshot_id: str | None
    name: str | None
    key: str | None
    phase: Phase | None = Field(description="Of a machine; destroyed: others of it live.")
    tier: Literal["frozen", "hibernated", "stopped"] | None
    replaces: str | None
    created_at: datetime


class Tree(Answer):
    items: list[Node] = Field(description="Oldest first.")
    truncated: bool


class DiffSide(Answer):
    kind: Literal["file", "directory", "symlink", "other"]
    size: int
    mode: str
    uid: int
    gid: int
    mtime: datetime
    link_target: str | None = None


class Difference(Answer):
    path: str
    change: Literal["added", "removed", "changed", "type", "mode"] = Field(
        description="mode: permissions or owner alone."
    )
    before: DiffSide | None
    after: DiffSide | None
    unsure: bool = Field(description="Written to, and not read: it may hold the same.")
    path_b64: str | None = None


class Diff(Answer):
    """From the one machine to the other: what is added is what the other alone has."""

    machine_id: str
    other: str
    items: list[Difference] = Field(description="By path.")
    counts: dict[str, int] = Field(description="Of all, by change.")
    compared: int = Field(description="Entries that were looked at.")
    truncated: Literal["entries", "items", "time"] | None = Field(
        description="Why there may be more: trees too large, a longer list, no time left."
    )


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


class Sample(Answer):
    at: datetime
    cpu_count: float
    cpu_used_pct: float = Field(description="Of one processor, since the sample before.")
    memory_used_bytes: int
    memory_total_bytes: int
    memory_cache_bytes: int
    disk_used_bytes: int | None
    disk_total_bytes: int | None


class Samples(Answer):
    items: list[Sample]


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
    name: Literal["start"] | None = Field(description="start: what the template starts.")
    command: list[str]
    cwd: str | None
    user: str | None
    status: Literal[
        "approval_required", "queued", "running", "succeeded", "failed", "cancelled", "expired"
    ]
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
    pid: int
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
    tags: list[str] = Field(description="All its names, each name:tag.")
    shipped: bool = Field(description="A recipe of this installation, everybody's.")
    parent_id: str | None = Field(description="The template it was built FROM.")
    config: dict[str, Any]
    error: dict[str, Any] | None = None
    created_at: datetime
    updated_at: datetime


class Untagged(Answer):
    removed: list[str] = Field(description="The names that went.")
    deleted: bool = Field(description="With its last name, the template.")


class Collected(Answer):
    dry_run: bool
    templates: list[str] = Field(description="Ids of templates without a name that nothing needs.")
    layers: int
    builds: int = Field(description="Rows and logs of builds that have ended.")
    bytes: int = Field(description="Of the pool, about.")


class Build(Answer):
    build_id: str
    tags: list[str]
    status: Literal["waiting", "queued", "running", "succeeded", "failed", "cancelled"] = Field(
        description="waiting: for its context (PUT .../context)."
    )
    step: int
    steps: int
    cached: int = Field(description="Steps that did not run, since nothing of them had changed.")
    driver: str | None
    template_id: str | None
    digest: str | None
    machine_id: str | None = Field(description="Kept after it failed, where that was asked for.")
    error: dict[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class Port(Answer):
    port_id: str
    machine_id: str
    port: int
    protocol: Literal["http", "tcp"]
    visibility: Literal["private", "public"]
    name: str | None
    url: str | None = Field(description="None of a tcp port: roost port-forward reaches those.")
    created_at: datetime


class Ports(Answer):
    items: list[Port]
    next_cursor: None


class Listening(Answer):
    port: int
    addresses: list[str] = Field(description="0.0.0.0 and :: are all of the machine's.")


class ListeningPorts(Answer):
    items: list[Listening]
    next_cursor: None


class Link(Answer):
    url: str
    expires_at: datetime


class Key(Answer):
    key_id: str
    name: str
    tenant_id: str
    role: Literal["admin", "tenant", "runner", "read_only"]
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


class SshKey(Answer):
    ssh_key_id: str
    name: str
    fingerprint: str = Field(examples=["SHA256:..."])
    public_key: str
    created_at: datetime
    last_used_at: datetime | None


class Ssh(Answer):
    enabled: bool
    host: str | None = Field(description="Where it listens; null: where the API does.")
    port: int | None
    host_key: str | None = Field(description="As in known_hosts: type and base64.")
    fingerprint: str | None


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
    isolation: Literal["workspace", "user", "container", "microvm"] | None = Field(
        description="The least of its machines; null: the profile's."
    )
    created_at: datetime
    used: Used | None = None


class AuditEntry(Answer):
    id: int
    at: datetime
    tenant_id: str
    key_id: str
    role: Literal["admin", "tenant", "runner", "read_only", "machine", "preview"]
    action: str = Field(examples=["machines_create"])
    method: str
    path: str
    machine_id: str | None
    peer: str | None
    status: int
    error_code: str | None
    request_id: str


class BrowserPage(Answer):
    page_id: str
    url: str
    title: str
    status: int | None = Field(None, description="Of its HTTP answer, after a goto.")


class BrowserPages(Answer):
    items: list[BrowserPage] = Field(description="The one used last first.")


class BrowserText(BrowserPage):
    text: str
    truncated: bool


class BrowserValue(Answer):
    value: Any


class BrowserLink(Answer):
    url: str = Field(description="A WebSocket of the whole browser (CDP).")
    expires_at: datetime


class Screen(Answer):
    width: int
    height: int
    x: int = Field(description="Of the pointer.")
    y: int


class Window(Answer):
    window_id: int
    title: str
    x: int
    y: int
    width: int
    height: int
    focused: bool


class Windows(Answer):
    items: list[Window] = Field(description="The topmost last.")


class Clipboard(Answer):
    text: str


class Shown(Answer):
    main: bool = Field(description="The value of the last line, rather than something displayed.")
    data: dict[str, Any] = Field(
        description="By content type; pictures are base64.", examples=[{"text/plain": "2"}]
    )


class Raised(Answer):
    name: str = Field(examples=["ZeroDivisionError"])
    value: str
    traceback: str


class CodeResult(Answer):
    status: Literal["ok", "error", "expired", "interrupted", "died"]
    execution_count: int | None
    stdout: str
    stderr: str
    results: list[Shown]
    error: Raised | None
    truncated: bool
    restarted: bool = Field(description="The kernel is a new one; what it knew is gone.")


class CodeContext(Answer):
    name: str
    language: str
    busy: bool
    execution_count: int


class CodeContexts(Answer):
    items: list[CodeContext]


class Health(Answer):
    status: Literal["ok"]
