"""Where names are proven: a process of its own that resolves for machines, reads what they say first, and dials."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from roost.egress.policy import WEB_PORTS, Policy, Reach

# In each slot's gateway namespace, where rules lead connections that must prove a name.
PROXY_PORT = 7110
DNS_PORT = 53
# The process's user and group: beyond what distributions give out, below those of VMMs (drivers/qemu). One for all
# daemons of a host, for the rule that confines it is the same for all.
EGRESS_UID = 0x6FFE0000
BOUNDARY_UID = EGRESS_UID + 1  # of the process that adds secrets (roost.secrets)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a machine tried, and how often. ``host``: the name, where one was said, else the address; ``via``: dns,
    tls, http or packet; ``reason``: a stable word for why it was refused, "" where it was allowed."""

    host: str
    port: int
    protocol: str  # tcp | udp | icmp
    via: str
    allowed: bool
    reason: str
    count: int
    first_at: float  # seconds since the epoch
    last_at: float


@dataclass(frozen=True, slots=True)
class Listeners:
    """Bound and listening inside a slot's gateway namespace, on ``addresses.GATEWAY_ADDRESS``."""

    dns_udp: socket.socket
    dns_tcp: socket.socket
    proxy: socket.socket


@dataclass(frozen=True, slots=True)
class Intercept:
    """Connections that prove one of ``names`` (a name, or a wildcard ``*.NAME``) go on by a SOCKS5 server of this
    host instead of straight out (RFC 1928, with user and password by RFC 1929): the target is an address the name
    resolved to, and which may be spoken to, and the port; the user is ``USER@NAME`` where ``user`` is given, else the
    name alone. Only what the policy allows comes that far, and the machine's own choice of an address never does.

    The whole connection goes there, from its first byte. Over TLS that is all there is to say; in clear text HTTP
    each request to such a name is on a connection that carries requests to that name only."""

    names: tuple[str, ...]
    endpoint: str  # unix:/PATH or tcp:ADDRESS:PORT, connected to by ``EGRESS_UID``
    user: str = ""
    password: str = field(default="", repr=False)  # in no log, no error and no decision
    ports: tuple[int, ...] = WEB_PORTS


class Egress(Protocol):
    """The daemon's handle on that process. A slot is known by its index; until a policy is applied it has none, and
    nothing goes through."""

    async def open(self) -> None:
        """Finds the process that an earlier daemon left, or starts one. Raises INTERNAL."""

    def on_restart(self, again: Callable[[], Awaitable[None]]) -> None:
        """``again`` is awaited whenever a new process took the place of one that died: it knows nothing, so attach
        and apply every slot anew, with new listeners (the dead one's are closed). ``reach`` need not be told again."""

    async def reach(self, reach: Reach) -> None:
        """Which addresses may be dialled at all, for every slot; until it is told, what ``Reach()`` permits.
        Connections to others are cut."""

    async def slots(self) -> set[int]:
        """Those it has listeners of."""

    async def attach(self, slot: int, listeners: Listeners) -> None:
        """Hands the sockets over; the caller may close its own afterwards. Replaces earlier ones."""

    async def detach(self, slot: int) -> None:
        """Closes listeners and connections of it and forgets what it decided. Idempotent."""

    async def apply(
        self, slot: int, machine_id: str, policy: Policy, intercept: Sequence[Intercept] = ()
    ) -> None:
        """On return it holds for new connections, and those it no longer allows are cut; also those whose way by
        ``intercept`` changed. Another machine's id than before begins the slot's decisions anew."""

    async def decisions(self, slot: int) -> list[Decision]:
        """Newest last; bounded."""

    async def close(self) -> None:
        """Daemon stop: the process goes on, for machines do."""

    async def purge(self) -> None:
        """Ends it."""
