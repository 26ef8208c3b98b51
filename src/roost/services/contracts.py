"""The contract of each rung on this host: what it is, can and defends against, and whether who asks may have it."""

from __future__ import annotations

from typing import Any

from roost import claims
from roost.engine.ladder import Least
from roost.engine.rungs import Rungs
from roost.errors import RoostError
from roost.host import doctor


def describe(rungs: Rungs, least: Least, everything: bool) -> dict[str, Any]:
    """After ``Rungs.probe``, the highest rung first. Without ``everything`` nothing is said of the host's own affairs:
    why it lacks a rung, and what would mend that."""
    found = doctor.facts()
    try:
        default, _ = rungs.choose("auto", None, least)
    except RoostError:
        default = None
    return {
        "profile": rungs.profile.value,
        "default_driver": default,
        "least_level": least.level,
        "least_why": least.why or None,
        "rungs": [
            _rung(rungs, each, least, found, everything) for each in reversed(claims.names())
        ],
        "unrestricted": claims.UNRESTRICTED,
        "advice": claims.ADVICE,
    }


def _rung(
    rungs: Rungs, driver: str, least: Least, found: claims.Facts, everything: bool
) -> dict[str, Any]:
    available = driver in rungs.offered and rungs.available(driver)
    facts = {**found, **_facts(rungs, driver)} if available else {}
    contract = claims.contract(driver, facts)
    assert contract is not None
    probe = rungs.probes.get(driver)
    reason = None
    if not available:
        offered = driver in rungs.offered
        reason = (probe.reason if probe else None) if offered else "ROOST_DRIVERS does not offer it"
    return {
        **contract.to_json(),
        "isolation": claims.isolation(driver),
        "available": available,
        "allowed": contract.level >= least.level,
        "reason": reason if everything else None,
        "remedy": probe.remedy if everything and probe and not available else None,
    }


def _facts(rungs: Rungs, driver: str) -> claims.Facts:
    """What the driver's probe found, of one that can be used."""
    capabilities = rungs.capabilities(driver)
    if capabilities is None:
        return {}
    found = {"memory": capabilities.memory_snapshot}
    if capabilities.accelerated is not None and not rungs.drivers[driver].undecided:
        found["kvm"] = capabilities.accelerated
    return found
