"""A machine as the database has it at one revision."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

from roost.drivers.interface import Capabilities, ForkKind, Handle, Isolation, Size
from roost.egress.policy import Policy
from roost.engine.allowance import NOTHING, Allowance
from roost.engine.lifecycle import Desired, Phase, State, Tier
from roost.engine.mounts import Mount
from roost.engine.tools import OFF, Tools

OPEN = Policy()  # of a row that says nothing


@dataclass(frozen=True, slots=True)
class MemoryImage:
    """Memory a machine's next start can go on from; fits the disk it has (or is about to get) and no other."""

    manifest: Mapping[str, Any]  # the driver's
    token_of: tuple[str, int]  # machine id and generation whose token the agent in it knows
    snapshot_id: str | None = None  # in which it lies; None: the machine's own, of its sleep
    used: bool = (
        False  # a start went on from it: the disk may have moved on, it must not be used again
    )

    def to_json(self) -> dict[str, Any]:
        return {n: getattr(self, n) for n in self.__slots__}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> MemoryImage:
        machine_id, generation = data["token_of"]
        return MemoryImage(**{**data, "token_of": (str(machine_id), int(generation))})


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
    autosleep_seconds: int | None  # of idleness, then it is put to sleep; None: never
    hibernate_after_seconds: int | None  # frozen, then its memory goes to the disk; None: never
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
    tier: str | None
    disk_ready: bool
    slot_index: int | None
    handle: Handle | None
    snapshot_id: str | None = None  # whose disk a fresh one is cloned from; None: the image's
    memory_image: MemoryImage | None = None
    created_by: str | None = None  # the key that made it
    egress: Policy = OPEN  # what it may reach
    parent_id: str | None = None  # the machine it went on from; may be gone by now
    from_snapshot_id: str | None = None  # which snapshot of the parent; None: a fork
    replaces: str | None = None  # the machine whose key, name and ports it took (``promoting``)
    inside: Allowance = NOTHING  # what it may ask of its daemon itself
    volumes: tuple[Mount, ...] = ()  # from its row on until it is destroyed
    expiry: str = "destroy"  # once ``expires_at`` is past: destroy | sleep
    autowake: bool = True  # what needs it wakes it; else only who asks for that
    unrestricted: bool = (
        False  # without our guardrails inside it; the boundary around it is the same
    )
    brings_tree: bool = False  # it was a directory: its next start unpacks what was in it
    tools: Tools = OFF  # what may be run in it without asking
    run_as: str | None = (
        None  # whom commands and terminals run as unless they say; None: the template's
    )

    @property
    def hostname(self) -> str:
        return self.name or self.id

    @property
    def memory_kept(self) -> bool:
        """Whether sleep keeps memory, or ends the processes and keeps the disk alone."""
        return self.capabilities.memory_snapshot

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
        tier = None if self.tier is None else Tier(self.tier)
        phase, desired = Phase(self.phase), Desired(self.desired_state)
        return State(phase, desired, self.reason, self.retryable, tier)

    @property
    def frozen(self) -> bool:
        """Asleep with its memory resident."""
        return self.state.frozen

    @property
    def deepest(self) -> Tier:
        """The sleep that costs least and keeps all that its rung can."""
        return Tier.HIBERNATED if self.memory_kept else Tier.STOPPED

    @property
    def lightest(self) -> Tier:
        """The sleep that is woken from soonest."""
        return Tier.FROZEN if self.capabilities.freeze else self.deepest

    @staticmethod
    def from_row(row: Mapping[Any, Any]) -> Machine:
        values = {name: row[name] for name in _PLAIN}
        handle, memory, egress = row["handle"], row["memory_image"], row["egress"]
        return Machine(
            **values,
            capabilities=capabilities_from_json(row["capabilities"]),
            handle=None if handle is None else Handle.from_json(handle),
            memory_image=None if memory is None else MemoryImage.from_json(memory),
            egress=OPEN if egress is None else _policy(**{**egress, "allow": (*egress["allow"],)}),
            inside=Allowance.from_json(row["inside"]),
            volumes=Mount.all_from_json(row["volumes"]),
            tools=Tools.from_json(row["tools"]),
        )


@functools.lru_cache(maxsize=512)
def _policy(mode: str, allow: tuple[str, ...], observe: bool) -> Policy:
    """Of ``Policy.to_json``. Rows are read far more often than written, and a long list takes milliseconds."""
    return Policy.read({"mode": mode, "allow": allow, "observe": observe})


_MADE = {"capabilities", "handle", "memory_image", "egress", "inside", "volumes", "tools"}
_PLAIN = [f.name for f in fields(Machine) if f.name not in _MADE]
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
