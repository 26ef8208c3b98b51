"""What the engine needs of the agent client, and nothing more of it."""

from __future__ import annotations

from typing import Any, Protocol

from roost.agent.v1 import agent_pb2 as pb


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

    async def stats(self) -> Any:
        """Has ``disk_total_bytes``, ``disk_used_bytes``, ``uptime_ms``."""


class Agents(Protocol):
    def get(self, machine_id: str, target: str, token: str) -> Agent:
        """The machine's client; its channel is kept. Does no I/O."""

    def renewed(self, machine_id: str, token: str) -> None:
        """The agent of a client that ``get`` gave demands another token from now on."""

    def drop(self, machine_id: str) -> None:
        """Forgets it and closes its channel. Idempotent."""
