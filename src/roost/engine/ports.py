"""What the engine needs of the agent client and of the keeper of secrets, and nothing more of them."""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping, Sequence
from typing import Any, Protocol

import sqlalchemy as sa

from roost.agent.v1 import agent_pb2 as pb
from roost.egress.interface import Intercept


class Agent(Protocol):
    async def wait_ready(self, timeout_s: float) -> Any:
        """Returns once the agent answered Hello; raises TIMEOUT after that, MACHINE_FAILED at once for an
        agent that is not ours."""

    async def acquaint(self, timeout_s: float) -> Any:
        """Says Hello once to one that is up; raises as ``wait_ready``, and AGENT_LOST."""

    async def reseed(self, entropy: bytes) -> Any: ...

    async def renew_identity(self, request: pb.RenewIdentityRequest) -> Any: ...

    async def set_clock(self, unix_ns: int) -> Any: ...

    async def shutdown(self, grace_s: float) -> Any: ...

    async def tar_in(self, header: pb.TarInHeader, data: AsyncIterable[bytes]) -> Any: ...

    async def sync(self) -> Any:
        """What is dirty goes to its disks."""

    async def stats(self) -> Any:
        """Has ``disk_total_bytes``, ``disk_used_bytes``, ``uptime_ms``, ``memory_used_bytes``,
        ``memory_total_bytes``, ``memory_cache_bytes``."""


class Agents(Protocol):
    def get(self, machine_id: str, target: str, token: str) -> Agent:
        """The machine's client; its channel is kept. Does no I/O."""

    def renewed(self, machine_id: str, token: str) -> None:
        """The agent of a client that ``get`` gave demands another token from now on."""

    def drop(self, machine_id: str) -> None:
        """Forgets it and closes its channel. Idempotent."""


class Boundary(Protocol):
    """Who keeps machines' secrets out of them (``roost.secrets.keeper``)."""

    def environment(self, machine_id: str, one_user: bool = False) -> Mapping[str, str]:
        """What its programs are told; no secret is in it. ``one_user``: of its capabilities."""

    async def intercepts(self, machine_id: str) -> Sequence[Intercept]:
        """Names that its connections reach by the boundary alone."""

    async def greeted(self, machine_id: str, agent: Any, one_user: bool = False) -> None:
        """It came up and has its identity: its authority is put where its programs look for it. Never raises."""

    def inherit(self, connection: sa.Connection, parent_id: str, child_id: str) -> None:
        """In the transaction that makes a fork's row."""

    def erase(self, connection: sa.Connection, machine_id: str) -> None:
        """In the transaction that ends a machine."""

    async def gone(self, machine_id: str) -> None:
        """It is being destroyed. Idempotent; never raises."""


class NoBoundary:
    """Nobody has a secret."""

    def environment(self, machine_id: str, one_user: bool = False) -> Mapping[str, str]:
        return {}

    async def intercepts(self, machine_id: str) -> Sequence[Intercept]:
        return ()

    async def greeted(self, machine_id: str, agent: Any, one_user: bool = False) -> None:
        pass

    def inherit(self, connection: sa.Connection, parent_id: str, child_id: str) -> None:
        pass

    def erase(self, connection: sa.Connection, machine_id: str) -> None:
        pass

    async def gone(self, machine_id: str) -> None:
        pass
