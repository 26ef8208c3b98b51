"""What each role may ask for: a pure rule, before any app is called.

    admin      everything                      machine    GET and HEAD of its own machine's status
    tenant     all but what is the admin's     preview    nothing here: it is for the preview proxy
    runner     what happens inside machines, and waking them; of the rest what read_only may: no approval, no policy
    read_only  GET and HEAD of what is a tenant's; and no machine is woken for it (``services.asking``)

What is refused is refused by the form of the request alone, so it says nothing of what there is; whose a machine
is, is the services' question, and a foreign one answers as a missing one.
"""

from __future__ import annotations

from roost.errors import ForbiddenError, RoostError, discreet
from roost.gateway.dispatch import Target
from roost.services import asking
from roost.services.models import Principal, Role

READS = frozenset({"GET", "HEAD"})


def check(who: Principal, method: str, path: str, target: Target | None) -> None:
    """``method`` WEBSOCKET is one that changes: what is said on it does. Raises FORBIDDEN."""
    asking.by(who.key_id)
    if who.role is Role.ADMIN:
        return
    if who.role is Role.PREVIEW:
        raise ForbiddenError("A preview token opens a preview, and nothing of the API.")
    if who.role is Role.MACHINE:
        own = target.own(path) if target is not None else None
        if method not in READS or own is None or own != who.machine_id:
            raise ForbiddenError(
                "A machine token reads its machine's own status, and nothing else."
            )
    if target is not None and target.admin(method, path):
        raise ForbiddenError("Only an admin may do this.")
    if who.role is Role.RUNNER and not (target is not None and target.inside(path)):
        if method not in READS:
            raise ForbiddenError("This key uses the machines there are, and changes nothing else.")
        asking.only_reads()  # dialects tell who may change a thing what to change it with
    if who.role in (Role.READ_ONLY, Role.MACHINE):
        if method not in READS:
            raise ForbiddenError("This key may only read.")
        asking.only_reads()


def told(failure: RoostError, who: Principal | None) -> RoostError:
    """What the caller hears of a failure."""
    return failure if who is not None and who.role is Role.ADMIN else discreet(failure)
