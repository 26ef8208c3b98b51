"""What the driver needs of a guest, whoever makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from roost.drivers.interface import NetworkSlot


class GuestImage(Protocol):
    """Immutable files: ``vmlinux``, ``initrd`` and ``modules.img`` in one directory, readable by anyone."""

    @property
    def digest(self) -> str: ...

    @property
    def kernel(self) -> Path: ...

    @property
    def initrd(self) -> Path: ...

    @property
    def modules(self) -> Path:
        """ext4, opened read-only; may be absent, there is then no second disk."""


class GuestSource(Protocol):
    first_token: str
    """What the agent demands after a boot."""

    async def current(self) -> GuestImage:
        """Made if it is not there. Raises RoostError."""

    def get(self, digest: str) -> GuestImage | None:
        """One kept from earlier."""

    def command_line(self, *, accelerated: bool, slot: NetworkSlot | None) -> str: ...
