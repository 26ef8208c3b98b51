"""Who may see a port. What was verified is remembered for half a minute; what is revoked is forgotten at once.

    public      everybody
    private     a preview token of that port, or a link's: in a header, or in the cookie a link sets
                a key of the machine's tenant: in a header only; one that may only read: GET and HEAD, and wakes nothing
    by path     a key of the machine's tenant, as bearer
    a browser   that, or a link that a key made, in the query

Whoever has none of these hears the same, whether there is such a machine or not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from roost.clock import Clock
from roost.errors import AuthError, ForbiddenError
from roost.preview import cookies
from roost.preview.head import Fields, bearer, is_ours
from roost.services.browser import Browser
from roost.services.keys import Keys
from roost.services.models import Port, Principal, Role
from roost.services.ports import Ports

REMEMBER = 10_000
AGAIN_S = 30.0  # then a key is asked for again: its last use is written down so
READS = frozenset({b"GET", b"HEAD"})
_MAKE_LINKS = frozenset({Role.ADMIN, Role.TENANT})
_OF_TENANT = frozenset({Role.ADMIN, Role.TENANT, Role.RUNNER, Role.READ_ONLY})


@dataclass(frozen=True, slots=True)
class Grant:
    """``owner``: the id of the key or token it comes from, a link's port, "" where everybody may."""

    owner: str
    expires: float | None = None  # seconds since 1970
    reads: bool = False  # only
    token: bool = False
    principal: Principal | None = None


EVERYBODY = Grant("")


class Access:
    def __init__(self, keys: Keys, ports: Ports, clock: Clock, browser: Browser) -> None:
        self._browser = browser
        self._keys = keys
        self._ports = ports
        self._clock = clock
        self._seen: dict[bytes, tuple[Principal, float]] = {}
        keys.on_end(self._ended)

    def quick(
        self, port: Port, tokens: Iterable[tuple[bytes, bool]], f: Fields, method: bytes
    ) -> Grant | None:
        """As ``judge`` from memory; None where it must be asked. Raises FORBIDDEN."""
        if port.public:
            return EVERYBODY
        for token, is_cookie in tokens:
            grant = self._link(port, token)
            if grant is None:
                known = self._seen.get(token)
                if known is None or known[1] < self._clock.monotonic():
                    return None
                grant = self._of(port, known[0], is_cookie)
            if grant is not None:
                return _checked(grant, is_cookie, f, method)
        return None

    async def judge(
        self, port: Port | None, tokens: Iterable[tuple[bytes, bool]], f: Fields, method: bytes
    ) -> Grant:
        """``tokens``: (token, whether it came as a cookie). Raises AUTH_INVALID, FORBIDDEN."""
        if port is not None:
            if port.public:
                return EVERYBODY
            for token, is_cookie in tokens:
                grant = self._link(port, token)
                if grant is None:
                    who = await self._principal(token)
                    grant = None if who is None else self._of(port, who, is_cookie)
                if grant is not None:
                    return _checked(grant, is_cookie, f, method)
        raise AuthError(
            "There is nothing here for you: it does not exist, or it is private. Open it by a link (roost open "
            "MACHINE PORT makes one), or send a key or a preview token: Authorization: Bearer <key>."
        )

    async def by_path(self, f: Fields, method: bytes, websocket: bool) -> Grant:
        """Raises AUTH_REQUIRED, AUTH_INVALID, FORBIDDEN."""
        token = bearer(f.authorization)
        if token is None:
            raise AuthError(
                "This call needs a key: send Authorization: Bearer <key>.", code="AUTH_REQUIRED"
            )
        who = await self._principal(token)
        if who is None:
            raise AuthError("This key is not known here, or was revoked.")
        if who.role not in _OF_TENANT:
            raise ForbiddenError("A token opens no port by its path: take its own host, or a key.")
        return _read_check(_grant(who), method, websocket)

    async def by_link(self, machine_id: str, token: bytes) -> Grant:
        """Of a browser's CDP: what the key that made the link may, until it expires. Raises AUTH_INVALID."""
        found = self._browser.read(machine_id, token.decode("ascii"))
        who = None if found is None else await self._keys.known(found[0])
        if found is None or found[1] <= self._now() or who is None or who.role not in _MAKE_LINKS:
            raise AuthError(
                "This link to a browser is none, has expired, or its key has ended: ask for another "
                "(POST /v1/machines/{id}/browser/connect)."
            )
        grant = _grant(who)
        expires = found[1] if grant.expires is None else min(grant.expires, found[1])
        return replace(grant, expires=float(expires))

    def quick_by_path(self, f: Fields, method: bytes, websocket: bool) -> Grant | None:
        token = bearer(f.authorization)
        known = self._seen.get(token) if token is not None else None
        if known is None or known[1] < self._clock.monotonic() or known[0].role not in _OF_TENANT:
            return None
        grant = _grant(known[0])
        if grant.expires is not None and grant.expires <= self._now():
            return None
        return _read_check(grant, method, websocket)

    def link_age(self, port: Port, token: bytes) -> int | None:
        """Seconds a link is good for still; None for what is none."""
        expires = self._ports.link_expires(port, token.decode("latin-1"))
        left = None if expires is None else int(expires - self._now())
        return left if left is not None and left > 0 else None

    async def preview_age(self, port: Port, token: bytes) -> tuple[bool, int | None]:
        """Whether it is a preview token of the port, and for how many seconds (None: for ever)."""
        who = await self._principal(token)
        if who is None or who.role is not Role.PREVIEW or self._of(port, who, True) is None:
            return False, None
        if who.expires_at is None:
            return True, None
        return True, max(1, int(who.expires_at.timestamp() - self._now()))

    # --- helpers --------------------------------------------------------------------------------

    def _now(self) -> float:
        return self._clock.now().timestamp()

    def _link(self, port: Port, token: bytes) -> Grant | None:
        if not token.startswith(b"rlt_"):
            return None
        expires = self._ports.link_expires(port, token.decode("latin-1"))
        if expires is None or expires <= self._now():
            return None
        return Grant(port.id, float(expires), token=True)

    async def _principal(self, token: bytes) -> Principal | None:
        if not is_ours(token):
            return None
        known = self._seen.get(token)
        if known is not None and known[1] >= self._clock.monotonic():
            return known[0]
        try:
            who = await self._keys.authenticate(token.decode("ascii"))
        except AuthError:
            self._seen.pop(token, None)
            return None
        # Nothing is awaited in between: one that was revoked meanwhile did not come back.
        if len(self._seen) >= REMEMBER:
            self._seen.clear()
        self._seen[token] = (who, self._clock.monotonic() + AGAIN_S)
        return who

    def _of(self, port: Port, who: Principal, is_cookie: bool) -> Grant | None:
        if who.expires_at is not None and who.expires_at <= self._clock.now():
            return None
        if who.role is Role.PREVIEW:
            if (who.machine_id, who.port) != (port.machine_id, port.port):
                return None
        elif is_cookie or who.role not in _OF_TENANT or who.tenant != port.tenant_id:
            return None
        return _grant(who)

    def _ended(self, key_id: str) -> None:
        self._seen = {t: known for t, known in self._seen.items() if known[0].key_id != key_id}


