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


class CreateMachine(Body):
    template: str = Field("base", max_length=64)
    key: str | None = Field(
        None, max_length=128, description="Your own name for it, one machine per key."
    )
    name: str | None = Field(None, max_length=63)
    vcpu: float = Field(1.0, examples=[1, 2.5])
    memory_mib: int = 1024
    storage_gib: int = 10
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


class EnsureMachine(Body):
    """As CreateMachine, without the key: that is in the path."""

    template: str = Field("base", max_length=64)
    name: str | None = Field(None, max_length=63)
    vcpu: float = 1.0
    memory_mib: int = 1024
    storage_gib: int = 10
    isolation: Literal["auto", "workspace", "user", "container", "microvm"] = "auto"
    driver: str | None = Field(None, max_length=32)
    env: Env = {}
    labels: Labels = {}
    autosleep: Duration | None = "300s"
    hibernate_after: Duration | None = None
    ttl: Duration | None = None


class ForkMachine(Body):
    count: int = Field(1, ge=1, le=100)
    name: str | None = Field(None, max_length=63)
    labels: Labels | None = Field(None, description="Default: the parent's.")
    ttl: Duration | None = None


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
    storage_gib: int = Field(10, description="May only grow.")


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


class CreateKey(Body):
    name: str = Field(min_length=1, max_length=63)
    role: Literal["admin", "tenant", "read_only"] | None = Field(
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


class CreateTenant(Body):
    name: str = Field(min_length=1, max_length=63)
    quotas: Quotas = Quotas.model_validate({})


class PatchTenant(Body):
    name: str | None = Field(None, min_length=1, max_length=63)
    quotas: Quotas = Quotas.model_validate({})
