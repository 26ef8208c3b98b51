"""The states of a machine and what leads from one to the next; decides, does nothing.

    accepted --Placing--> placement_pending --Starting--> starting --Running--> running
        |                        |                           |                  |    ^
        | Failed                 | Failed                    | Failed           |    |
        v                        v                           v           SleepAsked  Running
    failed <---------------------+---------------------------+                  |    |
      |  ^ <---- Failed: running (crashed, oom), stopping,                      v    |
      |  |               waking, destroying (stuck)                        stopping  |
      |  |                                                                      |    |
      |  +-- (retryable) WakeAsked ----------------------------> waking --------|----+
      |                                                          |  ^         Slept
      |                              WakeUndone (nothing lost)   v  | WakeAsked v
      |                                                        sleeping <-------+
      |   running --WentDown--> sleeping                         |
      |   failed (stuck on its way to sleep) --Slept--> sleeping |
      |                                                          |
      |   sleeping has a tier: frozen (memory resident, its      |
      |   processes stand still), hibernated (memory on the      |
      |   disk), stopped (the disk alone). SleepAsked leads      |
      |   from a tier to a lower one:                            |
      |     sleeping (frozen) --SleepAsked(lower)--> stopping    |
      |     sleeping (frozen) --WentDown--> sleeping (stopped)   |
      |     stopping (frozen), or stuck there                    |
      |                   --SleepUndone--> running               |
      |     stuck on its way from frozen                         |
      |                   --WakeUndone--> sleeping (frozen)      |
      |                                                          |
      +--DestroyAsked--> destroying <--DestroyAsked-- any other -+
                             |
                             +--Destroyed--> destroyed

``desired`` is what the owner wants (running, sleeping, destroyed), ``phase`` what is. A machine whose phase holds
resources (``HOLDING``) counts against the host's memory and CPU; one that is frozen against its memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from roost.errors import ConflictError


class Phase(StrEnum):
    ACCEPTED = "accepted"
    PLACEMENT_PENDING = "placement_pending"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    SLEEPING = "sleeping"
    WAKING = "waking"
    DESTROYING = "destroying"
    DESTROYED = "destroyed"
    FAILED = "failed"


class Desired(StrEnum):
    RUNNING = "running"
    SLEEPING = "sleeping"
    DESTROYED = "destroyed"


class Tier(StrEnum):
    """How a machine sleeps, the lightest first."""

    FROZEN = "frozen"
    HIBERNATED = "hibernated"
    STOPPED = "stopped"


HOLDING = frozenset(
    {
        Phase.ACCEPTED,
        Phase.PLACEMENT_PENDING,
        Phase.STARTING,
        Phase.RUNNING,
        Phase.STOPPING,
        Phase.WAKING,
    }
)


@dataclass(frozen=True, slots=True)
class State:
    phase: Phase
    desired: Desired
    reason: str | None = None
    retryable: bool = False
    tier: Tier | None = None  # of one that sleeps, or is on its way to

    @property
    def frozen(self) -> bool:
        return self.phase is Phase.SLEEPING and self.tier is Tier.FROZEN


# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Placing:
    """A slot and a disk are being made."""


@dataclass(frozen=True, slots=True)
class Starting:
    """They are there; the driver starts it."""


@dataclass(frozen=True, slots=True)
class Running:
    """Its agent answered."""


@dataclass(frozen=True, slots=True)
class SleepAsked:
    tier: Tier


@dataclass(frozen=True, slots=True)
class SleepUndone:
    """It could not be frozen and runs on."""


@dataclass(frozen=True, slots=True)
class RollbackAsked:
    """Its processes go, and it sleeps on the disk of a snapshot."""


@dataclass(frozen=True, slots=True)
class Slept:
    tier: Tier


@dataclass(frozen=True, slots=True)
class WakeAsked:
    pass


@dataclass(frozen=True, slots=True)
class WakeUndone:
    """The wake did not happen and left nothing behind: it sleeps as before."""

    reason: str
    tier: Tier


@dataclass(frozen=True, slots=True)
class WentDown:
    """Its processes ended, and nothing is wrong: with the host, or because it shut itself down."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    reason: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class DestroyAsked:
    pass


@dataclass(frozen=True, slots=True)
class Destroyed:
    pass


Event = (
    Placing
    | Starting
    | Running
    | SleepAsked
    | SleepUndone
    | RollbackAsked
    | Slept
    | WakeAsked
    | WakeUndone
    | WentDown
    | Failed
    | DestroyAsked
    | Destroyed
)


# --- commands -------------------------------------------------------------------------------------


class Command(StrEnum):
    """What the engine is to do once the new state is durable."""

    RUN_WAKE = "wake"
    RUN_THAW = "thaw"
    RUN_FREEZE = "freeze"
    RUN_SLEEP = "sleep"
    RUN_ROLLBACK = "rollback"
    RUN_DESTROY = "destroy"
    RUN_REAP = "reap"  # take down what a machine that died left on the host
    WATCH = "watch"  # list it as live, wait for its process
    UNWATCH = "unwatch"  # it is not live any more; one that is frozen is watched on


def initial() -> State:
    return State(Phase.ACCEPTED, Desired.RUNNING)


