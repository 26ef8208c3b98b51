"""What PandaStack's clients send. Fields nobody here knows are let through: newer clients send more."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Metadata = dict[str, str]
Seconds = Annotated[float, Field(gt=0, le=604_800)]


class Body(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Mount(Body):
    name: Annotated[str, Field(min_length=1, max_length=128)]
    read_only: bool | None = None
    mount: Annotated[str, Field(max_length=1024)] | None = (
        None  # said by no client, known to their documentation
    )


class Create(Body):
    """``cpu`` and ``memory_mb`` are ignored, as there: the template has them."""

    template: Annotated[str, Field(min_length=1, max_length=200)] = "code-interpreter"
    metadata: Metadata | None = None
    ttl_seconds: Annotated[int, Field(ge=0)] | None = None
    persistent: bool = False
    from_snapshot: Annotated[str, Field(max_length=64)] | None = None
    volumes: Annotated[list[Mount], Field(max_length=16)] | None = None


class Exec(Body):
    cmd: Annotated[str, Field(min_length=1, max_length=1 << 20)]
    timeout_seconds: Seconds | None = None


class Fork(Body):
    metadata: Metadata | None = None
    count: int = 1


class ForkTree(Fork):
    count: int = 2


class Promote(Body):
    cleanup_siblings: bool = False
    tree_id: Annotated[str, Field(max_length=64)] | None = None


class Lifecycle(Body):
    ttl_seconds: Annotated[int, Field(ge=0)] | None = None
    persistent: bool | None = None
    idle_seconds: Annotated[int, Field(ge=0)] | None = None


class Port(Body):
    port: Annotated[int, Field(ge=1, le=65535)]
    label: Annotated[str, Field(max_length=256)] = "service"


class Session(Body):
    language: Annotated[str, Field(max_length=32)] = "python"


class Run(Body):
    code: str
    timeout_ms: Annotated[int, Field(ge=1, le=86_400_000)] | None = None


class Token(Body):
    label: Annotated[str, Field(max_length=63)] | None = None
    name: Annotated[str, Field(max_length=63)] | None = None
    expires_in_days: Annotated[int, Field(ge=1, le=3650)] | None = None


class Volume(Body):
    name: Annotated[str, Field(min_length=1, max_length=128)]
    size_mb: Annotated[int, Field(ge=1, le=65_536)] = 256
