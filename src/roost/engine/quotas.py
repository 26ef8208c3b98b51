"""What a tenant may have: a pure rule, and the question of it inside the transaction that reserves.

    machines        not destroyed                 awake_machines   that hold memory and CPU (``HOLDING``)
    storage_gib     of all of them, asleep too,   vcpu, memory_mib promised to those awake
                    of snapshots kept and volumes

A quota that a tenant does not have is no limit. The daemon's own tenants (the local admin's, and nobody's) have
none. ``Quotas`` is what a tenant's row holds; what it says of requests is ``services.rates``'.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa

from roost.engine.lifecycle import HOLDING
from roost.errors import AuthError, LimitError
from roost.store import tenants

Quotas = Mapping[str, Any]

_ADVICE = {
    "machines": "Delete one, then retry.",
    "awake_machines": "Let one sleep or delete one, then retry.",
    "vcpu": "Let a machine sleep or delete one, then retry.",
    "memory_mib": "Let a machine sleep or delete one, then retry.",
    "storage_gib": "Delete a machine, a snapshot or a volume, then retry.",
}


def admit(quotas: Quotas, used: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raises QUOTA_EXCEEDED with the numbers; what is not asked for is not looked at."""
    for name, more in asked.items():
        limit = quotas.get(name)
        if limit is None or more <= 0 or used[name] + more <= limit + 1e-9:
            continue
        raise exceeded(name, limit, used[name], more, _ADVICE[name])


def exceeded(name: str, limit: Any, used: Any, asked: Any, advice: str, **more: Any) -> LimitError:
    return LimitError(
        f"Your quota of {name} is {limit:g}: {used:g} are used and {asked:g} more were asked. {advice}",
        code="QUOTA_EXCEEDED",
        details={"quota": name, "limit": limit, "used": used, "asked": asked, **more},
    )


def check(
    connection: sa.Connection,
    tenant: str,
    asked: Mapping[str, Any],
    *,
    without: str | None = None,
    awake: Collection[str] = HOLDING,
) -> None:
    """``without``: a machine that is counted in ``asked``. In the transaction that then writes what was asked for:
    nobody comes between. Raises QUOTA_EXCEEDED; AUTH_INVALID for a tenant that was deleted meanwhile."""
    quotas = tenants.quotas(connection, tenant)
    if quotas is None:
        raise AuthError("This key is not known here, or was revoked.")
    if any(quotas.get(name) is not None for name in asked):
        admit(quotas, tenants.used(connection, tenant, awake, without), asked)


def of_start(values: Mapping[str, Any], count: int = 1) -> dict[str, Any]:
    """What so many machines of this size take when they are awake."""
    return {
        "awake_machines": count,
        "vcpu": values["vcpu"] * count,
        "memory_mib": values["memory_mib"] * count,
    }


def of_machine(values: Mapping[str, Any], count: int = 1) -> dict[str, Any]:
    """What so many new machines take."""
    return {
        "machines": count,
        "storage_gib": values["storage_gib"] * count,
        **of_start(values, count),
    }
