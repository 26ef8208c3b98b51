"""The credential that a terminal's ``stream_url`` carries: who opens it needs no header.

A ticket says for whom (a key, which must still count when it is used), for which terminal and until when; it is
signed with what only this process knows, for no terminal's conversation outlives it, and no row is kept of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from urllib.parse import urlencode

from roost.clock import Clock
from roost.errors import AuthError
from roost.services.keys import Keys
from roost.services.links import Links
from roost.services.models import Principal

LASTS_S = 600


class Tickets:
    def __init__(self, keys: Keys, clock: Clock) -> None:
        self._keys = keys
        self._links = Links(secrets.token_bytes(32))
        self._clock = clock

    def query(self, who: Principal, machine_id: str, terminal_id: str) -> str:
        expires = int(self._clock.now().timestamp()) + LASTS_S
        token = self._links.sign(_about(who.key_id, machine_id, terminal_id), expires)
        return urlencode({"key": who.key_id, "ticket": token})

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
            raise AuthError("This is no stream_url of this terminal.")
        if expires <= self._clock.now().timestamp():
            raise AuthError("This stream_url has expired: retrieve the terminal for a new one.")
        who = await self._keys.known(key_id)
        if who is None:
            raise AuthError("The key this stream_url was made with does not count any more.")
        return who


def _about(key_id: str, machine_id: str, terminal_id: str) -> str:
    return f"dedalus-terminal:{key_id}:{machine_id}:{terminal_id}"
