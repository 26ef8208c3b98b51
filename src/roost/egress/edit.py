"""A policy from another and what is to be different. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from roost.egress.policy import WEB_PORTS, Entry, Mode, Policy
from roost.errors import InvalidRequestError


def edited(
    policy: Policy,
    *,
    mode: str | None = None,
    allow: Sequence[str] | None = None,
    observe: bool | None = None,
    add: Sequence[str] = (),
    remove: Sequence[str] = (),
) -> Policy:
    """``allow`` replaces the list, ``remove`` is taken from it, ``add`` put to it; what is None stays. Another mode
    than allowlist has no list. Afterwards nothing of ``remove`` is allowed: where another entry still covers it that
    is an error, not a surprise. Raises VALIDATION_FAILED."""
    chosen = policy.mode.value if mode is None else mode
    named = bool(allow) or bool(add)
    if named and chosen != Mode.ALLOWLIST:
        raise InvalidRequestError(
            f"The mode is {chosen[:40]}, which has no list: set the mode allowlist as well.",
            details={"field": "egress.mode"},
        )
    gone = [Entry.parse(each) for each in remove]
    kept: list[str] = []
    if chosen == Mode.ALLOWLIST:
        listed = map(str, policy.allow) if allow is None else allow
        left = [each for each in map(Entry.parse, listed) if each not in gone]
        kept = [str(each) for each in left] + list(add)
    made = Policy.read(
        {
            "mode": chosen,
            "allow": kept,
            "observe": policy.observe if observe is None else observe,
        }
    )
    for entry in gone:
        _check_gone(made, entry)
    return made


def _check_gone(policy: Policy, entry: Entry) -> None:
    if policy.mode is Mode.OFF:
        return
    if policy.mode is Mode.OPEN:
        raise InvalidRequestError(
            "The mode is open: everything is allowed. Set the mode allowlist to take something out.",
            details={"field": "egress.mode"},
        )
    for other in policy.allow:
        if overlap(other, entry):
            raise InvalidRequestError(
                f"{entry} would still be allowed by {other}: remove that as well.",
                details={"field": "egress.remove", "entry": str(entry), "allowed_by": str(other)},
            )


def overlap(one: Entry, other: Entry) -> bool:
    """Whether something is allowed by both."""
    if one.network is not None and other.network is not None:
        protocols = one.protocol is None or other.protocol in (None, one.protocol)
        ports = not one.ports or not other.ports or bool(set(one.ports) & set(other.ports))
        return protocols and ports and one.network.overlaps(other.network)
    if one.name is None or other.name is None:
        return False
    if not set(one.ports or WEB_PORTS) & set(other.ports or WEB_PORTS):
        return False
    return _below(one.name, other.name) or _below(other.name, one.name)


def _below(name: str, pattern: str) -> bool:
    """Whether every name of the first is one of the second."""
    if not pattern.startswith("*."):
        return name == pattern
    return name.endswith(pattern[1:]) and name != pattern[2:]
