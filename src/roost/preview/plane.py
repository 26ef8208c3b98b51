"""What visitors and upstreams share: routes, who may, machines, connections that are free, bounds, ends."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from roost.clock import Clock
from roost.errors import AuthError, LimitError, RoostError
from roost.preview.access import Access, Grant
from roost.preview.reach import connect
from roost.preview.upstream import Upstream
from roost.preview.visitor import Visitor
from roost.services.browser import PORT as CDP_PORT
from roost.services.browser import Browser
from roost.services.doors import Doors
from roost.services.keys import Keys
from roost.services.machines import Machines
from roost.services.models import Live, Port
from roost.services.ports import Ports
from roost.services.rates import Rates

if TYPE_CHECKING:
    from roost.preview.visitor import _Memo

FREE = 64  # connections kept of a port
FREE_S = 3.0  # for so long: less than servers keep theirs (Node, uvicorn: 5 s)
OF_MACHINE = 512  # connections to one
OF_TOKEN = 64  # requests under way with one token or link
# Under the name of PandaStack, too: its clients know no other.
_PATH = re.compile(
    rb"(/v1/(?:machines|sandboxes)/([a-z0-9]{26,40})/proxy/([1-9]\d{0,4}))(?:(/[^?]*)(\?.*)?)?",
    re.DOTALL,
)
# The CDP of a machine's browser: a WebSocket, by a key in a header or by a link in the query.
_CDP = re.compile(
    rb"(/v1/machines/([a-z0-9]{26,40})/browser/cdp)(/devtools/(?:browser|page)/[A-Za-z0-9-]{1,64})"
    rb"(?:\?token=([A-Za-z0-9._-]{1,200}))?"
)
Key = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Path:
    """Of the path forms. ``asked`` of the server there; ``before`` stands before it. ``link``: to a browser."""

    machine_id: str
    port: int
    asked: bytes
    before: bytes
    cdp: bool = False
    link: bytes = b""


class Route:
    """Where a request goes. ``shown`` None: by path, or to nothing (then ``machine_id`` is empty)."""

    __slots__ = ("by_path", "link", "machine_id", "port", "shown", "tenant")

    def __init__(
        self,
        machine_id: str,
        port: int,
        tenant: str,
        shown: Port | None,
        by_path: bool = False,
        link: bytes = b"",
    ) -> None:
        self.machine_id = machine_id
        self.port = port
        self.tenant = tenant  # "": not known yet
        self.shown = shown
        self.by_path = by_path
        self.link = link  # to a browser


class Plane:
    """``per_second``: requests to one machine."""

    def __init__(
        self,
        ports: Ports,
        machines: Machines,
        keys: Keys,
        rates: Rates,
        clock: Clock,
        per_second: float,
        doors: Doors,
        browser: Browser,
    ) -> None:
        self.ports = ports
        self.access = Access(keys, ports, clock, browser)
        self.now = clock.monotonic()  # to the second: ``sweep`` keeps it
        self.requests = 0
        self.refusals: Counter[str] = Counter()  # by code
        self._machines = machines
        self._rates = rates
        self._clock = clock
        self._per_second = per_second
        self._doors = doors
        self._visitors: set[Visitor] = set()
        self._upstreams: defaultdict[str, set[Upstream]] = defaultdict(set)
        self._free: dict[Key, list[Upstream]] = {}
        self._burst = max(1.0, 2 * per_second)
        self._left: dict[str, float] = {}  # requests a machine may still have; none: ``_burst``
        self._under_way: Counter[str] = Counter()
        self._quiet = asyncio.Event()  # set when a visitor leaves
        # Set by the dialects: hosts below the domain that are the API's all the same, and how a refusal is said there.
        self.elsewhere: Callable[[str], bool] = _never
        self.said: Callable[[str, RoostError], tuple[int, dict[str, Any]] | None] = _plainly
        # Set by the front listener: what takes a connection back, and what is told of each that ends.
        self.to_api: Callable[[asyncio.Transport, bytes], None] = _close
        self.released: Callable[[asyncio.BaseTransport], None] = _nothing
        keys.on_end(self._ended)
        ports.on_end(self._port_ended)
        machines.on_change(self._changed)

    # --- for the front listener -----------------------------------------------------------------

    def wants(self, host: bytes, target: bytes) -> bool:
        """Whether a request is for here rather than for the API."""
        label = self.ports.places.label(host.decode("latin-1"))
        if label is None:
            return self.path(target) is not None
        return not self.elsewhere(label)

    def take(
        self, transport: asyncio.Transport, first: bytes, full: bool = False, *, handed: bool
    ) -> None:
        """A connection, with what it has said so far. ``handed``, ``full``: see ``Visitor``."""
        visitor = Visitor(self, handed, full)
        transport.set_protocol(visitor)  # first: it is what hears that the transport is full
        visitor.connection_made(transport)
        visitor.data_received(first)

    def sweep(self) -> None:
        """Once a second."""
        more = self._per_second * (self._clock.monotonic() - self.now)
        self._left = {m: had + more for m, had in self._left.items() if had + more < self._burst}
        self.now = now = self._clock.monotonic()
        unix = self._clock.now().timestamp()
        for visitor in list(self._visitors):
            visitor.sweep(now, unix)
        for free in list(self._free.values()):
            for up in [each for each in free if now - each.free_since > FREE_S]:
                up.close()

    def close_idle(self, seconds: float) -> None:
        """Those that wait for a next request for so long."""
        for visitor in list(self._visitors):
            if not visitor.busy and self.now - visitor.at >= seconds:
                visitor.transport.close()

    def shutdown(self) -> None:
        for visitor in list(self._visitors):
            visitor.shutdown()

    async def over_by(self, deadline: float) -> None:
        """What is under way is through, or it is that late (``time.monotonic``)."""
        while any(visitor.busy for visitor in self._visitors):
            left = deadline - self._clock.monotonic()
            if left <= 0:
                return
            self._quiet.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._quiet.wait()

    def cut(self) -> None:
        """Everything, at once."""
        for visitor in list(self._visitors):
            visitor.cut()
        for ups in list(self._upstreams.values()):
            for up in list(ups):
                up.close()

    def connections(self) -> tuple[int, int]:
        """Of visitors, and to machines."""
        return len(self._visitors), sum(map(len, self._upstreams.values()))

    # --- for visitors ---------------------------------------------------------------------------

    def came(self, visitor: Visitor) -> None:
        self._visitors.add(visitor)

    def left(self, visitor: Visitor, gone: bool = True) -> None:
        """``gone``: the connection, too; else somebody else has it now."""
        self._visitors.discard(visitor)
        self._quiet.set()
        if gone:
            self.released(visitor.transport)

    def path(self, target: bytes) -> Path | None:
        """Where a path form leads."""
        if not target.startswith((b"/v1/machines/", b"/v1/sandboxes/")):
            return None
        match = _CDP.fullmatch(target)
        if match is not None:
            return Path(match[2].decode(), CDP_PORT, match[3], match[1], True, match[4] or b"")
        match = _PATH.fullmatch(target)
        if match is None or int(match[3]) > 65535:
            return None
        asked = (match[4] or b"/") + (match[5] or b"")
        return Path(match[2].decode(), int(match[3]), asked, match[1])

    def route(self, memo: _Memo, path: Path | None) -> Route:
        if path is not None:
            return Route(path.machine_id, path.port, "", None, True, path.link)
        if memo.route is None or memo.known != self.ports.version:
            memo.known = self.ports.version
            memo.route = self._shown(memo.label)
        return memo.route

    def _shown(self, label: str | None) -> Route:
        shown = None if label is None else self.ports.at(label)
        if shown is None or shown.protocol != "http":
            return Route("", 0, "", None)
        return Route(shown.machine_id, shown.port, shown.tenant_id, shown)

    def quick(self, route: Route, memo: _Memo, method: bytes, websocket: bool) -> Grant | None:
        """From memory; None where it must be asked. Raises FORBIDDEN."""
        if route.link:
            return None
        if route.by_path:
            grant = self.access.quick_by_path(memo.fields, method, websocket)
            if grant is not None and grant.principal is not None:
                route.tenant = grant.principal.tenant
            return grant
        if route.shown is None:
            return None
        return self.access.quick(route.shown, memo.tokens, memo.fields, method)

    async def judge(self, route: Route, memo: _Memo, method: bytes, websocket: bool) -> Grant:
        """Raises AUTH_INVALID, AUTH_REQUIRED, FORBIDDEN."""
        if route.by_path:
            if route.link:
                grant = await self.access.by_link(route.machine_id, route.link)
            else:
                grant = await self.access.by_path(memo.fields, method, websocket)
            assert grant.principal is not None
            route.tenant = grant.principal.tenant
            return grant
        return await self.access.judge(route.shown, memo.tokens, memo.fields, method)

    async def cookie(self, label: str, token: bytes) -> tuple[str, int | None] | None:
        """What a link's token is as a cookie, and its age: "" where none is needed, None where it is no good."""
        shown = self.ports.at(label)
        if shown is None or shown.protocol != "http":
            return None
        if shown.public:
            return "", None
        age = self.access.link_age(shown, token)
        if age is not None:
            return token.decode("ascii"), age
        good, age = await self.access.preview_age(shown, token)
        return (token.decode("ascii"), age) if good else None

    def rate(self, route: Route, grant: Grant) -> None:
        """One more request of who asks by path. Raises RATE_LIMITED."""
        self.requests += 1
        if route.by_path and grant.principal is not None:
            self._rates.take(grant.principal)

    def owned(self, route: Route) -> bool:
        """Whether it is known at once that the machine is the caller's; a route by host leads to nobody else's."""
        return not route.by_path or self._machines.boot(route.machine_id, route.tenant) is not None

    async def require_owned(self, route: Route) -> None:
        """Before anything is taken from what the machine has. Raises MACHINE_NOT_FOUND."""
        if not self.owned(route):
            await self._machines.get(route.tenant, route.machine_id)

    def admit(self, route: Route, grant: Grant) -> str:
        """One more request to the machine; what ``over`` is told at its end. Raises RATE_LIMITED, LIMIT_EXCEEDED."""
        left = self._left.get(route.machine_id, self._burst)
        if left < 1:
            raise LimitError(
                f"More than {self._per_second:g} requests a second to the previews of this machine: retry in a moment.",
                details={"retry_after_s": 1},
            )
        self._left[route.machine_id] = left - 1
        if not grant.token:
            return ""
        if self._under_way[grant.owner] >= OF_TOKEN:
            raise LimitError(
                f"{OF_TOKEN} requests are under way with this token or link, the most there may be: retry later.",
                code="LIMIT_EXCEEDED",
            )
        self._under_way[grant.owner] += 1
        return grant.owner

    def over(self, owner: str) -> None:
        self._under_way[owner] -= 1
        if self._under_way[owner] <= 0:
            del self._under_way[owner]

    def refused(self, code: str) -> None:
        self.refusals[code] += 1

    def using(self, machine_id: str) -> AbstractContextManager[None]:
        return self._machines.using(machine_id)

    def touch(self, machine_id: str) -> bool:
        """Counts as activity; False where it does not run now."""
        if self._machines.boot(machine_id) is None:
            return False
        self._machines.touch(machine_id)
        return True

    def spare(self, route: Route) -> Upstream | None:
        """A free connection to a machine that runs."""
        boot = self._machines.boot(route.machine_id, route.tenant)
        if boot is None:
            return None
        return self._take((route.machine_id, boot, route.port))

    async def awake(self, route: Route) -> Live:
        return await self._machines.awake(route.tenant, route.machine_id)

    async def connect(self, route: Route, fresh: bool) -> Upstream:
        """The machine woken, if it slept. ``fresh``: none that was used. Raises what that raises, PORT_CLOSED,
        LIMIT_EXCEEDED."""
        if not route.machine_id:
            raise AuthError("There is nothing here.")
        live = await self.awake(route)
        key = (route.machine_id, live.machine.generation, route.port)
        if not fresh and (up := self._take(key)) is not None:
            return up
        if len(self._upstreams[route.machine_id]) >= OF_MACHINE:
            raise LimitError(
                f"{OF_MACHINE} connections to this machine are open, the most there may be: retry later.",
                code="LIMIT_EXCEEDED",
            )
        return await connect(self._doors, live, route.port, lambda: Upstream(self, key))

    # --- for upstreams --------------------------------------------------------------------------

    def opened(self, up: Upstream) -> None:
        self._upstreams[up.machine_id].add(up)

    def free(self, up: Upstream) -> None:
        """Nobody's; kept for the next request."""
        free = self._free.setdefault(up.key, [])
        if up.lost or len(free) >= FREE:
            up.close()
            return
        up.free_since = self.now
        free.append(up)

    def dropped(self, up: Upstream) -> None:
        """Not to be used again."""
        free = self._free.get(up.key)
        if free is not None:
            if up in free:
                free.remove(up)
            if not free:
                del self._free[up.key]

    def gone(self, up: Upstream) -> None:
        self.dropped(up)
        ups = self._upstreams.get(up.machine_id)
        if ups is not None:
            ups.discard(up)
            if not ups:
                del self._upstreams[up.machine_id]

    def _take(self, key: Key) -> Upstream | None:
        free = self._free.get(key)
        while free:
            up = free.pop()
            if not up.lost and not up.transport.is_closing():
                return up
        return None

    # --- ends -----------------------------------------------------------------------------------

    def _ended(self, key_id: str) -> None:
        for visitor in list(self._visitors):
            if visitor.busy and visitor.grant is not None and visitor.grant.owner == key_id:
                visitor.cut()

    def _port_ended(self, port_id: str) -> None:
        for visitor in list(self._visitors):
            shown = None if visitor.route is None else visitor.route.shown
            if visitor.busy and shown is not None and shown.id == port_id:
                visitor.cut()

    def _changed(self, machine_id: str) -> None:
        """What was opened to an earlier start of it leads nowhere."""
        ups = self._upstreams.get(machine_id)
        boot = self._machines.boot(machine_id) if ups else None
        if ups and boot is not None:
            for up in [each for each in ups if each.key[1] not in (boot, 0)]:
                up.transport.abort()


def _close(transport: asyncio.Transport, data: bytes) -> None:
    transport.close()


def _nothing(transport: Any) -> None:
    pass


def _never(label: str) -> bool:
    return False


def _plainly(label: str, failure: RoostError) -> None:
    return None
