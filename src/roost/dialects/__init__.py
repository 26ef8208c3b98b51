"""Foreign APIs served on top of ours: each translates and calls the same services as the native API.

A key's prefix chooses: one secret, written ``e2b_...`` or ``pds_...``, speaks to one dialect or another.
"""

from __future__ import annotations

from roost.api.v1.services import Services
from roost.dialects import dedalus, pandastack
from roost.gateway.dispatch import Target

__all__ = ["targets"]


def targets(services: Services) -> list[Target]:
    """Those that HTTP reaches, to stand before the native one."""
    return [*dedalus.targets(services), *pandastack.targets(services)]