def tokens(f: Fields) -> tuple[list[tuple[bytes, bool]], bytes]:
    """(what may be a credential and whether it came as a cookie, the cookies that go on)."""
    found = []
    if f.preview_token is not None:
        found.append((f.preview_token, False))
    bare = bearer(f.authorization)
    if bare is not None and is_ours(bare):
        found.append((bare, False))
    if f.api_key is not None and is_ours(f.api_key):
        found.append((f.api_key, False))
    others, mine = cookies.ours(f.cookie)
    return found + [(each, True) for each in mine], others


def _grant(who: Principal) -> Grant:
    expires = None if who.expires_at is None else who.expires_at.timestamp()
    return Grant(who.key_id, expires, who.role is Role.READ_ONLY, who.is_token, who)


def _checked(grant: Grant, is_cookie: bool, f: Fields, method: bytes) -> Grant:
    if is_cookie and _from_elsewhere(f, method):
        raise ForbiddenError(
            "A page of another host asked for this with your cookie; that is not served."
        )
    return _read_check(grant, method, f.websocket)


def _read_check(grant: Grant, method: bytes, websocket: bool) -> Grant:
    if grant.reads and (websocket or method not in READS):
        raise ForbiddenError("This key may only read.")
    return grant


def _from_elsewhere(f: Fields, method: bytes) -> bool:
    """Whether another origin's page is behind this: hosts below one domain are one site to browsers, so SameSite
    does not keep a machine's page from using the cookies of a sibling."""
    if f.origin is not None:
        _, found, host = f.origin.partition(b"://")
        if not found or _name(host) != _name(f.host):
            return True
    elif f.websocket:
        return True
    if f.fetch_site in (None, b"same-origin", b"none"):
        return False
    return f.websocket or method not in READS or f.fetch_mode != b"navigate"


def _name(host: bytes) -> bytes:
    return host.partition(b":")[0].lower().rstrip(b".")
