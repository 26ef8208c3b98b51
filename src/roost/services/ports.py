"""Ports of machines that are shown outside: rows, and all of them in memory for the preview proxy.

A row of port 0 (``EVERY``) stands for every port of its machine that has none of its own and is not Roost's: whatever
listens there is shown, as that row says. Its links open all of them.

A port belongs to one machine and goes with it; a fork has none of its parent's, until it takes its parent's place
(``handed_over``): then they are its own, under the hosts they had. Whoever serves them is told of each that is changed or
removed (``on_end``), for what is open there may not be any more.
"""

from __future__ import annotations

import asyncio
import builtins
import secrets
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from roost import ids
from roost.clock import Clock
from roost.engine.lifecycle import Phase
from roost.errors import ConflictError, LimitError, NotFoundError, UnsupportedError
from roost.network.addresses import AGENT_PORT
from roost.services import browser, code, computer, limits, places
from roost.services.doors import require_own_network
from roost.services.links import Links
from roost.services.machines import Machines
from roost.services.models import UNSET, Port, Unset
from roost.services.places import Places
from roost.store import Store, machines
from roost.store import ports as rows

PORTS = 64  # of a machine
EVERY = 0  # shown: every port that is not shown by itself, under {port}-{machine id} as those are
# Of servers that Roost's own calls use; they are shown where they are asked for by number.
OWN = frozenset({AGENT_PORT, browser.PORT, code.HELPER.port, computer.HELPER.port})
NAMES = 10_000  # of a tenant, with those it had
LINK_S = 3600
LINK_MAX_S = 7 * 86_400
PASS_S = 10 * 365 * 86_400
ENDED = 10_000  # machines that showed every port, remembered for what is said of them afterwards
_GONE = (Phase.DESTROYING, Phase.DESTROYED)


@dataclass(frozen=True, slots=True)
class Link:
    url: str
    expires_at: datetime


