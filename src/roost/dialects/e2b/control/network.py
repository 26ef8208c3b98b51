"""E2B's allow and deny lists, as far as an egress policy of ours says the same.

    nothing denied                     the host's default, or open once internet access is asked for
    everything denied, nothing allowed off
    everything denied, some allowed    allowlist
    allow_internet_access false        as everything denied

Single networks cannot be denied, nor are requests changed on their way.
"""

from __future__ import annotations

from typing import Any

from roost.dialects.e2b.control.bodies import Egress, Network
from roost.dialects.serving import not_served
from roost.egress.policy import Mode, Policy

EVERYTHING = "0.0.0.0/0"
_ALL = frozenset({EVERYTHING, "::/0"})


def policy(asked: Egress) -> Policy | None:
    """None: nothing was said of it. Raises UNSUPPORTED, VALIDATION_FAILED."""
    _refuse(asked)
    denied = [each for each in asked.deny_out if each not in _ALL]
    if denied:
        raise not_served(
            f"deny_out of single addresses ({denied[0][:64]})",
            f"Deny everything ({EVERYTHING}) and name in allow_out what may be reached.",
        )
    if asked.deny_out or asked.allow_internet_access is False:
        allowed = [each for each in asked.allow_out if each not in _ALL]
        if len(allowed) < len(asked.allow_out):  # what is allowed counts more than what is denied
            return Policy(Mode.OPEN)
        if not allowed:
            return Policy(Mode.OFF)
        return Policy.read({"mode": "allowlist", "allow": allowed})
    return Policy(Mode.OPEN) if asked.allow_out or asked.allow_internet_access else None


def shape(found: Policy, public: bool) -> dict[str, Any]:
    said: dict[str, Any] = {"allowPublicTraffic": public}
    if found.mode is Mode.OFF:
        return {**said, "denyOut": [EVERYTHING]}
    if found.mode is Mode.ALLOWLIST:
        return {**said, "allowOut": [str(each) for each in found.allow], "denyOut": [EVERYTHING]}
    return said


def internet(found: Policy) -> bool:
    return found.mode is not Mode.OFF


def _refuse(asked: Egress) -> None:
    if asked.rules:
        raise not_served(
            "network rules that change requests",
            "Give the machine a secret: it is put into requests to its hosts only.",
        )
    if asked.egress_proxy:
        raise not_served("an egress proxy")
    if asked.dns_servers:
        raise not_served("DNS servers of a sandbox's own", "Names are looked up by the host.")
    if isinstance(asked, Network):
        if asked.mask_request_host:
            raise not_served("masked request hosts")
        if asked.https_ports:
            raise not_served("ports that serve HTTPS themselves", "Serve HTTP: TLS ends before it.")
