"""What E2B's clients send. Unknown fields are let be: older and newer clients send more or fewer."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Seconds = Annotated[int, Field(ge=0, le=315_360_000)]
Strings = dict[str, str]
TagNames = Annotated[list[str], Field(max_length=100)]


class Asked(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class AutoResume(Asked):
    enabled: bool = False


class VolumeMount(Asked):
    name: str
    path: str


class Egress(Asked):
    """``PUT .../network``; an omitted field is one that is cleared."""

    allow_out: list[str] = []
    deny_out: list[str] = []
    rules: dict[str, list[Any]] | None = None
    egress_proxy: dict[str, Any] | None = None
    dns_servers: list[str] | None = None
    allow_internet_access: bool | None = Field(None, alias="allow_internet_access")


class Network(Egress):
    allow_public_traffic: bool | None = None
    mask_request_host: str | None = None
    https_ports: list[int] | None = None


class NewSandbox(Asked):
    template_id: str = Field(alias="templateID")
    timeout: Seconds | None = None
    auto_pause: bool = False
    auto_pause_memory: bool = True
    auto_resume: AutoResume | None = None
    allow_internet_access: bool | None = Field(None, alias="allow_internet_access")
    network: Network | None = None
    metadata: Strings | None = None
    env_vars: Strings | None = None
    mcp: dict[str, Any] | None = None
    iam: dict[str, Any] | None = None
    volume_mounts: list[VolumeMount] = []


class Connect(Asked):
    timeout: Seconds | None = None
    memory: bool = True


class Resume(Asked):
    timeout: Seconds | None = None
    auto_pause: bool | None = None


class Timeout(Asked):
    timeout: Seconds


class Refresh(Asked):
    duration: Seconds | None = None


class Pause(Asked):
    memory: bool = True
    require_healthy_guest: bool = False


class Fork(Asked):
    timeout: Seconds | None = None
    count: Annotated[int, Field(ge=1, le=100)] = 1


class NewSnapshot(Asked):
    name: str | None = None
    memory: bool = True


class NewTemplate(Asked):
    name: str | None = None
    alias: str | None = None
    tags: TagNames = []
    cpu_count: float | None = None
    memory_mb: int | None = Field(None, alias="memoryMB")
    min_free_disk_mb: int | None = None


class Step(Asked):
    type: str
    args: list[str] = []
    files_hash: str | None = None
    force: bool = False


class StartBuild(Asked):
    from_image: str | None = None
    from_template: str | None = None
    from_image_registry: dict[str, Any] | None = None
    force: bool = False
    steps: Annotated[list[Step], Field(max_length=1000)] = []
    start_cmd: str | None = None
    ready_cmd: str | None = None


class Tags(Asked):
    """``target`` where tags are given, ``name`` where they are taken."""

    target: str = ""
    name: str = ""
    tags: TagNames = []


class NewVolume(Asked):
    name: str


class Attributes(Asked):
    uid: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    gid: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    mode: Annotated[int, Field(ge=0, le=0o7777)] | None = None
