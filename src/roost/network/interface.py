"""The network as the engine sees it: slots that are taken and given back."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from roost.drivers.interface import NetworkSlot
from roost.egress.interface import Decision, Intercept
from roost.egress.policy import Policy


@dataclass(frozen=True, slots=True)
class SlotCounts:
    """``ready``: made ahead; ``free``: that could still be made."""

    used: int
    ready: int
    free: int


class Network(Protocol):
    """Where the process that proves names does not answer, ``apply`` and ``reattach`` raise DEPENDENCY_UNAVAILABLE and
    the rules hold all the same: what needs that process does not go through, and once it is back it is told this
    policy."""

    async def open(self, in_use: Mapping[str, int]) -> None:
        """At daemon start: keeps the slots of these machines (id -> index) as they stand, sweeps away every
        other slot of ours on the host, and begins to fill the pool."""

    async def take(
        self, machine_id: str, policy: Policy, intercept: Sequence[Intercept] = ()
    ) -> NetworkSlot:
        """A slot whose rules already stand, this policy's among them. From the pool where one is ready. Raises
        CapacityError when no index is left. ``intercept``: names whose connections must go by the proxy, whatever
        the policy, and from there by somebody else."""

    async def reattach(
        self, machine_id: str, index: int, policy: Policy, intercept: Sequence[Intercept] = ()
    ) -> NetworkSlot:
        """The slot this machine already holds, made good again (address, route, rules; made anew if the
        host lost it)."""

    async def apply(
        self, machine_id: str, policy: Policy, intercept: Sequence[Intercept] = ()
    ) -> None:
        """On return it holds: new connections follow it, and live ones it does not allow are cut. Nothing where the
        machine has no slot (its next ``take`` brings the policy)."""

    async def decisions(self, machine_id: str) -> list[Decision]:
        """What the machine tried since it took its slot: names at the proxy and the resolver, packets at the rules.
        Empty without a slot."""

    async def connection(self, machine_id: str) -> socket.socket:
        """A TCP socket, not blocking and not yet connected, that reaches the machine's own address
        (``addresses.MACHINE_ADDRESS``, any port but the agent's). Raises NotFoundError without a slot."""

    def counts(self) -> SlotCounts: ...

    async def egress(self, machine_ids: Iterable[str]) -> dict[str, int]:
        """Bytes that left each of these machines for elsewhere since it took its slot; what rules refused and what
        the daemon asked its agent for do not count; what went as far as the proxy does, also where that refused it. Those without a slot are not in it."""

    async def release(self, machine_id: str) -> None:
        """Takes the machine's slot down. Idempotent."""

    async def close(self) -> None:
        """Daemon stop: forgets the pool's unused slots, leaves those in use."""

    async def purge(self) -> None:
        """Removes everything of ours from the host's network."""
