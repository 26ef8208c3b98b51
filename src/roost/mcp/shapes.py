"""What the tools answer with; the fields' descriptions are for the model."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from roost import AsyncMachine


def _about(text: str) -> Any:
    return Field(description=text)


class Machine(BaseModel):
    machine_id: str
    key: Annotated[str | None, _about("Its name among yours, as it was made with")]
    name: str | None
    phase: Annotated[str, _about("running, sleeping, destroyed, failed, ...")]
    tier: Annotated[str | None, _about("How it sleeps: frozen, hibernated, stopped")]
    template: str
    vcpu: float
    memory_mib: int
    storage_gib: int
    isolation: Annotated[str, _about("What keeps it apart from the host")]
    created_at: str | None
    expires_at: Annotated[str | None, _about("When it is destroyed by itself")]

    @classmethod
    def of(cls, machine: AsyncMachine) -> Machine:
        record = machine.to_json()
        return cls(
            machine_id=machine.id,
            key=machine.key,
            name=machine.name,
            phase=machine.phase,
            tier=machine.tier,
            template=machine.template,
            vcpu=machine.vcpu,
            memory_mib=machine.memory_mib,
            storage_gib=machine.storage_gib,
            isolation=str(machine.isolation.get("claim") or machine.isolation.get("driver")),
            created_at=record.get("created_at"),
            expires_at=record.get("expires_at"),
        )


class Machines(BaseModel):
    machines: list[Machine]
    more: Annotated[bool, _about("There are more than these: ask for a larger limit")]


class Snapshot(BaseModel):
    snapshot_id: str
    name: str | None
    machine_id: str
    memory: Annotated[bool, _about("With its processes; false: the disk alone")]
    size_bytes: int | None


class Gone(BaseModel):
    machine_id: str
    phase: str


class Output(BaseModel):
    execution_id: str
    status: Annotated[str, _about("running, succeeded, failed, cancelled, expired (out of time)")]
    exit_code: Annotated[int | None, _about("128 + n where signal n ended it; null: it runs")]
    stdout: str
    stderr: str
    stdout_left_out: Annotated[int, _about("Bytes in the middle that are not shown")] = 0
    stderr_left_out: Annotated[int, _about("Bytes in the middle that are not shown")] = 0
    duration_ms: int | None = None
    hint: Annotated[str | None, _about("What to do about it")] = None


class Text(BaseModel):
    path: str
    content: Annotated[str, _about("The lines, each with its number")]
    first_line: int
    last_line: int
    next_line: Annotated[int | None, _about("Go on from here; null: it ended")]


class Picture(BaseModel):
    path: str | None = None
    format: str
    bytes: int
    width: Annotated[int | None, _about("Points are in these pixels")] = None
    height: int | None = None


class Written(BaseModel):
    path: str
    bytes: int


class Edited(BaseModel):
    path: str
    replaced: Annotated[int, _about("How often")]
    around: Annotated[str, _about("The first place as it is now, with line numbers")]


class Entry(BaseModel):
    path: str
    kind: Annotated[str, _about("file, directory, symlink, other")]
    size: int
    mode: Annotated[str, _about("Octal")]
    modified: str


class Entries(BaseModel):
    path: str
    entries: list[Entry]
    more: Annotated[
        bool, _about("There are more than these: list below, or ask for a larger limit")
    ]


class Port(BaseModel):
    port: int
    visibility: str
    url: Annotated[str, _about("For who has a key; everybody where it is public")]
    link: Annotated[str | None, _about("Opens it in a browser, for whoever has it")]
    link_expires_at: str | None


class Tried(BaseModel):
    host: str
    port: int
    protocol: str
    allowed: bool
    reason: Annotated[str, _about("Why it was refused")]
    count: int


class Egress(BaseModel):
    mode: Annotated[str, _about("open, allowlist, off")]
    allow: list[str]
    observe: bool
    tried: Annotated[list[Tried], _about("Newest first")]
    more: int
    suggested: Annotated[list[str], _about("What would have let the refused through")]


class Done(BaseModel):
    machine_id: str
    done: str


class Page(BaseModel):
    url: str
    title: str
    status: int | None = None
    text: Annotated[str, _about("What a reader sees")]
    left_out: Annotated[int, _about("Characters at the end that are not shown")] = 0
