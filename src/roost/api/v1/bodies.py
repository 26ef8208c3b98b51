"""What may be sent. Unknown fields are refused; what a field may hold is the service's to say unless it is
a matter of form."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)

from roost import claims


class Body(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    @model_validator(mode="before")
    @classmethod
    def _sayable(cls, data: Any) -> Any:
        _check_text(data)
        return data


def _check_text(value: Any) -> None:
    """JSON can escape what no UTF-8 can carry: lone surrogates go no further."""
    if isinstance(value, str):
        if not value.isascii() and _SURROGATE.search(value):
            raise ValueError("text with a lone surrogate")
    elif isinstance(value, dict):
        for name, each in value.items():
            _check_text(name)
            _check_text(each)
    elif isinstance(value, list):
        for each in value:
            _check_text(each)


_SURROGATE = re.compile("[\ud800-\udfff]")


Duration = StrictStr | StrictInt | StrictFloat
Env = dict[str, str]
Labels = dict[str, str]
Mode = Annotated[str, Field(pattern=r"^[0-7]{3,5}$", examples=["0644"])]
PathText = Annotated[str, Field(min_length=1, max_length=4096, examples=["/root/notes.txt"])]
PathBytes = Annotated[
    str, Field(max_length=8192, description="The path in base64, for bytes that are not UTF-8.")
]


Entries = Annotated[
    list[Annotated[str, Field(max_length=400)]],
    Field(
        max_length=256,
        examples=[["python.example", "*.mirror.example", "192.0.2.0/24:5432/tcp"]],
        description="Names, wildcards, addresses and networks, with ports.",
    ),
]
EgressMode = Literal["open", "allowlist", "off"]


class Egress(Body):
    """What a machine may reach. ``mode`` is by default allowlist where there is a list, be it empty, else open."""

    mode: EgressMode | None = None
    allow: Entries = []
    observe: bool = Field(
        False, description="List all that is tried, so that an allowlist can be made of it."
    )


class PatchEgress(Body):
    """What is named changes. ``allow`` replaces the list; of ``remove`` nothing is allowed afterwards."""

    mode: EgressMode | None = None
    allow: Entries | None = None
    observe: bool | None = None
    add: Entries = []
    remove: Entries = []


SecretValue = Annotated[
    str, Field(min_length=1, max_length=8192, json_schema_extra={"writeOnly": True})
]
Hosts = Annotated[list[str], Field(min_length=1, max_length=32, examples=[["api.example.org"]])]


class PutSecret(Body):
    """What is not named stays, where there is one of that name."""

    value: SecretValue | None = Field(None, description="Never shown again; 8 characters or more.")
    hosts: Hosts | None = Field(
        None, description="Names and wildcards it is for; port 443 unless given (`HOST:8443`)."
    )
    header: str | None = Field(
        None, max_length=64, description="That carries it.", examples=["Authorization"]
    )
    format: str | None = Field(
        None, max_length=256, description="Of the header.", examples=["Bearer {value}"]
    )
    placeholder: str | None = Field(
        None,
        max_length=256,
        description="Instead of a header: what the machine's programs send in its place; without either one is made.",
    )
    in_body: bool | None = Field(
        None, description="Look for the placeholder in bodies, too (up to 1 MiB)."
    )


class NewSecret(PutSecret):
    name: str = Field(min_length=1, max_length=64, examples=["OPENAI_API_KEY"])
    value: SecretValue
    hosts: Hosts


_SIZE = "By default the template's, else 1 vCPU, 1024 MiB and 10 GiB."
Allowed = Annotated[
    list[Literal["expose", "publish", "fork", "sleep"]],
    Field(
        max_length=8,
        description="What the machine may ask of its daemon itself (`roost` inside), beyond looking at itself.",
    ),
]
Forks = Annotated[int, Field(ge=0, le=1000)]
FORKS = "Copies it may make of itself in its life, where it may fork."


ToolMode = Literal["off", "ask", "deny"]
Pattern = Annotated[str, Field(max_length=1024)]
Patterns = Annotated[list[Pattern], Field(max_length=32)]


class Tool(Body):
    """Calls that may be run without asking. In patterns ``*`` and ``?`` stand for no slash, ``**`` for anything."""

    program: str = Field(
        min_length=1,
        max_length=1024,
        examples=["git"],
        description="A name, found by the machine's PATH, or an absolute path; as it is called. `sh`: a text for a shell."
        " `$SHELL`: a terminal's login shell.",
    )
    args: Patterns | None = Field(
        None,
        examples=[["status", "..."]],
        description="A pattern for each argument; `...` last: any more. Default: any.",
    )
    env: Patterns = Field([], description="Variables that a call may add.")
    users: Patterns = Field([], description="Users that a call may name; its own it always may.")


class Tools(Body):
    """Which programs may be run. ``mode`` is of the rest: ask (it waits for approval) or deny; off: everything may."""

    mode: ToolMode | None = Field(None, description="Default: ask where there is a list, else off.")
    allow: Annotated[list[Tool], Field(max_length=128)] = []


class Decision(Body):
    note: str | None = Field(None, max_length=300, description="Kept, and told to who asked.")


Volumes = Annotated[
    list["AttachVolume"],
    Field(
        max_length=8,
        description="Disks of their own that it mounts. It boots then, rather than go on from memory.",
    ),
]


class AttachVolume(Body):
    name: str = Field(min_length=1, max_length=63, description="Its name or id.")
    path: str = Field(max_length=255, examples=["/data"], description="Where it is mounted.")
    read_only: bool = False


class CreateVolume(Body):
    name: str = Field(min_length=1, max_length=63, examples=["data"])
    size_gib: int = Field(10, examples=[10], description="It takes room as it fills.")


RunAs = Annotated[
    str | None,
    Field(
        max_length=64,
        description="User, number or user:group that commands and terminals run as unless they say. Default: the template's.",
    ),
]


class CreateMachine(Body):
    template: str = Field("base", max_length=160)
    key: str | None = Field(
        None, max_length=128, description="Your own name for it, one machine per key."
    )
    name: str | None = Field(None, max_length=63)
    vcpu: float | None = Field(None, examples=[1, 2.5], description=_SIZE)
    memory_mib: int | None = Field(None, examples=[1024], description=_SIZE)
    storage_gib: int | None = Field(None, examples=[10], description=_SIZE)
    isolation: Literal["auto", "workspace", "user", "container", "microvm"] = "auto"
    driver: str | None = Field(None, max_length=32)
    env: Env = {}
    labels: Labels = {}
    autosleep: Duration | None = Field(
        "300s", description='Idle time before it sleeps, or "never".'
    )
    hibernate_after: Duration | None = Field(
        None,
        description='Time frozen before its memory goes to the disk, or "never". Default: the host\'s.',
    )
    ttl: Duration | None = Field(None, description="Time until it is destroyed.")
    snapshot: str | None = Field(
        None,
        max_length=64,
        description="Id or name: goes on from there. Template, rung, size and env are then the snapshot's.",
    )
    memory: bool = Field(True, description="Of the snapshot; false: from its disk alone.")
    expiry: Literal["destroy", "sleep"] = Field(
        "destroy", description="What its ttl ends in. Asleep it has none any more."
    )
    autowake: bool = Field(
        True, description="Asleep, it is woken by what needs it; false: by wake alone."
    )
    unrestricted: bool = Field(False, description=claims.UNRESTRICTED)
    run_as: RunAs = None
    volumes: Volumes = []
    secrets: list[NewSecret] = Field(
        [], max_length=64, description="What its requests carry and it never sees."
    )
    egress: EgressMode | Egress | None = Field(
        None, description="What it may reach; default: the host's."
    )
    tools: ToolMode | Tools | None = Field(
        None, description="Which programs may be run in it; default: all."
    )
    allow_inside: Allowed = []
    inside_forks: Forks = Field(8, description=FORKS)


class EnsureMachine(Body):
    """As CreateMachine, without the key: that is in the path."""

    template: str = Field("base", max_length=160)
    name: str | None = Field(None, max_length=63)
    vcpu: float | None = Field(None, description=_SIZE)
    memory_mib: int | None = Field(None, description=_SIZE)
    storage_gib: int | None = Field(None, description=_SIZE)
    isolation: Literal["auto", "workspace", "user", "container", "microvm"] = "auto"
    driver: str | None = Field(None, max_length=32)
    env: Env = {}
    labels: Labels = {}
    autosleep: Duration | None = "300s"
    hibernate_after: Duration | None = None
    ttl: Duration | None = None
    expiry: Literal["destroy", "sleep"] = Field(
        "destroy", description="What its ttl ends in. Asleep it has none any more."
    )
    autowake: bool = Field(
        True, description="Asleep, it is woken by what needs it; false: by wake alone."
    )
    unrestricted: bool = Field(False, description=claims.UNRESTRICTED)
    run_as: RunAs = None
    volumes: Volumes = []
    egress: EgressMode | Egress | None = None
    tools: ToolMode | Tools | None = Field(
        None, description="Which programs may be run in it; default: all."
    )
    allow_inside: Allowed = []
    inside_forks: Forks = Field(8, description=FORKS)


class ForkMachine(Body):
    count: int = Field(1, ge=1, le=100)
    key: str | None = Field(None, max_length=128, description="Of the one child there then is.")
    name: str | None = Field(None, max_length=63)
    labels: Labels | None = Field(None, description="Default: the parent's.")
    ttl: Duration | None = None
    inherit_secrets: bool = Field(False, description="The parent's are the children's, too.")
    egress: EgressMode | Egress | None = Field(None, description="Default: the parent's.")
    snapshot: str | None = Field(
        None, max_length=64, description="One of this machine to go on from (id or name), not now."
    )
    volumes: Volumes | None = Field(
        None, description="Default: those that the parent has read-only."
    )
    expiry: Literal["destroy", "sleep"] | None = Field(None, description="Default: the parent's.")
    autowake: bool | None = Field(None, description="Default: the parent's.")
    allow_inside: Allowed = []
    inside_forks: Forks = Field(8, description=FORKS)


class Promote(Body):
    """In another machine's place, or, with ``isolation`` or ``driver``, up the ladder."""

    isolation: Literal["user", "container", "microvm"] | None = Field(
        None,
        description="Where it goes with its disk; what runs in it ends, its memory is dropped.",
    )
    driver: str | None = Field(None, max_length=32)
    onto: str | None = Field(
        None, max_length=64, description="Whose place it takes. Default: its parent."
    )
    previous: Literal["keep", "destroy"] = Field(
        "keep", description="What becomes of that machine, once it is done."
    )


