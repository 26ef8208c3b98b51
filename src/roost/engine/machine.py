"""A machine as the database has it at one revision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

from roost.drivers.interface import Capabilities, ForkKind, Handle, Isolation, Size
from roost.engine.lifecycle import Desired, Phase, State


@dataclass(frozen=True, slots=True)
class Machine:
    id: str
    tenant_id: str
    node_id: str
    key: str | None
    name: str | None
    labels: Mapping[str, str]
    template_id: str
    template: str
    image_digest: str
    driver: str
    capabilities: (
        Capabilities  # of its driver when it last started: the isolation record is made of them
    )
    vcpu: float
    memory_mib: int
    storage_gib: int
    env: Mapping[str, str]
    autosleep_seconds: int | None  # None: never
    ttl_seconds: int | None
    expires_at: datetime | None
    desired_state: str
    phase: str
    reason: str | None
    retryable: bool
    last_error: Mapping[str, Any] | None
    revision: int
    generation: int
    created_at: datetime
    last_transition_at: datetime
    last_progress_at: datetime
    last_activity_at: datetime | None
    disk_ready: bool
    slot_index: int | None
    handle: Handle | None

    @property
    def hostname(self) -> str:
        return self.name or self.id

    @property
    def memory_kept(self) -> bool:
        """Whether sleep keeps memory. No rung does yet: sleep ends the processes and keeps the disk."""
        return False

    @property
    def isolation(self) -> dict[str, Any]:
        """The record users see; it claims what the capabilities say and no more."""
        c = self.capabilities
        return {
            "level": c.level,
            "name": c.isolation.value,
            "driver": self.driver,
            "boundary": c.boundary,
            "accelerated": c.accelerated,
            "claim": c.claim,
        }

    @property
    def size(self) -> Size:
        return Size(self.vcpu, self.memory_mib, self.storage_gib)

    @property
    def state(self) -> State:
        return State(Phase(self.phase), Desired(self.desired_state), self.reason, self.retryable)

    @staticmethod
    def from_row(row: Mapping[Any, Any]) -> Machine:
        values = {name: row[name] for name in _PLAIN}
        handle = row["handle"]
        return Machine(
            **values,
            capabilities=capabilities_from_json(row["capabilities"]),
            handle=None if handle is None else Handle.from_json(handle),
        )


_PLAIN = [f.name for f in fields(Machine) if f.name not in ("capabilities", "handle")]
_CAPABILITIES = {f.name for f in fields(Capabilities)}


def capabilities_to_json(capabilities: Capabilities) -> dict[str, Any]:
    return {
        k: v.value if isinstance(v, Isolation | ForkKind) else v
        for k, v in asdict(capabilities).items()
    }


def capabilities_from_json(data: Mapping[str, Any]) -> Capabilities:
    known = {k: v for k, v in data.items() if k in _CAPABILITIES}
    known["isolation"] = Isolation(data["isolation"])
    known["fork"] = ForkKind(data["fork"])
    return Capabilities(**known)
