"""Tickets: whoever has one may watch and type into a terminal until it expires, without a key. No row is kept of them.

A ticket is a key's id and a signature of it, the terminal and the time: the key must still count when the ticket is used, so
its end ends what came of it, and a ticket may do no more than its key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlencode

from roost.clock import Clock
from roost.errors import AuthError
from roost.services import limits
from roost.services.keys import Keys
from roost.services.links import Links
from roost.services.models import Principal

TICKET_S = 600
TICKET_MAX_S = 86_400


@dataclass(frozen=True, slots=True)
class Ticket:
    query: str  # of the URL of the terminal's stream
    expires_at: datetime


class Tickets:
    def __init__(self, keys: Keys, secret: bytes, clock: Clock) -> None:
        self._keys = keys
        self._links = Links(secret)
        self._clock = clock

    def make(
        self, who: Principal, machine_id: str, terminal_id: str, ttl_seconds: int = TICKET_S
    ) -> Ticket:
        """For a terminal that the caller has made sure of. Raises VALIDATION_FAILED."""
        if not 1 <= ttl_seconds <= TICKET_MAX_S:
            raise limits.bad("ttl_seconds", f"is from 1 to {TICKET_MAX_S}")
        expires = int(self._clock.now().timestamp()) + ttl_seconds
        token = self._links.sign(_about(who.key_id, machine_id, terminal_id), expires)
        query = urlencode({"key": who.key_id, "ticket": token})
        return Ticket(query, datetime.fromtimestamp(expires, UTC))

    async def admit(
        self, machine_id: str, terminal_id: str, query: Mapping[str, str]
    ) -> Principal | None:
        """None where there is no ticket. Raises AUTH_INVALID."""
        ticket = query.get("ticket")
        if ticket is None:
            return None
        key_id = query.get("key", "")
        expires = self._links.verify(_about(key_id, machine_id, terminal_id), ticket)
        if expires is None:
            raise AuthError("This ticket is none of this terminal's.")
        if expires <= self._clock.now().timestamp():
            raise AuthError("This ticket has expired: ask for the terminal's URL again.")
        who = await self._keys.known(key_id)
        if who is None:
            raise AuthError("The key this ticket was made with does not count any more.")
        return who


def _about(key_id: str, machine_id: str, terminal_id: str) -> str:
    return f"terminal:{key_id}:{machine_id}:{terminal_id}"