class CreateSnapshot(Body):
    name: str | None = Field(None, max_length=63, description="Unique among yours.")


class Rollback(Body):
    snapshot: str = Field(max_length=64, description="Id or name of a snapshot of this machine.")


class PatchMachine(Body):
    name: str | None = Field(None, max_length=63)
    labels: Labels = {}
    autosleep: Duration | None = None
    hibernate_after: Duration | None = None
    ttl: Duration | None = None
    vcpu: float = 1.0
    memory_mib: int = 1024
    storage_gib: int = Field(
        10, description="A larger one is UNSUPPORTED until disks can grow, a smaller one refused."
    )
    expiry: Literal["destroy", "sleep"] = "destroy"
    autowake: bool = True
    run_as: RunAs = None
    allow_inside: Allowed = []
    inside_forks: Forks = Field(8, description=FORKS)


class StartExecution(Body):
    command: list[str] | str = Field(
        description="An argv, or a string for /bin/sh -c.",
        examples=["echo hello", ["ls", "-l", "/"]],
    )
    cwd: str | None = None
    env: Env = {}
    user: str | None = None
    stdin: str | None = None
    stdin_b64: str | None = Field(None, description="Instead of stdin, for bytes.")
    stdin_stream: bool = Field(False, description="Keep stdin open for later writes.")
    timeout_ms: int | None = Field(None, ge=1, le=604_800_000)
    keep_awake: bool = Field(True, description="While it runs its machine is not idle.")


