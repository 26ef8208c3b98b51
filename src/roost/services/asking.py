"""What a call may do besides what it asks for: a property of who asks, true for all that runs on its behalf.

A key that may only read reads a machine that runs; to wake one would change it. The gateway says so once
(``only_reads``), in the context of the request, and the one place that wakes machines for others looks
(``Machines.awake``). What the daemon does by itself may wake. Whose key it is comes along in the same way, for what
waits until somebody approves of it.
"""

from __future__ import annotations

from contextvars import ContextVar

from roost.errors import ForbiddenError

_may_wake: ContextVar[bool] = ContextVar("may_wake", default=True)
_key_id: ContextVar[str | None] = ContextVar("key_id", default=None)


def by(key_id: str) -> None:
    """From here on, in this request: whose it is."""
    _key_id.set(key_id)


def key_id() -> str | None:
    """Of who asks; None: nobody with a key."""
    return _key_id.get()


def only_reads() -> None:
    """From here on, in this request: no machine is woken for it."""
    _may_wake.set(False)


def may_change() -> bool:
    """Whether who asks may change machines."""
    return _may_wake.get()


def check_wake(phase: str) -> None:
    """Raises FORBIDDEN."""
    if phase != "running" and not _may_wake.get():
        raise ForbiddenError(
            f"The machine is {phase}, and this key may only read: wake it with a key that may change machines.",
            details={"phase": phase},
        )