def step(state: State, event: Event) -> tuple[State, tuple[Command, ...]]:
    """The state after ``event`` and what to do. Asking for what is so already changes nothing and answers
    no command. Raises ConflictError INVALID_STATE, saying what is possible, for what cannot be."""
    phase = state.phase
    match event:
        case Placing() if phase is Phase.ACCEPTED:
            return _to(state, Phase.PLACEMENT_PENDING), ()
        case Starting() if phase is Phase.PLACEMENT_PENDING:
            return _to(state, Phase.STARTING), ()
        case Running() if phase in (Phase.STARTING, Phase.WAKING):
            return _to(state, Phase.RUNNING, Desired.RUNNING), (Command.WATCH,)
        case SleepAsked(tier) if phase is Phase.RUNNING or _lighter(state, tier):
            new = _to(state, Phase.STOPPING, Desired.SLEEPING, tier=tier)
            run = Command.RUN_FREEZE if tier is Tier.FROZEN else Command.RUN_SLEEP
            return new, (Command.UNWATCH, run)
        case SleepAsked() if phase is Phase.SLEEPING:
            return replace(state, desired=Desired.SLEEPING), ()
        case SleepUndone() if (phase is Phase.STOPPING and state.tier is Tier.FROZEN) or _stuck(
            state, Desired.SLEEPING
        ):
            return _to(state, Phase.RUNNING, Desired.RUNNING), (Command.WATCH,)
        case RollbackAsked() if phase in (Phase.RUNNING, Phase.SLEEPING) or restartable(state):
            new = _to(state, Phase.STOPPING, Desired.SLEEPING)
            return new, (Command.UNWATCH, Command.RUN_ROLLBACK)
        case Slept(tier) if phase is Phase.STOPPING or _stuck(state, Desired.SLEEPING):
            return _to(state, Phase.SLEEPING, tier=tier), ()
        case WakeAsked() if phase is Phase.RUNNING:
            return state, ()
        case WakeAsked() if state.frozen:
            return _to(state, Phase.WAKING, Desired.RUNNING), (Command.RUN_THAW,)
        case WakeAsked() if phase is Phase.SLEEPING or restartable(state):
            return _to(state, Phase.WAKING, Desired.RUNNING), (Command.RUN_WAKE,)
        case WakeUndone(reason, tier) if phase is Phase.WAKING or (
            tier is Tier.FROZEN and _stuck(state, Desired.RUNNING)
        ):
            return _to(state, Phase.SLEEPING, Desired.SLEEPING, reason, tier), ()
        case WentDown(reason) if phase is Phase.RUNNING or state.frozen:
            new = _to(state, Phase.SLEEPING, reason=reason, tier=Tier.STOPPED)
            return new, (Command.UNWATCH, Command.RUN_REAP)
        case Failed(reason, retryable) if phase is Phase.RUNNING:
            new = State(Phase.FAILED, state.desired, reason, retryable)
            return new, (Command.UNWATCH, Command.RUN_REAP)
        case Failed(reason, retryable) if phase not in (Phase.SLEEPING, Phase.DESTROYED):
            return State(Phase.FAILED, state.desired, reason, retryable), ()
        case DestroyAsked() if phase in (Phase.DESTROYING, Phase.DESTROYED):
            return state, ()
        case DestroyAsked():
            new = _to(state, Phase.DESTROYING, Desired.DESTROYED)
            return new, (Command.UNWATCH, Command.RUN_DESTROY)
        case Destroyed() if phase is Phase.DESTROYING:
            return _to(state, Phase.DESTROYED), ()
        case _:
            raise illegal(state, event)


def restartable(state: State) -> bool:
    """Failed, but not on its way out: a destroy is never taken back."""
    return (
        state.phase is Phase.FAILED and state.retryable and state.desired is not Desired.DESTROYED
    )


def illegal(state: State, event: Event | str) -> ConflictError:
    """``event``, or a verb of what was asked that leads to no event."""
    kind = type(event)
    name = event if isinstance(event, str) else _NAMES.get(kind, kind.__name__)
    why = f" ({state.reason})" if state.reason else ""
    return ConflictError(
        f"The machine is {state.phase.value}{why}: it cannot {name} now. {_possible(state)}",
        details={"phase": state.phase.value, "desired_state": state.desired.value},
    )


def _stuck(state: State, desired: Desired) -> bool:
    return state.phase is Phase.FAILED and not state.retryable and state.desired is desired


def _lighter(state: State, tier: Tier) -> bool:
    """Whether it is frozen and ``tier`` is more than that."""
    return state.frozen and tier is not Tier.FROZEN


def _to(
    state: State,
    phase: Phase,
    desired: Desired | None = None,
    reason: str | None = None,
    tier: Tier | None = None,
) -> State:
    return State(phase, desired or state.desired, reason, False, tier)


_NAMES = {SleepAsked: "sleep", WakeAsked: "wake", RollbackAsked: "be rolled back"}


def _possible(state: State) -> str:
    match state.phase:
        case Phase.DESTROYED:
            return "Create another."
        case Phase.DESTROYING:
            return "Wait until it is destroyed, then create another."
        case Phase.FAILED if restartable(state):
            return "Wake it to start it again from its disk, or delete it."
        case Phase.FAILED:
            return "Delete it."
        case Phase.SLEEPING:
            return "Wake it, or delete it."
        case Phase.RUNNING:
            return "Use it, let it sleep, or delete it."
        case _:
            return "Wait until it runs, or delete it."