class Signal(Body):
    signal: int | str = Field(examples=[15, "SIGTERM"])


class OpenTerminal(Body):
    width: int = Field(80, ge=1, le=1000)
    height: int = Field(24, ge=1, le=1000)
    command: list[str] | None = Field(None, description="Default: the user's login shell.")
    shell: str | None = Field(None, description="Instead of command: a shell to run.")
    cwd: str | None = None
    env: Env = {}
    user: str | None = None
    term: str | None = Field(None, max_length=64, examples=["xterm-256color"])


class ResizeTerminal(Body):
    width: int = Field(ge=1, le=1000)
    height: int = Field(ge=1, le=1000)


class MakeDirectory(Body):
    path: PathText | None = None
    path_b64: PathBytes | None = None
    parents: bool = True
    mode: Mode | None = None
    owner: str | None = Field(None, max_length=130)


class Move(Body):
    source: PathText | None = None
    source_b64: PathBytes | None = None
    destination: PathText | None = None
    destination_b64: PathBytes | None = None
    overwrite: bool = False


class SetAttributes(Body):
    path: PathText | None = None
    path_b64: PathBytes | None = None
    mode: Mode | None = None
    owner: str | None = Field(None, max_length=130)
    mtime: datetime | None = Field(None, strict=False)
    recursive: bool = False


