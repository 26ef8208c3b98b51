"""What a machine can ask, one method each; who asks is given by whoever took the request in.

GET  /v1/status  /v1/usage  /v1/budget  /v1/ports      every machine, of itself
POST /v1/ports   DELETE /v1/ports/{port}               expose; publish for everybody's
POST /v1/forks   GET /v1/forks/{key}                   fork
POST /v1/sleep                                         sleep
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
import structlog

from roost import ids
from roost.engine.allowance import NAMES, Allowance
from roost.engine.engine import Engine
from roost.engine.machine import Machine
from roost.engine.transitions import amend, load
from roost.errors import (
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    LimitError,
    NotFoundError,
    RoostError,
    discreet,
)
from roost.services import asking, machines
from roost.services.audit import Audit
from roost.services.inside.forks import Forks
from roost.services.inside.said import Answer, Asked, Body, lines, refusal, time
from roost.services.machines import Machines
from roost.services.models import UNSET, ForkMachine, Port, Role
from roost.services.ports import PORTS, Ports
from roost.services.usage import Usage

log = structlog.get_logger(__name__)

SLEEP_AFTER_S = 0.5  # in which who asked hears that it will, and ends
REFUSALS_S = 60.0  # of one thing to one machine, in the audit log
_KEY = re.compile(r"[0-9a-f]{16,64}", re.ASCII)
_FORK = re.compile(r"/v1/forks/([0-9a-f]{16,64})", re.ASCII)
_PORT = re.compile(r"/v1/ports/([0-9]{1,5})", re.ASCII)


Work = Callable[[Machine, Asked], Awaitable[Answer]]


class Requests:
    def __init__(
        self, engine: Engine, machines: Machines, ports: Ports, usage: Usage, audit: Audit
    ) -> None:
        self._engine = engine
        self._machines = machines
        self._ports = ports
        self._usage = usage
        self._audit = audit
        self._forks = Forks(engine.clock.monotonic)
        self._refused: dict[tuple[str, str], float] = {}  # machine and action; monotonic seconds

    async def close(self) -> None:
        await self._forks.close()

    async def answer(self, machine: Machine, asked: Asked) -> Answer:
        """Never raises. ``machine`` is whose stream it came on. Nothing is woken for it."""
        asking.only_reads()
        action, code = None, None
        try:
            action, work = self._route(asked)
            answer = await work(machine, asked)
        except RoostError as failure:
            told = discreet(failure)
            code, answer = failure.code, refusal(told)
        except Exception as failure:
            log.error("inside.failed", machine_id=machine.id, exc_info=failure)
            code = "INTERNAL"
            answer = refusal(RoostError("The daemon failed; its log says why."))
        if action is not None:
            await self._note(machine, asked, action, answer.status, code)
        return answer

    def _route(self, asked: Asked) -> tuple[str | None, Work]:
        """With what it is in the audit log, where it changes something. Raises NOT_FOUND, METHOD_NOT_ALLOWED."""
        path, method = asked.path, asked.method
        reads = {
            "/v1/status": self._status,
            "/v1/usage": self._used,
            "/v1/budget": self._budget,
            "/v1/ports": self._shown,
        }
        changes = {
            "/v1/ports": ("inside_expose", self._expose),
            "/v1/forks": ("inside_fork", self._fork),
            "/v1/sleep": ("inside_sleep", self._sleep),
        }
        match method:
            case "GET" if path in reads:
                return None, reads[path]
            case "GET" if _FORK.fullmatch(path):
                return None, self._forked
            case "POST" if path in changes:
                return changes[path]
            case "DELETE" if _PORT.fullmatch(path):
                return "inside_unexpose", self._unexpose
        if path in reads or path in changes or _FORK.fullmatch(path) or _PORT.fullmatch(path):
            raise InvalidRequestError(f"{path} has no {method}.", code="METHOD_NOT_ALLOWED")
        raise NotFoundError("Nothing is served at this path: roost help shows what there is.")

    # --- of itself ------------------------------------------------------------------------------

    async def _status(self, machine: Machine, asked: Asked) -> Answer:
        m = await self._machines.get(machine.tenant_id, machine.id)
        ports = await self._ports.list(m.tenant_id, m.id)
        data = {
            "machine_id": m.id,
            "name": m.name,
            "key": m.key,
            "phase": m.phase,
            "template": m.template,
            "vcpu": m.vcpu,
            "memory_mib": m.memory_mib,
            "storage_gib": m.storage_gib,
            "isolation": m.isolation,
            "memory_kept": m.memory_kept,
            "egress": m.egress.mode.value,
            "autosleep_seconds": m.autosleep_seconds,
            "created_at": time(m.created_at),
            "expires_at": time(m.expires_at),
            "allow": list(m.inside.allow),
            "ports": [self._port(each) for each in ports],
        }
        sleeps = "never" if m.autosleep_seconds is None else f"after {m.autosleep_seconds} s idle"
        text = lines(
            [
                ("id", m.id),
                ("name", m.name),
                ("key", m.key),
                ("phase", m.phase),
                ("template", m.template),
                ("size", f"{m.vcpu:g} vCPU, {m.memory_mib} MiB, {m.storage_gib} GiB disk"),
                ("isolation", f"{m.isolation['claim']} [{m.driver}]"),
                ("egress", m.egress.mode.value),
                ("sleeps", sleeps),
                ("expires", time(m.expires_at)),
                ("may", ", ".join(m.inside.allow) or "look at itself"),
                *((f"port {each.port}", self._ports.url(each) or each.protocol) for each in ports),
            ]
        )
        return Answer(200, data, text)

    async def _used(self, machine: Machine, asked: Asked) -> Answer:
        now = await self._machines.usage(machine.tenant_id, machine.id)
        amounts, cost = await self._usage.of_machine(machine.tenant_id, machine.id)
        total = {
            "days": 30,
            "vcpu_seconds": float(amounts.vcpu_seconds),
            "memory_gib_seconds": float(amounts.memory_gib_seconds),
            "storage_gib_hours": float(amounts.storage_gib_hours),
            "egress_bytes": amounts.egress_bytes,
            "cost": str(cost),
        }
        data = {"now": {name: getattr(now, name) for name in now.__slots__}, "total": total}
        disk = None
        if now.disk_used_bytes is not None and now.disk_total_bytes is not None:
            disk = f"{_mib(now.disk_used_bytes)} of {_mib(now.disk_total_bytes)}"
        limit = now.memory_limit_bytes
        text = lines(
            [
                ("memory", _mib(now.memory_bytes) + (f" of {_mib(limit)}" if limit else "")),
                ("cpu", f"{now.cpu_usage_us / 1e6:.1f} s"),
                ("processes", now.pids),
                ("disk", disk),
                ("in 30 days", f"{amounts.vcpu_seconds:.0f} vCPU-seconds"),
                ("", f"{amounts.memory_gib_seconds:.0f} GiB-seconds of memory"),
                ("", f"{amounts.storage_gib_hours:.2f} GiB-hours of disk"),
                ("", f"{_mib(amounts.egress_bytes)} sent"),
                ("cost", cost),
            ]
        )
        return Answer(200, data, text)

    async def _budget(self, machine: Machine, asked: Asked) -> Answer:
        m = await self._machines.get(machine.tenant_id, machine.id)
        ports = len(await self._ports.list(m.tenant_id, m.id))
        left = self._left(m)
        budgets = {
            "forks": (m.inside.forks if m.inside.may("fork") else 0, m.inside.forked),
            "ports": (PORTS if m.inside.may("expose") else 0, ports),
            "names": (NAMES if m.inside.may("expose") else 0, m.inside.named),
        }
        data = {
            "allow": list(m.inside.allow),
            "expires_at": time(m.expires_at),
            "seconds_left": left,
            "vcpu": m.vcpu,
            "memory_mib": m.memory_mib,
            "storage_gib": m.storage_gib,
            **{
                name: {"limit": limit, "used": used, "left": max(0, limit - used)}
                for name, (limit, used) in budgets.items()
            },
        }
        text = lines(
            [
                ("may", ", ".join(m.inside.allow) or "look at itself"),
                ("time", "no end" if left is None else f"{left} s"),
                *(
                    (name, f"{max(0, limit - used)} of {limit} left")
                    for name, (limit, used) in budgets.items()
                ),
            ]
        )
        return Answer(200, data, text)

    async def _shown(self, machine: Machine, asked: Asked) -> Answer:
        ports = await self._ports.list(machine.tenant_id, machine.id)
        shown = [self._port(each) for each in ports]
        text = "\n".join(
            f"{p['port']}  {p['visibility']}  {p['url'] or p['protocol']}" for p in shown
        )
        return Answer(200, {"items": shown}, text)

    # --- what its owner allows ------------------------------------------------------------------

    async def _expose(self, machine: Machine, asked: Asked) -> Answer:
        body = Body(asked.body)
        port, name, public = body.number("port"), body.text("name"), body.flag("public")
        body.end()
        tenant = machine.tenant_id
        await self._require(machine, *(("expose", "publish") if public else ("expose",)))
        visibility = "public" if public else "private"
        have = {each.port: each for each in await self._ports.list(tenant, machine.id)}.get(port)
        if have is not None and not have.from_inside:
            if have.visibility != visibility or name not in (None, have.name):
                raise ConflictError(
                    f"Port {port} is shown already, as its owner wants it: {self._ports.url(have)}",
                    code="ALREADY_EXISTS",
                    details=self._port(have),
                )
            return self._exposed(have, 200)
        takes_name = name is not None and (have is None or have.name != name)
        if takes_name:
            await self._spend(machine, "expose", names=1)
        try:
            if have is None:
                made = await self._ports.create(
                    tenant, machine.id, port, visibility=visibility, name=name, from_inside=True
                )
            elif have.visibility != visibility or takes_name:
                named = name if takes_name else UNSET
                made = await self._ports.patch(
                    tenant, machine.id, port, visibility=visibility, name=named
                )
            else:
                made = have
        except BaseException:
            if takes_name:
                await asyncio.shield(self._spend(machine, None, names=-1))
            raise
        return self._exposed(made, 201 if have is None else 200)

    def _exposed(self, port: Port, status: int) -> Answer:
        url = self._ports.url(port)
        return Answer(status, self._port(port), url or f"{port.protocol} {port.port}")

    async def _unexpose(self, machine: Machine, asked: Asked) -> Answer:
        match = _PORT.fullmatch(asked.path)
        assert match is not None
        port = int(match[1])
        await self._require(machine, "expose")
        have = await self._ports.get(machine.tenant_id, machine.id, port)
        if not have.from_inside:
            raise ForbiddenError(f"Port {port} was shown by this machine's owner, not by itself.")
        await self._ports.delete(machine.tenant_id, machine.id, port)
        return Answer(200, {"port": port}, f"{port} is shown no more")

    async def _fork(self, machine: Machine, asked: Asked) -> Answer:
        body = Body(asked.body)
        key, count, name = body.text("key"), body.number("count", 1), body.text("name")
        inherit = body.flag("inherit")
        body.end()
        if key is None or not _KEY.fullmatch(key):
            raise InvalidRequestError(
                "key is 16 to 64 lower-case hex digits, new for each fork: ask for it again by that.",
                details={"field": "key"},
            )
        if not 1 <= count <= machines.MAX_CHILDREN:
            raise InvalidRequestError(
                f"count is from 1 to {machines.MAX_CHILDREN}.", details={"field": "count"}
            )
        begun = Answer(202, {"key": key, "status": "running"}, key)
        if self._forks.known(machine.id, key):
            return begun
        self._forks.check(machine.id)
        now = await self._spend(machine, "fork", forks=count)
        if self._forks.known(machine.id, key):  # asked for twice at the same time
            await self._spend(machine, None, forks=-count)
            return begun
        wanted = ForkMachine(
            count=count,
            name=name,
            ttl_seconds=self._left(now),  # a copy's end is no later than its parent's
            created_by=now.created_by,
            inside=now.inside.for_copies if inherit else Allowance(forks=0),
        )
        self._forks.begin(machine.id, key, self._copies(machine, wanted))
        return begun

    async def _copies(self, machine: Machine, wanted: ForkMachine) -> list[Machine]:
        try:
            return await self._machines.fork(machine.tenant_id, machine.id, wanted)
        except BaseException:
            await asyncio.shield(self._spend(machine, None, forks=-wanted.count))
            raise

    async def _forked(self, machine: Machine, asked: Asked) -> Answer:
        match = _FORK.fullmatch(asked.path)
        assert match is not None
        parent_id, children = await self._forks.look(machine.id, match[1])
        if children is None:
            return Answer(202, {"key": match[1], "status": "running"}, match[1])
        if parent_id != machine.id:
            data: dict[str, Any] = {"role": "child", "machine_id": machine.id, "parent": parent_id}
            return Answer(200, data, "child")
        made = [each.id for each in children]
        return Answer(
            200, {"role": "parent", "machine_id": machine.id, "children": made}, "\n".join(made)
        )

    async def _sleep(self, machine: Machine, asked: Asked) -> Answer:
        body = Body(asked.body)
        tier = body.text("tier")
        body.end()
        machines.check_tier(await self._require(machine, "sleep"), tier)
        self._engine.background(self._sleeps(machine, tier))
        data = {"status": "accepted", "in_ms": int(SLEEP_AFTER_S * 1000)}
        return Answer(202, data, "it sleeps in a moment")

    async def _sleeps(self, machine: Machine, tier: str | None) -> None:
        await asyncio.sleep(SLEEP_AFTER_S)
        try:
            await self._machines.sleep(machine.tenant_id, machine.id, tier)
        except RoostError as failure:
            log.warning("inside.sleep", machine_id=machine.id, error=failure.code)

    # --- helpers --------------------------------------------------------------------------------

    async def _require(self, machine: Machine, *what: str) -> Machine:
        """As it is now. Raises FORBIDDEN."""
        now = await self._machines.get(machine.tenant_id, machine.id)
        for each in what:
            _check(now, each)
        return now

    async def _spend(
        self, machine: Machine, what: str | None, *, forks: int = 0, names: int = 0
    ) -> Machine:
        """Durable before anything is made of it; less than nothing gives back. Raises FORBIDDEN where ``what`` is
        not allowed, QUOTA_EXCEEDED."""
        engine = self._engine

        def fn(connection: sa.Connection) -> Machine:
            now = load(connection, machine.id)
            if what is not None:
                _check(now, what)
            spent = replace(
                now.inside,
                forked=max(0, now.inside.forked + forks),
                named=max(0, now.inside.named + names),
            )
            _check_budget("forks", now.inside.forks, now.inside.forked, forks)
            _check_budget("names", NAMES, now.inside.named, names)
            return amend(connection, machine.id, {"inside": spent.to_json()}, engine.clock.now())

        now = await engine.store.write(fn)
        engine.amended(now)
        return now

    def _left(self, machine: Machine) -> int | None:
        """Seconds to its end; None: it has none."""
        if machine.expires_at is None:
            return None
        return max(1, math.floor((machine.expires_at - self._engine.clock.now()).total_seconds()))

    def _port(self, port: Port) -> dict[str, Any]:
        return {
            "port": port.port,
            "protocol": port.protocol,
            "visibility": port.visibility,
            "name": port.name,
            "url": self._ports.url(port),
            "own": port.from_inside,
        }

    async def _note(
        self, machine: Machine, asked: Asked, action: str, status: int, code: str | None
    ) -> None:
        """The line in the audit log, with the machine as who did it. A refusal is told once a minute: who is refused
        again and again must not fill it."""
        if status >= 400:
            now, about = self._engine.clock.monotonic(), (machine.id, action)
            self._refused = {k: at for k, at in self._refused.items() if at > now - REFUSALS_S}
            if about in self._refused:
                return
            self._refused[about] = now
        entry = {
            "tenant_id": machine.tenant_id,
            "key_id": machine.id,
            "role": Role.MACHINE.value,
            "action": action,
            "method": asked.method,
            "path": asked.path[:300],
            "machine_id": machine.id,
            "peer": "inside",
            "status": status,
            "error_code": code,
            "request_id": ids.new(),
        }
        await self._audit.record(entry, status < 400)


def _check(machine: Machine, what: str) -> None:
    if not machine.inside.may(what):
        raise ForbiddenError(
            f"This machine may not {what}: its owner allows it with allow_inside (roost inside {machine.id}"
            f" --allow {what}).",
            details={"allow": list(machine.inside.allow), "asked": what},
        )


def _check_budget(name: str, limit: int, used: int, asked: int) -> None:
    if asked > 0 and used + asked > limit:
        raise LimitError(
            f"This machine may have {limit} {name} in its life: {used} were made, and {asked} more were asked.",
            code="QUOTA_EXCEEDED",
            details={"quota": f"inside_{name}", "limit": limit, "used": used, "asked": asked},
        )


def _mib(number: int) -> str:
    return f"{number / 2**20:.1f} MiB"
