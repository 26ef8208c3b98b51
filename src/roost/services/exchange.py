"""A key for a token that is good for an hour: clients of some services never send a key, but a token they got for it.

No row is kept of a token: it names its key, and is signed. It counts for as long as that key does, and no longer than
it says; whoever has one open is known by the key's id, so the end of the key is the end of all its tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from roost.clock import Clock
from roost.errors import AuthError, ForbiddenError
from roost.services.keys import Keys
from roost.services.links import Links
from roost.services.models import Principal
from roost.services.rates import Rates

LIFE = timedelta(hours=1)
REMEMBER = 10_000  # keys


@dataclass(frozen=True, slots=True)
class Token:
    token: str
    expires_at: int  # in seconds since 1970


class Exchange:
    def __init__(self, keys: Keys, rates: Rates, clock: Clock, secret: bytes) -> None:
        self._keys = keys
        self._rates = rates
        self._clock = clock
        self._links = Links(secret)
        self._known: dict[str, Principal] = {}
        self._ends = 0
        keys.on_end(self._ended)

    async def give(self, secret_form: str) -> Token:
        """For a key in any form. Raises AUTH_INVALID, FORBIDDEN (it is a token of a machine), RATE_LIMITED."""
        who = await self._keys.authenticate(secret_form)
        self._rates.take(who)
        if who.is_token:
            raise ForbiddenError("Only a key can be exchanged: this is a token of one machine.")
        until = self._clock.now() + LIFE
        if who.expires_at is not None:
            until = min(until, who.expires_at)
        expires = int(until.timestamp())
        return Token(f"{who.key_id}.{self._links.sign(_about(who.key_id), expires)}", expires)

    async def authenticate(self, credential: str) -> Principal:
        """Who comes with a token, or with a key. Raises AUTH_INVALID."""
        key_id, dot, signed = credential.partition(".")
        if not dot:
            return await self._keys.authenticate(credential)
        now = self._clock.now()
        expires = self._links.verify(_about(key_id), signed)
        if expires is None:
            raise AuthError("This is neither a Roost key nor a token that was exchanged for one.")
        if expires <= now.timestamp():
            raise AuthError("This token has expired: exchange the key again.")
        who = await self._of(key_id)
        if who is None or (who.expires_at is not None and who.expires_at <= now):
            raise AuthError("The key of this token was revoked, or has expired.")
        return who

    async def _of(self, key_id: str) -> Principal | None:
        known = self._known.get(key_id)
        while known is None:
            before = self._ends
            found = await self._keys.known(key_id)
            if found is None:
                return None
            if before != self._ends:  # it may have been this one
                continue
            if len(self._known) >= REMEMBER:
                self._known.clear()
            known = self._known[key_id] = replace(found, prefix="")
        return known

    def _ended(self, key_id: str) -> None:
        self._ends += 1
        self._known.pop(key_id, None)


def _about(key_id: str) -> str:
    return f"exchanged:{key_id}"