class CreatePort(Body):
    port: int = Field(
        ge=0,
        le=65535,
        examples=[8000],
        description="0: every port that is not shown by itself and is not Roost's own.",
    )
    protocol: Literal["http", "tcp"] = "http"
    visibility: Literal["private", "public"] = "private"
    name: str | None = Field(
        None, max_length=63, description="Its host: {name}.{domain}. One of the whole daemon."
    )


class PatchPort(Body):
    visibility: Literal["private", "public"] | None = None
    name: str | None = Field(None, max_length=63, description="null: none any more.")


class CreateLink(Body):
    ttl_seconds: int = Field(3600, ge=1, le=604_800)


class CreateTerminalLink(Body):
    ttl_seconds: int = Field(600, ge=1, le=86_400)


class CreateKey(Body):
    name: str = Field(min_length=1, max_length=63)
    role: Literal["admin", "tenant", "runner", "read_only"] | None = Field(
        None, description="Default: the caller's own; for another tenant, tenant."
    )
    tenant: str | None = Field(None, max_length=63, description="Id or name; an admin's to name.")
    ttl: Duration | None = Field(None, description="Time until it expires; default: never.")
    expires_at: datetime | None = Field(None, strict=False, description="Instead of ttl.")


class CreateToken(Body):
    scope: Literal["machine", "preview"]
    port: int | None = Field(None, ge=1, le=65535, description="Of a preview token.")
    name: str = Field("token", min_length=1, max_length=63)
    ttl: Duration | None = Field(None, description="Time until it expires; default: never.")
    expires_at: datetime | None = Field(None, strict=False, description="Instead of ttl.")


class AddSshKey(Body):
    public_key: str = Field(
        min_length=1,
        max_length=8192,
        description="A line of an id_*.pub file.",
        examples=["ssh-ed25519 AAAA... me@laptop"],
    )
    name: str | None = Field(
        None, min_length=1, max_length=63, description="Default: the key's comment."
    )


Count = Annotated[int, Field(ge=0, le=10**12)]


class Quotas(Body):
    """What is named changes; null: no limit."""

    machines: Count | None = None
    awake_machines: Count | None = None
    vcpu: float | None = Field(None, ge=0, le=1e12)
    memory_mib: Count | None = None
    storage_gib: Count | None = None
    forks_per_minute: Count | None = None
    requests_per_second: float | None = Field(None, ge=0.01, le=1e12)
    request_burst: int | None = Field(None, ge=1, le=10**12)


Least = Annotated[
    Literal["workspace", "user", "container", "microvm"] | None,
    Field(description="The least isolation of its machines; null: the profile's."),
]


class CreateTenant(Body):
    name: str = Field(min_length=1, max_length=63)
    quotas: Quotas = Quotas.model_validate({})
    isolation: Least = None


class PatchTenant(Body):
    name: str | None = Field(None, min_length=1, max_length=63)
    quotas: Quotas = Quotas.model_validate({})
    isolation: Least = None


