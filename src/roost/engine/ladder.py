"""Which rungs somebody's machines may stand on, and which ``auto`` takes first. Pure.

    indie     every rung that is offered; ``auto``: a microVM that need not emulate its CPU, else a container
    managed   tenants' machines stand on rungs 2 and 3; ``auto``: a container, a microVM where it is asked for

A tenant can be held to more than the profile asks (``tenants.isolation``), never to less. The operator's own tenant is
held to nothing by the profile. ``auto`` takes rungs 0 and 1 only where there is nothing better.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from roost.drivers.interface import LEVELS, Capabilities, Isolation
from roost.errors import ForbiddenError

SANDBOX = LEVELS[
    Isolation.CONTAINER
]  # from this level on something stands between machine and host


class Profile(StrEnum):
    INDIE = "indie"
    MANAGED = "managed"


@dataclass(frozen=True, slots=True)
class Least:
    """The lowest level a machine may stand on, and who says so."""

    level: int = 0
    why: str = ""


def least(
    profile: Profile, is_operators: bool, required: str | None, unrestricted: bool = False
) -> Least:
    """Of a tenant's machines. ``required``: an isolation that it is held to; None: nothing of its own.
    ``unrestricted``: those without our guardrails inside, the operator's too."""
    found = Least()
    if profile is Profile.MANAGED and unrestricted:
        found = Least(SANDBOX, "this host's profile is managed: unrestricted is for rungs 2 and 3")
    elif profile is Profile.MANAGED and not is_operators:
        found = Least(
            SANDBOX, "this host's profile is managed: rungs 0 and 1 are the operator's own"
        )
    if required is not None and LEVELS[Isolation(required)] > found.level:
        return Least(LEVELS[Isolation(required)], f"its tenant is held to {required}")
    return found


def check(least: Least, isolation: Isolation, what: str, remedy: str) -> None:
    """``what``: the machine or driver, as the beginning of a sentence. Raises RUNG_REFUSED."""
    if LEVELS[isolation] >= least.level:
        return
    needed = next(name for name, level in LEVELS.items() if level >= least.level)
    raise ForbiddenError(
        f"{what} is of isolation {isolation.value}, which is refused here: {least.why}. {remedy}",
        code="RUNG_REFUSED",
        details={"isolation": isolation.value, "least": needed.value},
    )


def preference(profile: Profile, capabilities: Capabilities | None) -> tuple[int, bool, bool]:
    """For ``auto``, the smallest first; among equals the order of the offer counts."""
    if capabilities is None:
        return (0, False, False)
    level = capabilities.level
    set_apart = profile is Profile.MANAGED and level > SANDBOX
    return (SANDBOX - min(level, SANDBOX), set_apart, capabilities.accelerated is False)
