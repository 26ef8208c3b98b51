"""No network of machines' own: of a daemon that may not make any, whose machines have the host's."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence

from roost.drivers.interface import NetworkSlot
from roost.egress.interface import Decision, Intercept
from roost.egress.policy import Policy
from roost.errors import NotFoundError, UnsupportedError
from roost.network.interface import SlotCounts


class HostNetwork:
    """See ``roost.network.interface.Network``."""

    async def open(self, in_use: Mapping[str, int]) -> None: ...

    async def take(
        self, machine_id: str, policy: Policy, intercept: Sequence[Intercept] = ()
    ) -> NetworkSlot:
        raise UnsupportedError(
            "A network of the machine's own needs root, which this daemon does not run as."
        )

    async def reattach(
        self, machine_id: str, index: int, policy: Policy, intercept: Sequence[Intercept] = ()
    ) -> NetworkSlot:
        return await self.take(machine_id, policy, intercept)

    async def apply(
        self, machine_id: str, policy: Policy, intercept: Sequence[Intercept] = ()
    ) -> None: ...

    async def decisions(self, machine_id: str) -> list[Decision]:
        return []

    async def connection(self, machine_id: str) -> socket.socket:
        raise NotFoundError("The machine has no network of its own.")

    def counts(self) -> SlotCounts:
        return SlotCounts(0, 0, 0)

    async def egress(self, machine_ids: Iterable[str]) -> dict[str, int]:
        return {}

    async def release(self, machine_id: str) -> None: ...

    async def close(self) -> None: ...

    async def purge(self) -> None: ...
