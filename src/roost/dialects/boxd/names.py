"""Names here and there. Pure, but for the dice of ``invented``.

machine     its name is its key (and its name) here
route       the machine's own: a port named as the machine; others: <route>-<machine>
snapshot    golden is golden, then golden--2, golden--3: every version another row, the newest counts
checkpoint  <machine id>-cp-<name>: a snapshot nobody else's name can be
"""

from __future__ import annotations

import re
import secrets

from roost.engine.machine import Machine
from roost.errors import InvalidRequestError

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", re.ASCII)
_VERSION = re.compile(r"(.+?)--([1-9]\d{0,8})", re.ASCII)
_CHECKPOINT = re.compile(r"([a-z2-7]{26})-cp-(.+)", re.ASCII)
LONGEST = 63
_HOW = (
    "able", "brave", "calm", "clear", "crisp", "eager", "fair", "fleet", "glad", "keen", "kind", "light",
    "lucid", "merry", "neat", "noble", "quick", "quiet", "sharp", "sunny", "swift", "warm", "wise"
)  # fmt: skip
_WHO = (
    "auk", "crane", "crow", "dove", "egret", "finch", "hawk", "heron", "ibis", "jay", "kite",
    "lark", "loon", "martin", "owl", "petrel", "plover", "raven", "robin", "rook", "swan", "swift", "tern", "wren"
)  # fmt: skip


def invented() -> str:
    """A name that very likely nobody has."""
    return f"{secrets.choice(_HOW)}-{secrets.choice(_WHO)}-{secrets.token_hex(3)}"


def of_machine(machine: Machine) -> str:
    """Of one that the native API made without a key, its name or id."""
    return machine.key or machine.name or machine.id


# --- routes -------------------------------------------------------------------------------------


def label(machine: Machine) -> str:
    """What its routes are called after."""
    name = of_machine(machine)
    return name if _LABEL.fullmatch(name) and len(name) <= LONGEST else machine.id


def aside(name: str, machine_id: str) -> str:
    """Another name for the same route."""
    return f"{name}--{machine_id[:8]}"


def port_name(machine: str, route: str) -> str:
    """What a machine's route is called as a port. Raises VALIDATION_FAILED."""
    name = f"{route}-{machine}" if route else machine
    if not _LABEL.fullmatch(name) or len(name) > LONGEST:
        raise InvalidRequestError(
            f"name: a route is of [a-z0-9-], and with its machine's name ({name[:80]}) {LONGEST} characters at most.",
            details={"field": "name"},
        )
    return name


def route(machine: str, port: str, machine_id: str) -> str | None:
    """The route a port's name is of this machine: "" its own, None none of these."""
    port = port.removesuffix(f"--{machine_id[:8]}")
    if port == machine:
        return ""
    return port.removesuffix(f"-{machine}") if port.endswith(f"-{machine}") else None


# --- captures -----------------------------------------------------------------------------------


def versioned(name: str, version: int) -> str:
    return name if version == 1 else f"{name}--{version}"


def version(name: str) -> tuple[str, int]:
    """Of a snapshot's own name, what it is called and which version it is."""
    match = _VERSION.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, 1)


def checkpoint(machine_id: str, name: str) -> str:
    """Raises VALIDATION_FAILED."""
    whole = f"{machine_id}-cp-{name}"
    if not _LABEL.fullmatch(name) or len(whole) > LONGEST:
        raise InvalidRequestError(
            f"name: a checkpoint's is of [a-z0-9-] and {LONGEST - 30} characters at most.",
            details={"field": "name"},
        )
    return whole


def of_checkpoint(snapshot: str) -> tuple[str, str] | None:
    """Machine id and name; None of what is no checkpoint."""
    match = _CHECKPOINT.fullmatch(snapshot)
    return (match[1], match[2]) if match else None