class Ports:
    """Every call takes the caller's tenant first; another tenant's machine answers MACHINE_NOT_FOUND."""

    def __init__(
        self, store: Store, machines: Machines, clock: Clock, secret: bytes, where: Places
    ) -> None:
        self._store = store
        self._machines = machines
        self._clock = clock
        self._links = Links(secret)
        self.places = where
        self.version = 0  # another one whenever ``at`` may answer otherwise
        self._of: defaultdict[str, dict[int, Port]] = defaultdict(dict)
        self._hosts: dict[tuple[str, int], Port] = {}
        self._named: dict[str, Port] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._listeners: list[Callable[[str], None]] = []
        self._looking: set[asyncio.Task[None]] = set()
        self._one = asyncio.Lock()  # looks at a time: what was read last is what counts

    async def open(self) -> None:
        for row in await self._store.read(rows.every):
            self._put(Port(**row))
        self._machines.on_change(self._changed)

    def on_end(self, listener: Callable[[str], None]) -> None:
        """Is told the id of each port that was changed or removed."""
        self._listeners.append(listener)

    # --- for the preview proxy ------------------------------------------------------------------

    def at(self, label: str) -> Port | None:
        """The port a host's label names, by number and machine or by name."""
        place = Places.read(label)
        if place is None:
            return self._named.get(label)
        found = self._hosts.get((place.machine_id, place.port))
        if found is None and place.port not in OWN:
            every = self._hosts.get((place.machine_id, EVERY))
            return None if every is None else replace(every, port=place.port)
        return found

    def shows_every(self, label: str) -> bool:
        """Whether a host's label is of a machine that shows all its ports, or did until it ended."""
        place = Places.read(label)
        if place is None:
            return False
        return (place.machine_id, EVERY) in self._hosts or place.machine_id in self._ended

    def link_expires(self, port: Port, token: str) -> int | None:
        """Of a link's token, in seconds since 1970; None for what is none of this port."""
        expires = self._links.read(port, token)
        every = self._hosts.get((port.host_id, EVERY)) if expires is None else None
        if every is None or every.id != port.id:
            return expires
        return self._links.read(every, token)

    # --- for their owner ------------------------------------------------------------------------

    def every(self, machine_id: str) -> Port | None:
        """Of a machine that shows every port, the row that says so. For who may see the machine."""
        return self._of.get(machine_id, {}).get(EVERY)

    def pass_of(self, machine_id: str) -> str | None:
        """A token that opens every port of a machine that shows them, until ``end_links``; None for another."""
        found = self.every(machine_id)
        if found is None:
            return None
        return self._links.make(found, int(self._clock.now().timestamp()) + PASS_S)

    def url(self, port: Port) -> str | None:
        """None for one that no browser can open, and for every port at once."""
        if port.protocol != "http" or port.port == EVERY:
            return None
        return self.places.url(port.name or Places.label_of(port.host_id, port.port))

    async def create(
        self,
        tenant: str,
        machine_id: str,
        port: int,
        *,
        protocol: str = "http",
        visibility: str = "private",
        name: str | None = None,
        from_inside: bool = False,
    ) -> Port:
        """``from_inside``: the machine itself asked. Raises VALIDATION_FAILED, ALREADY_EXISTS (the port, or the name), QUOTA_EXCEEDED, INVALID_STATE, UNSUPPORTED (it has
        the host's network)."""
        machine = await self._machines.get(tenant, machine_id)
        _require_here(machine.phase)
        require_own_network(machine)
        _check(port, protocol, visibility, name)
        if port == EVERY and from_inside:
            raise limits.bad("port", "is one: showing all of them is for the machine's owner")
        values: dict[str, Any] = {
            "id": ids.new(),
            "machine_id": machine.id,
            "tenant_id": tenant,
            "port": port,
            "protocol": protocol,
            "visibility": visibility,
            "name": name,
            "salt": secrets.token_hex(16),
            "created_at": self._clock.now(),
            "host_id": machine.id,
            "from_inside": from_inside,
        }

        def fn(connection: sa.Connection) -> None:
            _require_here(machines.phase(connection, machine.id))  # its end takes rows along once
            have = rows.of_machine(connection, machine.id)
            if any(row["port"] == port for row in have):
                raise ConflictError(
                    f"Port {port} of this machine is shown already: change it with PATCH.",
                    code="ALREADY_EXISTS",
                    details={"port": port},
                )
            if (other := rows.of_host(connection, machine.id, port)) is not None:
                raise ConflictError(
                    f"The host of port {port} went with this machine's place to {other['machine_id']}: show another "
                    "port, or remove that one there first.",
                    code="ALREADY_EXISTS",
                    details={"port": port, "machine_id": other["machine_id"]},
                )
            _require_room(len(have), 1)
            rows.insert(connection, values)

        await self._write(fn, tenant, name)
        await self._look(machine.id)
        return self._found(machine.id, port)

    async def list(self, tenant: str, machine_id: str) -> builtins.list[Port]:
        """By number."""
        machine = await self._machines.get(tenant, machine_id)
        found = await self._store.read(lambda c: rows.of_machine(c, machine.id))
        return [Port(**row) for row in found]

    async def get(self, tenant: str, machine_id: str, port: int) -> Port:
        """Raises PORT_NOT_FOUND."""
        machine = await self._machines.get(tenant, machine_id)
        return self._found(machine.id, port)

    async def patch(
        self,
        tenant: str,
        machine_id: str,
        port: int,
        *,
        visibility: str | Unset = UNSET,
        name: str | Unset | None = UNSET,
    ) -> Port:
        """What is open there ends where it is not for everybody any more. Raises as ``create``, PORT_NOT_FOUND."""
        found = await self.get(tenant, machine_id, port)
        values: dict[str, Any] = {}
        if visibility is not UNSET:
            values["visibility"] = visibility
        if name is not UNSET:
            values["name"] = name
        _check(
            port,
            found.protocol,
            values.get("visibility", found.visibility),
            values.get("name", found.name),
        )
        if values:
            await self._write(
                lambda c: rows.update(c, found.id, values), tenant, values.get("name")
            )
            await self._look(machine_id)
        return self._found(machine_id, port)

    async def delete(self, tenant: str, machine_id: str, port: int) -> None:
        """At once, also for what is open there. Raises PORT_NOT_FOUND."""
        found = await self.get(tenant, machine_id, port)
        await self._store.write(lambda c: rows.delete(c, found.id))
        await self._look(machine_id)

    async def link(self, tenant: str, machine_id: str, port: int, ttl_seconds: int) -> Link:
        """A URL that opens the port for whoever has it. Raises VALIDATION_FAILED, PORT_NOT_FOUND."""
        found = await self.get(tenant, machine_id, port)
        base = self.url(found)
        if base is None:
            raise UnsupportedError(
                "Links open HTTP ports, one each: a tcp port is reached with roost port-forward, and of every port "
                "(0) show the one you mean by itself."
            )
        if not 1 <= ttl_seconds <= LINK_MAX_S:
            raise limits.bad("ttl_seconds", f"is from 1 to {LINK_MAX_S}")
        expires = int(self._clock.now().timestamp()) + ttl_seconds
        token = self._links.make(found, expires)
        return Link(f"{base}/?roost_token={token}", datetime.fromtimestamp(expires, UTC))

    async def end_links(self, tenant: str, machine_id: str, port: int) -> None:
        """No link made so far opens the port any more. Raises PORT_NOT_FOUND."""
        found = await self.get(tenant, machine_id, port)
        salt = secrets.token_hex(16)
        await self._store.write(lambda c: rows.update(c, found.id, {"salt": salt}))
        await self._look(machine_id)

    @staticmethod
    def hand_over(connection: sa.Connection, machine_id: str, to: str) -> builtins.list[str]:
        """The one machine's ports are the other's, in a transaction after which ``handed_over`` is called. Where both
        show the same, the one handed over stays. In words what there was. Raises QUOTA_EXCEEDED."""
        moved = {row["port"] for row in rows.of_machine(connection, machine_id)}
        own = {row["port"] for row in rows.of_machine(connection, to)}
        _require_room(len(own - moved), len(moved))
        rows.hand_over(connection, machine_id, to)
        return [f"port {each}" for each in sorted(moved)]

    async def handed_over(self, machine_id: str, to: str) -> None:
        """What is open on them ends, and leads to the other machine from now on."""
        await self._look(machine_id, to)

    # --- helpers --------------------------------------------------------------------------------

    def _found(self, machine_id: str, port: int) -> Port:
        found = self._of.get(machine_id, {}).get(port)
        if found is None:
            raise NotFoundError(
                f"Port {port} of this machine is not shown outside: POST /v1/machines/{machine_id}/ports first.",
                code="PORT_NOT_FOUND",
                details={"port": port},
            )
        return found

    async def _write(
        self, fn: Callable[[sa.Connection], None], tenant: str, name: str | None
    ) -> None:
        def whole(connection: sa.Connection) -> None:
            fn(connection)
            if name is not None:
                _claim(connection, tenant, name)

        try:
            await self._store.write(whole)
        except IntegrityError as error:
            raise _taken(name) from error

    def _changed(self, machine_id: str) -> None:
        if machine_id in self._of:  # its end takes its ports along
            task = asyncio.get_running_loop().create_task(self._look(machine_id))
            self._looking.add(task)
            task.add_done_callback(self._looking.discard)

    async def _look(self, *machine_ids: str) -> None:
        """Memory as the rows are; who listens hears of what is not as it was."""

        def read(connection: sa.Connection) -> dict[str, Port]:
            every = [row for each in machine_ids for row in rows.of_machine(connection, each)]
            return {row["id"]: Port(**row) for row in every}

        async with self._one:
            found = await self._store.read(read)
            self.version += 1
            before = [port for each in machine_ids for port in self._of.pop(each, {}).values()]
            self._named = {n: p for n, p in self._named.items() if p.machine_id not in machine_ids}
            for port in before:
                self._hosts.pop((port.host_id, port.port), None)
            for port in found.values():
                self._put(port)
        for port in before:
            if port.port == EVERY and port.id not in found:
                self._ended[port.host_id] = None
                if len(self._ended) > ENDED:
                    self._ended.popitem(last=False)
            if port != found.get(port.id):
                for listener in self._listeners:
                    listener(port.id)

    def _put(self, port: Port) -> None:
        self._of[port.machine_id][port.port] = port
        self._hosts[port.host_id, port.port] = port
        if port.name is not None:
            self._named[port.name] = port


