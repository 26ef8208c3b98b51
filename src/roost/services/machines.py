"""Machines: the one door to the life of machines."""

from __future__ import annotations

from collections.abc import Mapping

from roost.engine.engine import Engine
from roost.services.models import (
    CreateMachine,
    Live,
    Machine,
    MachineEvent,
    MachineUsage,
    Page,
    PatchMachine,
)
from roost.services.templates import Templates


class Machines:
    """Every call takes the caller's tenant first; another tenant's machine answers MACHINE_NOT_FOUND.

    Operations go on when their caller goes away. ``if_match`` is the revision the caller saw
    (REVISION_MISMATCH otherwise).
    """

    def __init__(self, engine: Engine, templates: Templates) -> None: ...

    async def create(self, tenant: str, req: CreateMachine, wait: bool = True) -> Machine:
        """A running machine; with ``wait=False`` an accepted one.

        Raises VALIDATION_FAILED, TEMPLATE_NOT_FOUND, INVALID_STATE (template not built), RUNG_UNAVAILABLE,
        ALREADY_EXISTS (the key; details.machine_id), QUOTA_EXCEEDED, CAPACITY_EXCEEDED, STORAGE_FULL: nothing
        was made. MACHINE_FAILED (details.machine_id): the machine exists as ``failed``.
        """
        raise NotImplementedError

    async def ensure(self, tenant: str, key: str, req: CreateMachine) -> tuple[Machine, bool]:
        """The running machine of this key, and whether this call made it. However many ask, one is made.

        A sleeping machine is woken, a failed one started again, a destroyed one replaced. ``req`` counts
        only where one is made; its own ``key`` is ignored.
        """
        raise NotImplementedError

    async def get(self, tenant: str, machine_id: str) -> Machine:
        raise NotImplementedError

    async def list(
        self,
        tenant: str,
        phase: str | None = None,
        key: str | None = None,
        labels: Mapping[str, str] | None = None,
        template: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[Machine]:
        """Newest first; destroyed ones only with ``phase="destroyed"``. Raises INVALID_CURSOR."""
        raise NotImplementedError

    async def patch(
        self, tenant: str, machine_id: str, patch: PatchMachine, if_match: int | None = None
    ) -> Machine:
        """Raises REVISION_MISMATCH, VALIDATION_FAILED, CAPACITY_EXCEEDED, UNSUPPORTED (a size this rung cannot
        change while it runs: sleep it first)."""
        raise NotImplementedError

    async def delete(
        self, tenant: str, machine_id: str, wait: bool = True, if_match: int | None = None
    ) -> Machine:
        """Destroys it, whatever it is doing; ``destroyed``, or ``destroying`` with ``wait=False``. Again: the
        same, for an hour."""
        raise NotImplementedError

    async def sleep(self, tenant: str, machine_id: str) -> Machine:
        """Ends its processes and keeps its disk. Asleep already: nothing happens."""
        raise NotImplementedError

    async def wake(self, tenant: str, machine_id: str) -> Machine:
        """Running again, from its disk; also the way back from ``failed``."""
        raise NotImplementedError

    async def usage(self, tenant: str, machine_id: str) -> MachineUsage:
        """Raises INVALID_STATE when it does not run (it is not woken for this)."""
        raise NotImplementedError

    async def events(self, tenant: str, machine_id: str) -> list[MachineEvent]:
        """Its own life, oldest first, the last 200."""
        raise NotImplementedError

    async def awake(self, tenant: str, machine_id: str) -> Live:
        """The machine running, woken if it slept; counts as activity. Microseconds when it runs.

        Raises INVALID_STATE (being destroyed, ...), MACHINE_FAILED (wake it to start it from its disk) and
        what a wake raises (CAPACITY_EXCEEDED, MACHINE_FAILED, TIMEOUT).
        """
        raise NotImplementedError

    def touch(self, machine_id: str) -> None:
        """Counts as activity (a terminal's keystroke, preview traffic); no I/O."""