class Tag(Body):
    name: Annotated[str, Field(min_length=1, max_length=128, examples=["mine:v2"])]


class Login(Body):
    """Of a registry."""

    username: Annotated[str, Field(max_length=256)]
    password: Annotated[str, Field(max_length=16384)]


class StartBuild(Body):
    tags: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=128)]],
        Field(min_length=1, max_length=20, examples=[["mine", "mine:v2"]]),
    ]
    dockerfile: Annotated[
        str, Field(max_length=1 << 20, description="Its text.", examples=["FROM base\nRUN true\n"])
    ]
    roost_toml: Annotated[str | None, Field(max_length=256 * 1024)] = None
    build_args: dict[str, str] = Field(default_factory=dict)
    secrets: dict[str, str] = Field(
        default_factory=dict, description="By id; in no layer, no log, no row."
    )
    credentials: dict[str, Login] = Field(
        default_factory=dict, description="Of registries, by host."
    )
    driver: Annotated[str | None, Field(max_length=32)] = None
    no_cache: bool = False
    keep_failed: bool = Field(
        default=False, description="The machine of a step that failed stays, to be looked into."
    )


PageId = Annotated[str | None, Field(max_length=64, description="Default: the page used last.")]
TimeoutMs = Annotated[int, Field(ge=1, le=300_000)]
Pixel = Annotated[float, Field(examples=[640])]


class Goto(Body):
    url: str = Field(min_length=1, max_length=2 * 2**20, examples=["https://example.org/"])
    wait_until: Literal["load", "domcontentloaded", "none"] = "load"
    timeout_ms: TimeoutMs = 30_000
    page_id: PageId = None


class Evaluate(Body):
    expression: str = Field(min_length=1, max_length=1_000_000, examples=["document.title"])
    timeout_ms: TimeoutMs = 30_000
    page_id: PageId = None


class ClickElement(Body):
    selector: str = Field(min_length=1, max_length=4096, examples=["button[type=submit]"])
    page_id: PageId = None


class FillElement(ClickElement):
    text: str = Field(max_length=1_000_000)


class ConnectBrowser(Body):
    ttl_seconds: int = Field(3600, ge=1, le=86_400)


MouseButton = Literal["left", "middle", "right"]
Modifiers = Annotated[
    str, Field(max_length=200, description="Keys held meanwhile.", examples=["ctrl+shift"])
]


class MovePointer(Body):
    x: Pixel
    y: Pixel


class Click(Body):
    x: float | None = Field(None, description="Default: where the pointer is.")
    y: float | None = None
    button: MouseButton = "left"
    count: int = Field(1, ge=1, le=3, description="2: a double click.")
    modifiers: Modifiers = ""


class Drag(Body):
    x: Pixel
    y: Pixel
    to_x: Pixel
    to_y: Pixel
    button: MouseButton = "left"
    modifiers: Modifiers = ""


class PressButton(Body):
    button: MouseButton = "left"
    down: bool


class Scroll(Body):
    x: float | None = Field(None, description="Default: where the pointer is.")
    y: float | None = None
    dx: int = Field(0, ge=-100, le=100, description="Clicks of the wheel to the right.")
    dy: int = Field(0, ge=-100, le=100, description="Clicks of the wheel down.")
    modifiers: Modifiers = ""


class TypeText(Body):
    text: str = Field(max_length=10_000)


class PressKeys(Body):
    keys: str = Field(min_length=1, max_length=200, examples=["ctrl+shift+t", "Return"])
    hold_ms: int = Field(0, ge=0, le=10_000)


class FocusWindow(Body):
    window_id: int = Field(ge=0, lt=2**32)


class SetClipboard(Body):
    text: str = Field(max_length=1_000_000)


class RunCode(Body):
    code: str = Field(max_length=1_000_000, examples=["1 + 1"])
    language: str = Field("python", max_length=32, description="Of a Jupyter kernel it has.")
    context: str | None = Field(
        None,
        max_length=64,
        description='Whose names it has; each is a kernel of its own. Default: "default", of another language than python its name.',
    )
    timeout_ms: int = Field(
        300_000, ge=1, le=86_400_000, description="Then it is interrupted, as by Ctrl-C."
    )