def _claim(connection: sa.Connection, tenant: str, name: str) -> None:
    """The name is the tenant's for good: browsers keep what was at an origin, and would show it the next one's."""
    owner = rows.owner(connection, name)
    if owner == tenant:
        return
    if owner is not None:
        raise _taken(name)
    if (used := rows.names(connection, tenant)) >= NAMES:
        raise LimitError(
            f"You had {NAMES} names of ports, the most there may be: take one of those.",
            code="QUOTA_EXCEEDED",
            details={"quota": "port_names", "limit": NAMES, "used": used, "asked": 1},
        )
    rows.claim(connection, name, tenant)


def _require_room(have: int, more: int) -> None:
    if have + more > PORTS:
        raise LimitError(
            f"A machine shows {PORTS} ports at most: remove some first.",
            code="QUOTA_EXCEEDED",
            details={"quota": "ports", "limit": PORTS, "used": have, "asked": more},
        )


def _taken(name: str | None) -> ConflictError:
    return ConflictError(
        f"The name {name} is taken: choose another one.",
        code="ALREADY_EXISTS",
        details={"name": name},
    )


def _require_here(phase: str | None) -> None:
    if phase in _GONE:
        raise ConflictError(
            f"The machine is {phase}: it shows nothing any more.",
            details={"phase": phase},
        )


def _check(port: int, protocol: str, visibility: str, name: str | None) -> None:
    """Raises VALIDATION_FAILED naming the field."""
    if not 0 <= port <= 65535 or port == AGENT_PORT:
        raise limits.bad(
            "port",
            f"is from 1 to 65535 and not {AGENT_PORT}, which is Roost's own; 0 is every one",
        )
    if port == EVERY and (protocol != "http" or name is not None):
        raise limits.bad("port", "0 is every port: by http, and without a name")
    if protocol not in ("http", "tcp"):
        raise limits.bad("protocol", "is http or tcp")
    if visibility not in ("private", "public"):
        raise limits.bad("visibility", "is private or public")
    if protocol == "tcp" and visibility == "public":
        raise limits.bad(
            "visibility", "is private for tcp: roost port-forward reaches it with a key"
        )
    if name is not None and not places.is_name(name):
        raise limits.bad(
            "name", "is 1-63 of [a-z0-9-], not a reserved one and not of the form PORT-ID"
        )
