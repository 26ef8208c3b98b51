"""The network as the engine sees it: slots that are taken and given back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from roost.drivers.interface import NetworkSlot


@dataclass(frozen=True, slots=True)
class SlotCounts:
    """``ready``: made ahead; ``free``: that could still be made."""

    used: int
    ready: int
    free: int


class Network(Protocol):
    async def open(self, in_use: Mapping[str, int]) -> None:
        """At daemon start: keeps the slots of these machines (id -> index) as they stand, sweeps away every
        other slot of ours on the host, and begins to fill the pool."""

    async def take(self, machine_id: str) -> NetworkSlot:
        """A slot whose default-deny rules already stand. From the pool where one is ready. Raises
        CapacityError when no index is left."""

    async def reattach(self, machine_id: str, index: int) -> NetworkSlot:
        """The slot this machine already holds, made good again (address, route, rules; made anew if the
        host lost it)."""

    def counts(self) -> SlotCounts: ...

    async def egress(self, machine_ids: Iterable[str]) -> dict[str, int]:
        """Bytes that left each of these machines for elsewhere since it took its slot; what was refused and what
        the daemon asked its agent for do not count. Those without a slot are not in it."""

    async def release(self, machine_id: str) -> None:
        """Takes the machine's slot down. Idempotent."""

    async def close(self) -> None:
        """Daemon stop: forgets the pool's unused slots, leaves those in use."""

    async def purge(self) -> None:
        """Removes everything of ours from the host's network."""
