"""Routes: named hosts of the preview domain, each onto a port of a machine, for everybody.

A route is a native port with a name. The machine's own is named as the machine; unless it was pinned it is in auto mode:
its port is looked for inside whenever the routes are listed, or it is set to auto. Nobody watches in between.
"""

from __future__ import annotations

import functools

import structlog

from roost.api.v1.services import Services
from roost.dialects.boxd import names, shapes
from roost.dialects.boxd.wire import boxd_pb2 as pb
from roost.engine.machine import Machine
from roost.errors import ConflictError, InvalidRequestError, NotFoundError, RoostError
from roost.gateway.calls import Call, Method
from roost.services.executions import StartExecution
from roost.services.models import PatchMachine, Port, Role
from roost.services.ports import OWN

log = structlog.get_logger(__name__)

FIRST = (80, 3000, 8080, 8000, 5173, 5000)  # where web servers usually listen, the likeliest first
_NEVER = OWN | {22}  # by itself, that is: a browser's or a kernel's port would be everybody's
_LISTENS = "0A"
_LOOK_MS = 5000


class Proxies:
    def __init__(self, services: Services) -> None:
        self._s = services

    def methods(self) -> list[Method]:
        return [
            Method("ListProxies", pb.ListProxiesRequest, self.listed, reads=True),
            Method("CreateProxy", pb.CreateProxyRequest, self.create),
            Method("DeleteProxy", pb.DeleteProxyRequest, self.delete),
            Method("SetProxyPort", pb.SetProxyPortRequest, self.set_port),
        ]

    # --- calls ----------------------------------------------------------------------------------

    async def listed(self, call: Call, asked: pb.ListProxiesRequest) -> pb.ListProxiesResponse:
        machine = await self._named(call, asked)
        own, others = await self._routes(call.tenant, machine)
        auto = shapes.LOCKED not in machine.labels
        if auto and call.who.role is not Role.READ_ONLY and self._s.machines.runs(machine.id):
            try:
                own = await self._follow(call.tenant, machine, own)
            except RoostError as failure:  # it is shown as it was
                log.info("boxd.route", machine_id=machine.id, error_code=failure.code)
        shown = [self._info(machine, "", own, auto)] + [
            self._info(machine, _route(machine, each) or "", each, False) for each in others
        ]
        return pb.ListProxiesResponse(proxies=shown)

    async def create(self, call: Call, asked: pb.CreateProxyRequest) -> pb.CreateProxyResponse:
        machine = await self._named(call, asked)
        made = await self._create(call.tenant, machine, _required(asked.name), asked.port)
        return pb.CreateProxyResponse(
            name=asked.name,
            vm_name=names.of_machine(machine),
            domain=shapes.domain(self._s.ports.places, str(made.name)),
            port=made.port,
        )

    async def delete(self, call: Call, asked: pb.DeleteProxyRequest) -> pb.Empty:
        machine = await self._named(call, asked)
        found = await self._find(call.tenant, machine, _required(asked.name))
        await self._s.ports.delete(call.tenant, machine.id, found.port)
        return pb.Empty()

    async def set_port(self, call: Call, asked: pb.SetProxyPortRequest) -> pb.Empty:
        machine = await self._named(call, asked)
        if asked.port == "auto":
            if asked.name:
                raise InvalidRequestError("port: a named route is pinned to a port.")
            await self._lock(call.tenant, machine, False)
            own, _ = await self._routes(call.tenant, machine)
            await self._follow(call.tenant, machine, own)
            return pb.Empty()
        port = _number(asked.port)
        if not asked.name:
            own, _ = await self._routes(call.tenant, machine)
            await self._move(call.tenant, machine, "", own, port)
            await self._lock(call.tenant, machine, True)
            return pb.Empty()
        found = await self._find(call.tenant, machine, asked.name)
        await self._move(call.tenant, machine, asked.name, found, port)
        return pb.Empty()

    def label(self, machine: Machine) -> str:
        """Of its own route, which may not be there yet."""
        name = names.label(machine)
        there = self._s.ports.at(name)
        mine = there is None or there.tenant_id == machine.tenant_id
        return name if mine else names.aside(name, machine.id)

    # --- for machines being made ----------------------------------------------------------------

    def check(self, machine: str, config: pb.VmConfig) -> None:
        """Before there is one. Raises VALIDATION_FAILED."""
        for each in config.network.proxies:
            names.port_name(machine, _required(each.name))
            _require_port(each.port)

    async def make(self, tenant: str, machine: Machine, config: pb.VmConfig) -> None:
        for each in config.network.proxies:
            await self._create(tenant, machine, each.name, each.port)

    async def inherit(self, tenant: str, parent: Machine, child: Machine) -> None:
        """The parent's routes under the child's name. One that cannot be is left out: the machine is there."""
        own, others = await self._routes(tenant, parent)
        for each in ([own] if own else []) + others:
            try:
                name = _route(parent, each) or ""
                await self._create(tenant, child, name, each.port, each.visibility)
            except RoostError as failure:
                log.info("boxd.route_left_out", machine_id=child.id, error_code=failure.code)

    # --- helpers --------------------------------------------------------------------------------

    async def _named(self, call: Call, asked: object) -> Machine:
        which = getattr(asked, "vm", "") or getattr(asked, "vm_name", "")
        return await shapes.named(self._s, call, which)

    async def _routes(self, tenant: str, machine: Machine) -> tuple[Port | None, list[Port]]:
        """Its own, and the others, by port."""
        own, others = None, []
        for each in await self._s.ports.list(tenant, machine.id):
            route = _route(machine, each)
            if route == "":
                own = each
            elif route is not None:
                others.append(each)
        return own, others

    async def _find(self, tenant: str, machine: Machine, name: str) -> Port:
        _, others = await self._routes(tenant, machine)
        for each in others:
            if _route(machine, each) == name:
                return each
        raise NotFoundError(f"This machine has no route {name[:63]!r}.", code="PORT_NOT_FOUND")

    async def _create(
        self, tenant: str, machine: Machine, route: str, port: int, visibility: str = "public"
    ) -> Port:
        _require_port(port)
        name = names.port_name(names.label(machine), route)
        make = functools.partial(
            self._s.ports.create, tenant, machine.id, port, visibility=visibility
        )
        try:
            return await make(name=name)
        except (ConflictError, InvalidRequestError) as failure:
            if "name" not in (*failure.details, failure.details.get("field")):
                raise
        return await make(name=names.aside(name, machine.id))

    async def _move(
        self, tenant: str, machine: Machine, route: str, found: Port | None, port: int
    ) -> Port:
        """Onto another port, for whom it was: its owner may have made it private."""
        if found is not None and found.port == port:
            return found
        _require_port(port)
        if any(each.port == port for each in await self._s.ports.list(tenant, machine.id)):
            raise InvalidRequestError(
                f"port: {port} has a route already; one port has one here.",
                details={"field": "port"},
            )
        if found is None:
            return await self._create(tenant, machine, route, port)
        await self._s.ports.delete(tenant, machine.id, found.port)
        return await self._create(tenant, machine, route, port, found.visibility)

    async def _follow(self, tenant: str, machine: Machine, own: Port | None) -> Port | None:
        """Its own route onto what listens inside now; as it was where nothing does."""
        taken = {each.port for each in await self._s.ports.list(tenant, machine.id)}
        if own is not None:
            taken.discard(own.port)
        port = choose(
            [each for each in await self._listening(tenant, machine) if each not in taken]
        )
        return own if port is None else await self._move(tenant, machine, "", own, port)

    async def _listening(self, tenant: str, machine: Machine) -> list[int]:
        look = StartExecution(
            ["cat", "/proc/net/tcp", "/proc/net/tcp6"],
            timeout_ms=_LOOK_MS,
            keep_awake=False,
            ours=True,
        )
        try:
            said = await self._s.executions.run(tenant, machine.id, look)
        except RoostError:
            return []
        return listening((said.stdout or b"").decode(errors="replace"))

    async def _lock(self, tenant: str, machine: Machine, locked: bool) -> None:
        labels = {k: v for k, v in machine.labels.items() if k != shapes.LOCKED}
        if locked:
            labels[shapes.LOCKED] = "locked"
        if labels != dict(machine.labels):
            await self._s.machines.patch(tenant, machine.id, PatchMachine(labels=labels))

    def _info(self, machine: Machine, route: str, found: Port | None, auto: bool) -> pb.ProxyInfo:
        label = self.label(machine) if found is None else str(found.name)
        port = 0 if found is None else found.port
        return pb.ProxyInfo(
            name=route,
            vm_name=names.of_machine(machine),
            vm_id=machine.id,
            domain=shapes.domain(self._s.ports.places, label),
            port=0 if auto else port,
            effective_port=port,
            is_default=not route,
            port_mode="auto" if auto else "locked",
        )


def _route(machine: Machine, port: Port) -> str | None:
    if port.name is None:
        return None
    return names.route(names.label(machine), port.name, machine.id)


def listening(table: str) -> list[int]:
    """The ports of what /proc/net/tcp and tcp6 say listen."""
    found = set()
    for line in table.splitlines():
        fields = line.split()
        if len(fields) > 3 and fields[3] == _LISTENS:
            try:
                found.add(int(fields[1].rpartition(":")[2], 16))
            except ValueError:
                continue
    return sorted(found)


def choose(ports: list[int]) -> int | None:
    """The likeliest web server of them."""
    there = [each for each in ports if each not in _NEVER]
    return next((each for each in FIRST if each in there), there[0] if there else None)


def _required(name: str) -> str:
    if not name:
        raise InvalidRequestError(
            "name: a route beside the machine's own has one.", details={"field": "name"}
        )
    return name


def _require_port(port: int) -> None:
    if not port:
        raise InvalidRequestError(
            "port: say which; only the machine's own route finds it by itself.",
            details={"field": "port"},
        )


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 5:
        raise InvalidRequestError("port: a number, or auto.", details={"field": "port"})
    return int(text)
