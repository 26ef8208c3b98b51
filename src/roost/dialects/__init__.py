"""Foreign APIs served on top of ours: each translates and calls the same services as the native API.

A key's prefix chooses: one secret, written ``e2b_...`` or ``pds_...``, speaks to one dialect or another.
"""

from __future__ import annotations

import grpc

from roost.api.v1.services import Services
from roost.dialects import boxd, dedalus, pandastack
from roost.dialects.e2b import app as e2b_app
from roost.gateway.calls import Calls
from roost.gateway.dispatch import Target
from roost.preview.plane import Plane

__all__ = ["handlers", "previews", "targets"]


def targets(services: Services) -> list[Target]:
    """Those that HTTP reaches, to stand before the native one."""
    return [
        *dedalus.targets(services),
        *pandastack.targets(services),
        boxd.target(services.exchange),
        *e2b_app.targets(
            services
        ),  # last: some of its paths are plain words, and come without a key
    ]


def previews(plane: Plane) -> None:
    """What dialects have to say at the hosts of previews."""
    e2b_app.previews(plane)


def handlers(services: Services, guard: Calls) -> dict[str, grpc.GenericRpcHandler]:
    """Those that gRPC reaches, by service."""
    return {boxd.SERVICE: boxd.handler(services, guard)}
