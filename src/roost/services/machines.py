"""Machines: the one door to the life of machines."""

from __future__ import annotations

import asyncio
import builtins
import hmac
import json
import socket
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from roost import claims, ids
from roost.drivers.interface import Capabilities
from roost.egress.policy import Policy
from roost.engine import egress, quotas, reservations
from roost.engine.allowance import Allowance
from roost.engine.engine import REMEMBER_DESTROYED, Engine, check_revision
from roost.engine.flows import config_of
from roost.engine.lifecycle import HOLDING, Desired, Phase, Tier
from roost.engine.machine import Machine, capabilities_to_json
from roost.engine.samples import stats_of
from roost.engine.transitions import amend, load, not_found
from roost.errors import (
    ConflictError,
    InternalError,
    LimitError,
    MachineError,
    RoostError,
    UnsupportedError,
)
from roost.services import asking, captured, limits, volumes
from roost.services.bakes import Bakes, alike, columns
from roost.services.models import (
    UNSET,
    Attach,
    CreateMachine,
    ForkMachine,
    Live,
    MachineEvent,
    MachineUsage,
    Page,
    PatchMachine,
    Sample,
)
from roost.services.rates import Windows
from roost.services.templates import HOST, Templates
from roost.services.warm import Warm
from roost.store import machines as rows
from roost.store import tenants
from roost.store.cursor import Cursors

if TYPE_CHECKING:
    from roost.agent.client import AgentClient

ROOM_BYTES = 64 * 2**20  # that must be free in the pool for one more disk
MAX_CHILDREN = 100  # of one fork
_TRIES = 20


class Machines:
    """Every call takes the caller's tenant first; another tenant's machine answers MACHINE_NOT_FOUND.

    Operations go on when their caller goes away. ``if_match`` is the revision the caller saw
    (REVISION_MISMATCH otherwise).
    """

    def __init__(self, engine: Engine, templates: Templates, bakes: Bakes, warm: Warm) -> None:
        self._engine = engine
        self.clock = engine.clock
        self._bakes = bakes
        self._warm = warm
        self._store = engine.store
        self._templates = templates
        self._cursors = Cursors(engine.identity.secret)
        self._forks = Windows(engine.clock.monotonic)
        self._ensuring: dict[tuple[str, str], asyncio.Task[tuple[Machine, bool]]] = {}

    async def create(self, tenant: str, req: CreateMachine, wait: bool = True) -> Machine:
        """A running machine; with ``wait=False`` an accepted one.

        Raises VALIDATION_FAILED, TEMPLATE_NOT_FOUND, INVALID_STATE (template not built), RUNG_UNAVAILABLE,
        RUNG_REFUSED (the profile, or what its tenant is held to), ALREADY_EXISTS (the key; details.machine_id), SNAPSHOT_INVALID (it is quarantined), QUOTA_EXCEEDED, CAPACITY_EXCEEDED, STORAGE_FULL: nothing
        was made; so VOLUME_NOT_FOUND, VOLUME_IN_USE, UNSUPPORTED (a microVM's volume, in a container).
        TEMPLATE_NOT_READY: it runs, but what its template starts does not. Any other error with
        details.machine_id (MACHINE_FAILED, TIMEOUT, ...) but ALREADY_EXISTS: the machine exists as ``failed``.
        """
        limits.check_create(req)
        if req.snapshot is not None:
            row = await captured.find(self._store, tenant, req.snapshot)
            if req.volumes:  # what is in memory knows another machine's disks
                req = replace(req, memory=False)
            if req.memory:
                captured.require_sound(row)
            with self._engine.holding(row["id"]):
                return await self._create_from(tenant, row, req, wait)
        engine = self._engine
        if req.isolation == "auto" and req.driver is None:
            await engine.rungs.decide()
        least = await self._store.read(lambda c: engine.least(c, tenant, req.unrestricted))
        driver, capabilities = engine.rungs.choose(req.isolation, req.driver, least)
        egress.require_enforced(self._policy(req), driver, capabilities)
        _check_run_as(req.run_as, capabilities)
        if not capabilities.disk_image:
            return await self._create_directory(tenant, req, driver, capabilities, wait)
        template = await self._templates.resolve(tenant, req.template)
        config = template.config
        size = self._bakes.fit(config, driver, limits.size(req, config), req.env)
        reservations.check_size(engine.host(), size.vcpu, size.memory_mib)
        await engine.parts.storage.require(ROOM_BYTES)
        # Who does not wait is answered at once: what may take minutes is then done in the machine's line.
        baked = not req.volumes and self._bakes.bakes(config, driver, req.env)
        later = not wait and baked
        if not (later and engine.rungs.driver(driver).undecided):
            capabilities = await engine.rungs.prepared(driver)
        values = {
            **self._asked(tenant, req),
            **columns(template, driver, capabilities, size),
            "env": dict(req.env),
        }

        # For nothing a warm machine would be spent or a bake made; what holds is checked where it is reserved.
        def check(connection: sa.Connection) -> None:
            quotas.check(connection, tenant, quotas.of_machine(values))
            _check_key(connection, tenant, req.key)
            volumes.resolve(connection, tenant, req.volumes, capabilities.raw_disk)

        await self._store.read(check)
        if req.volumes:  # a bake knows no disk but its own, and none can be plugged in
            return await self._make(tenant, values, config, wait, attach=req.volumes)
        machine = None
        if alike(config, req.env) and not req.unrestricted:
            try:
                machine = await self._warm.take(values)
            except IntegrityError as error:
                raise await self._taken(tenant, req.key, error) from error
        if machine is None and later:
            machine = await self._make(tenant, values, config, wait, find_source=True)
        elif machine is None:
            async with self._bakes.source(template, driver, size, req.env) as source:
                machine = await self._make(tenant, {**values, **source}, config, wait)
        self._warm.want(template, values)
        return machine

    async def _create_directory(
        self,
        tenant: str,
        req: CreateMachine,
        driver: str,
        capabilities: Capabilities,
        wait: bool,
    ) -> Machine:
        """One without a disk begins empty, with the programs of the host: no template, no bake, none kept warm."""
        if req.template not in ("base", HOST.name):
            raise UnsupportedError(
                f"Machines of the {driver} driver have the host's programs and no template: leave it out, or ask for "
                "another isolation.",
                details={"field": "template", "driver": driver},
            )
        if req.volumes:
            raise _no_volumes(driver)
        size = limits.size(req, HOST.config)
        reservations.check_size(self._engine.host(), size.vcpu, size.memory_mib)
        await self._engine.parts.storage.require(ROOM_BYTES)
        values = {
            **self._asked(tenant, req),
            **columns(HOST, driver, capabilities, size),
            "env": dict(req.env),
        }

        def check(connection: sa.Connection) -> None:
            quotas.check(connection, tenant, quotas.of_machine(values))
            _check_key(connection, tenant, req.key)

        await self._store.read(check)
        return await self._make(tenant, values, HOST.config, wait)

    async def fork(self, tenant: str, machine_id: str, req: ForkMachine) -> builtins.list[Machine]:
        """``count`` machines that go on from this one's instant, with memory where its rung can; all or none.
        The parent runs on.

        Raises before the parent is stopped VALIDATION_FAILED, UNSUPPORTED, RUNG_UNAVAILABLE, INVALID_STATE,
        ALREADY_EXISTS (the key), QUOTA_EXCEEDED, CAPACITY_EXCEEDED, STORAGE_FULL; else what a capture or a start raises.
        """
        if not 1 <= req.count <= MAX_CHILDREN:
            raise limits.bad("count", f"is from 1 to {MAX_CHILDREN}")
        if req.key is not None and req.count != 1:
            raise limits.bad("key", "is of one child: leave it out, or count")
        if req.count != 1 and not all(each.read_only for each in req.volumes or ()):
            raise limits.bad("volumes", "are read-only where there are several children")
        parent = await self.get(tenant, machine_id)
        captured.require_fork(parent)
        row = None
        if req.snapshot is None:
            self.require_start(parent)
        else:
            row = await captured.find(self._store, tenant, req.snapshot)
            captured.require_sound(row)
            captured.require_of(row, parent)
        wanted = CreateMachine(
            key=req.key,
            name=req.name,
            labels=parent.labels if req.labels is None else req.labels,
            autosleep_seconds=parent.autosleep_seconds,
            hibernate_after_seconds=parent.hibernate_after_seconds,
            ttl_seconds=req.ttl_seconds,
            created_by=req.created_by,
            egress=parent.egress if req.egress is None else req.egress,
            inside=req.inside,
            volumes=_shared(parent) if req.volumes is None else req.volumes,
            expiry=parent.expiry if req.expiry is None else req.expiry,
            autowake=parent.autowake if req.autowake is None else req.autowake,
            unrestricted=parent.unrestricted,
            tools=parent.tools,
            run_as=parent.run_as,
        )
        limits.check_create(wanted)
        egress.require_enforced(self._policy(wanted), parent.driver, parent.capabilities)
        raw_disk = parent.capabilities.raw_disk

        def check(connection: sa.Connection) -> None:
            _check_key(connection, tenant, req.key)
            volumes.resolve(connection, tenant, wanted.volumes, raw_disk)

        await self._store.read(check)
        await self._room(tenant, parent, req.count, stops=row is None)
        secrets_of = machine_id if req.inherit_secrets else None
        with self._engine.journal.observed("fork"):
            if row is not None:
                return await self._children(tenant, row, wanted, req.count, secrets_of)
            snapshot_id = ids.new()
            values = {"tenant_id": tenant, "name": None, "for_fork": True}
            try:
                # From before it is there: another fork that ends collects what nobody holds.
                with self._engine.holding(snapshot_id):
                    # Children with volumes boot: what they begin with has to be on the disk.
                    memory = not wanted.volumes
                    await self._engine.snapshot(machine_id, values, snapshot_id, memory)
                    # They may have been changed before that instant.
                    now = await self._engine.load(machine_id)
                    wanted = replace(wanted, tools=now.tools)
                    if req.egress is None:
                        wanted = replace(wanted, egress=now.egress)
                    row = await captured.find(self._store, tenant, snapshot_id, for_fork=True)
                    return await self._children(tenant, row, wanted, req.count, secrets_of)
            finally:
                await self._engine.collect()

    async def _children(
        self,
        tenant: str,
        row: captured.Row,
        wanted: CreateMachine,
        count: int,
        secrets_of: str | None,
    ) -> builtins.list[Machine]:
        with self._engine.holding(row["id"]):
            made = await asyncio.gather(
                *(self._create_from(tenant, row, wanted, True, secrets_of) for _ in range(count)),
                return_exceptions=True,
            )
        children = [each for each in made if isinstance(each, Machine)]
        failures = [each for each in made if isinstance(each, BaseException)]
        if not failures:
            return children
        lost = [each.id for each in children]
        known = [each for each in failures if isinstance(each, RoostError)]
        for failure in known:
            # Of a key that is taken, the machine named is another's work.
            if "machine_id" in failure.details and failure.code != "ALREADY_EXISTS":
                lost.append(failure.details["machine_id"])
        await asyncio.gather(*(self._engine.destroy(each) for each in lost), return_exceptions=True)
        raise failures[0]

    async def _room(self, tenant: str, parent: Machine, count: int, stops: bool) -> None:
        """For so many more of its size, before anything is stopped for them (``stops``: there is)."""
        engine = self._engine
        size = {name: getattr(parent, name) for name in ("vcpu", "memory_mib", "storage_gib")}
        woken = stops and parent.frozen  # for the capture
        own = parent.vcpu if woken else 0.0

        def check(connection: sa.Connection) -> float | None:
            asked = quotas.of_machine(size, count)
            if woken:
                asked |= quotas.of_start(size, count + 1)
            quotas.check(connection, tenant, asked)
            return (tenants.quotas(connection, tenant) or {}).get("forks_per_minute")

        a_minute = await self._store.read(check)
        others = count - 1

        async def admit() -> None:
            vcpu, memory_mib, number = await self._store.read(lambda c: rows.held(c, HOLDING))
            held = reservations.Held(
                vcpu + own + parent.vcpu * others,
                memory_mib + parent.memory_mib * others,
                number + others,
            )
            reservations.admit(engine.settings, engine.host(), held, parent.vcpu, parent.memory_mib)

        await engine.with_room(admit, tenant)
        memory = parent.memory_mib << 20 if stops and parent.memory_kept else 0
        await engine.parts.storage.require(ROOM_BYTES * count + memory)
        if a_minute is not None:
            self._forks.take(tenant, "forks_per_minute", a_minute, count)

    async def _create_from(
        self,
        tenant: str,
        row: captured.Row,
        req: CreateMachine,
        wait: bool,
        secrets_of: str | None = None,
    ) -> Machine:
        # What is in memory knows the disks of the machine it is of, and no others.
        memory = req.memory and not req.volumes
        values = {**self._asked(tenant, req), **captured.values(row, memory)}
        engine = self._engine
        driver = values["driver"]
        least = await self._store.read(lambda c: engine.least(c, tenant, req.unrestricted))
        _, capabilities = engine.rungs.choose("auto", driver, least)
        egress.require_enforced(self._policy(req), driver, capabilities)
        _check_run_as(req.run_as, capabilities)
        values["capabilities"] = capabilities_to_json(capabilities)
        reservations.check_size(engine.host(), values["vcpu"], values["memory_mib"])
        await engine.parts.storage.require(ROOM_BYTES)
        config = await self._store.read(lambda c: config_of(c, values["template_id"]))
        return await self._make(
            tenant, values, config, wait, secrets_of=secrets_of, attach=req.volumes
        )

    def _asked(self, tenant: str, req: CreateMachine) -> dict[str, Any]:
        expires = None
        if req.ttl_seconds is not None:
            expires = self._engine.clock.now() + timedelta(seconds=req.ttl_seconds)
        return {
            "tenant_id": tenant,
            "key": req.key,
            "name": req.name,
            "labels": dict(req.labels),
            "autosleep_seconds": req.autosleep_seconds,
            "hibernate_after_seconds": (
                self._engine.settings.hibernate_after_s or None
                if req.hibernate_after_seconds is UNSET
                else req.hibernate_after_seconds
            ),
            "ttl_seconds": req.ttl_seconds,
            "expires_at": expires,
            "created_by": req.created_by,
            "egress": self._policy(req).to_json(),
            "inside": req.inside.to_json(),
            "tools": req.tools.to_json(),
            "expiry": req.expiry,
            "autowake": req.autowake,
            "unrestricted": req.unrestricted,
            "run_as": req.run_as or None,
        }

    def _policy(self, req: CreateMachine) -> Policy:
        return self._engine.settings.egress_policy if req.egress is None else req.egress

    async def _make(
        self,
        tenant: str,
        values: Mapping[str, Any],
        config: Mapping[str, Any],
        wait: bool,
        find_source: bool = False,
        secrets_of: str | None = None,
        attach: Sequence[Attach] = (),
    ) -> Machine:
        engine = self._engine
        boundary = engine.parts.boundary
        if attach and not engine.rungs.driver(values["driver"]).volumes:
            raise _no_volumes(values["driver"])

        unrestricted = bool(values["unrestricted"])

        def also(connection: sa.Connection, machine_id: str) -> None:
            if secrets_of is not None:
                boundary.inherit(connection, secrets_of, machine_id)
            if attach:
                raw_disk = bool(values["capabilities"]["raw_disk"])
                found = volumes.resolve(connection, tenant, attach, raw_disk)
                volumes.attach(engine, connection, machine_id, found, raw_disk)
                told = {"volumes": [each.to_json() for each in found]}
                rows.update(connection, machine_id, told)
            if unrestricted:
                now = engine.clock.now()
                rows.record(connection, machine_id, now, "unrestricted", claims.UNRESTRICTED)

        try:
            machine = await engine.create(
                values,
                config,
                find_source=find_source,
                also=also if secrets_of or attach or unrestricted else None,
            )
        except IntegrityError as error:
            raise await self._taken(tenant, values["key"], error) from error
        return await self._engine.settled(machine.id) if wait else machine

    async def ensure(self, tenant: str, key: str, req: CreateMachine) -> tuple[Machine, bool]:
        """The running machine of this key, and whether this call made it. However many ask, one is made.

        A sleeping machine is woken, a failed one started again, a destroyed one replaced. ``req`` counts
        only where one is made; its own ``key`` is ignored.
        """
        limits.key(key)
        flight = (tenant, key)
        task = self._ensuring.get(flight)
        mine = task is None
        if task is None:
            task = asyncio.ensure_future(self._ensure(tenant, key, replace(req, key=key)))
            self._ensuring[flight] = task
            task.add_done_callback(lambda done: self._ensured(flight, done))
        machine, created = await asyncio.shield(task)
        return machine, created and mine

    async def get(self, tenant: str, machine_id: str) -> Machine:
        row = await self._store.read(lambda c: rows.get(c, machine_id))
        if row is None or row["tenant_id"] != tenant:
            raise not_found(machine_id)
        machine = Machine.from_row(row)
        age = self._engine.clock.now() - machine.last_transition_at
        if machine.phase == Phase.DESTROYED and age >= REMEMBER_DESTROYED:
            raise not_found(machine_id)
        return machine

    async def home(self, tenant: str, machine_id: str) -> Path | None:
        """Of a machine that is a directory of the host; None for one with a disk. Raises MACHINE_NOT_FOUND."""
        machine = await self.get(tenant, machine_id)
        if machine.capabilities.disk_image:
            return None
        return self._engine.parts.storage.home(machine_id)

    async def anyones(self, machine_id: str) -> Machine:
        """Of whichever tenant: for a caller that proves by other means than a key that it may. From memory where it
        runs. Raises MACHINE_NOT_FOUND."""
        running = self._engine.roster.peek(machine_id)
        if running is not None:
            return running.machine
        row = await self._store.read(lambda c: rows.get(c, machine_id))
        if row is None:
            raise not_found(machine_id)
        return Machine.from_row(row)

    def token(self, machine_id: str, tenant: str, purpose: str) -> str:
        """64 hex digits that stand for the machine, for its whole life: what a dialect hands out instead of a key. Kept
        nowhere; of another purpose another one."""
        about = f"roost-machine-token:{purpose}:{machine_id}:{tenant}"
        return hmac.digest(self._engine.identity.secret, about.encode(), "sha256").hex()

    async def living(self) -> builtins.list[tuple[str, str]]:
        """(id, tenant) of every machine that is not destroyed."""
        return await self._store.read(rows.whose)

    async def named(self, tenant: str, name: str) -> Machine:
        """Of this id, else of this key, else the only one of this name, unless it is destroyed. Raises
        MACHINE_NOT_FOUND."""

        def fn(connection: sa.Connection) -> rows.Row | None:
            row = rows.get(connection, name)
            if row is not None and row["tenant_id"] == tenant and row["phase"] != Phase.DESTROYED:
                return row
            row = rows.by_key(connection, tenant, name)
            if row is not None:
                return row
            found = rows.by_name(connection, tenant, name)
            return found[0] if len(found) == 1 else None

        row = await self._store.read(fn)
        if row is None:
            raise not_found(name)
        return Machine.from_row(row)

    async def list(
        self,
        tenant: str,
        phase: str | Sequence[str] | None = None,
        key: str | None = None,
        labels: Mapping[str, str] | None = None,
        template: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
        parent: str | None = None,
        *,
        since: datetime | None = None,
        oldest_first: bool = False,
    ) -> Page[Machine]:
        """Newest first, unless told otherwise; destroyed ones only where ``phase`` (one, or any of several) says so.
        ``labels``: all of these, equal. ``since``: made then or later. Raises INVALID_CURSOR."""
        if not 1 <= limit <= 500:
            raise limits.bad("limit", "is from 1 to 500")
        phases = sorted({phase} if isinstance(phase, str) else set(phase or ()))
        if not set(phases) <= set(Phase):
            raise limits.bad("phase", f"is one of {', '.join(Phase)}")
        wanted = dict(labels or {})
        limits.labels(wanted)
        at = None if since is None else since.isoformat()
        asked = ["machines", tenant, phases, key, wanted, template, parent, at, oldest_first]
        scope = json.dumps(asked, sort_keys=True)
        after = None if cursor is None else self._cursors.decode(scope, cursor)
        found = await self._store.read(
            lambda c: rows.page(
                c,
                tenant,
                phases=phases,
                key=key,
                labels=wanted,
                template=template,
                limit=limit + 1,
                after=after,
                parent=parent,
                since=since,
                oldest_first=oldest_first,
            )
        )
        items = [Machine.from_row(row) for row in found[:limit]]
        more = len(found) > limit
        last = items[-1] if more else None
        return Page(items, self._cursors.encode(scope, last.created_at, last.id) if last else None)

    async def patch(
        self, tenant: str, machine_id: str, patch: PatchMachine, if_match: int | None = None
    ) -> Machine:
        """Raises REVISION_MISMATCH, VALIDATION_FAILED, CAPACITY_EXCEEDED, UNSUPPORTED (a size this rung cannot
        change while it runs: sleep it first)."""
        before = await self.get(tenant, machine_id)
        values = self._patched(before, patch)
        engine = self._engine

        def fn(connection: sa.Connection) -> Machine:
            machine = self._mine(connection, tenant, machine_id)
            check_revision(machine, if_match)
            if machine.phase in (Phase.DESTROYING, Phase.DESTROYED):
                raise ConflictError(
                    f"The machine is {machine.phase}: it cannot be changed any more.",
                    details={"phase": machine.phase},
                )
            if resized:
                _check_not_frozen(machine)
            fits(connection, machine)
            now = {**values, "inside": _allowed(machine.inside, patch).to_json()}
            return amend(connection, machine_id, now, engine.clock.now())

        resized: dict[str, Any] = {k: values[k] for k in ("vcpu", "memory_mib") if k in values}

        def fits(connection: sa.Connection, machine: Machine) -> None:
            grown = {k: v for k, v in resized.items() if v > getattr(machine, k)}
            if grown and machine.phase in HOLDING:  # else it is a wake that asks
                quotas.check(connection, tenant, grown, without=machine_id)

        _allowed(before.inside, patch)
        if not resized:
            if not values and patch.allow_inside is UNSET and patch.inside_forks is UNSET:
                check_revision(before, if_match)
                return before
            machine = await self._store.write(fn)
            engine.amended(machine)
            return machine

        applied = False

        async def resize() -> None:
            now = await engine.load(machine_id)
            check_revision(now, if_match)
            size = replace(now.size, **resized)
            _check_not_frozen(now)
            await self._store.read(lambda c: fits(c, now))
            running = engine.roster.peek(machine_id)
            if running is None:
                reservations.check_size(engine.host(), size.vcpu, size.memory_mib)
                return

            async def admit() -> None:
                held = await self._store.read(lambda c: rows.held(c, HOLDING, without=machine_id))
                reservations.admit(
                    engine.settings,
                    engine.host(),
                    reservations.Held(*held),
                    size.vcpu,
                    size.memory_mib,
                )

            await engine.with_room(admit, tenant)
            await engine.rungs.driver(now.driver).resize(running.handle, size)
            nonlocal applied
            applied = True

        async def undo() -> None:
            running = engine.roster.peek(machine_id)
            if running is not None:
                now = await engine.load(machine_id)
                await engine.rungs.driver(now.driver).resize(running.handle, now.size)

        try:
            return await engine.change(machine_id, fn, before=resize)
        except LimitError:
            if applied:  # others of the tenant grew meanwhile: what it is is what its row says
                await engine.change(machine_id, lambda c: load(c, machine_id), before=undo)
            raise

    async def delete(
        self, tenant: str, machine_id: str, wait: bool = True, if_match: int | None = None
    ) -> Machine:
        """Destroys it, whatever it is doing; ``destroyed``, or ``destroying`` with ``wait=False``. Again: the
        same, for an hour."""
        machine = await self.get(tenant, machine_id)
        if machine.phase == Phase.DESTROYED:
            return machine
        return await self._engine.destroy(machine_id, wait=wait, revision=if_match)

    async def sleep(self, tenant: str, machine_id: str, tier: str | None = None) -> Machine:
        """``tier``: "frozen" keeps its memory resident, "hibernated" with its disk, "stopped" ends its processes;
        None: the deepest that keeps all its rung can. Asleep as deep already: nothing happens. Raises
        UNSUPPORTED."""
        check_tier(await self.get(tenant, machine_id), tier)
        return await self._engine.sleep(machine_id, None if tier is None else Tier(tier))

    async def wake(self, tenant: str, machine_id: str) -> Machine:
        """Running again, from its disk; also the way back from ``failed``. Raises TEMPLATE_NOT_READY, too: then it
        runs, but what its template starts does not."""
        await self.get(tenant, machine_id)
        return await self._engine.wake(machine_id)

    def require_start(self, machine: Machine) -> None:
        """Before what ends it to start it again. Raises RUNG_UNAVAILABLE."""
        self._engine.rungs.require(machine.driver)

    async def reboot(self, tenant: str, machine_id: str) -> Machine:
        """Running again from its disk, whatever it was doing: its processes are gone. Raises as ``sleep`` and
        ``wake``."""
        machine = await self.get(tenant, machine_id)
        self.require_start(machine)
        if machine.phase == Phase.SLEEPING and machine.tier == Tier.HIBERNATED:
            await self._engine.wake(
                machine_id
            )  # what lies with its memory must not be gone on with
        if machine.phase != Phase.FAILED:
            await self._engine.sleep(machine_id, Tier.STOPPED)
        return await self._engine.wake(machine_id)

    async def usage(self, tenant: str, machine_id: str) -> MachineUsage:
        """Raises INVALID_STATE when it does not run (it is not woken for this)."""
        machine = await self.get(tenant, machine_id)
        running = self._engine.roster.peek(machine_id)
        if running is None:
            raise ConflictError(
                f"The machine is {machine.phase}: only a running one uses anything. Wake it first.",
                details={"phase": machine.phase},
            )
        driver = self._engine.rungs.driver(machine.driver)
        usage, stats = await asyncio.gather(driver.usage(running.handle), stats_of(running.agent))
        return MachineUsage(
            cpu_usage_us=usage.cpu_usage_us,
            memory_bytes=usage.memory_bytes,
            memory_limit_bytes=usage.memory_limit_bytes,
            pids=usage.pids,
            disk_total_bytes=None if stats is None else stats.disk_total_bytes,
            disk_used_bytes=None if stats is None else stats.disk_used_bytes,
            uptime_ms=None if stats is None else stats.uptime_ms,
        )

    async def metrics(
        self,
        tenant: str,
        machine_id: str,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> builtins.list[Sample]:
        """What it used, oldest first: one sample an interval of usage while it ran, of a day at most and since this
        daemon started, and, of one that runs, one of this moment unless ``end`` is past. Wakes nothing; empty for one
        that slept all the time. Raises VALIDATION_FAILED."""
        await self.get(tenant, machine_id)
        for each in (start, end):
            if each is not None and each.tzinfo is None:
                raise limits.bad("start", "and end are times with a zone")
        samples = self._engine.samples
        if end is None or end >= self._engine.clock.now():
            await samples.now(machine_id)
        return samples.of(machine_id, start, end)

    async def events(self, tenant: str, machine_id: str) -> builtins.list[MachineEvent]:
        """Its own life, oldest first, the last 200."""
        await self.get(tenant, machine_id)
        found = await self._store.read(lambda c: rows.events(c, machine_id))
        return [MachineEvent(row["at"], row["event"], row["message"]) for row in found]

    async def awake(self, tenant: str, machine_id: str) -> Live:
        """The machine running, woken if it slept; counts as activity. Microseconds when it runs.

        Raises INVALID_STATE (being destroyed, ...), MACHINE_SLEEPING (and it is not to be woken but by ``wake``), MACHINE_FAILED (wake it to start it from its disk), FORBIDDEN
        (it sleeps, and who asks may only read) and what a wake raises (RUNG_UNAVAILABLE, CAPACITY_EXCEEDED,
        QUOTA_EXCEEDED, MACHINE_FAILED, TIMEOUT).
        """
        roster = self._engine.roster
        running = roster.peek(machine_id)
        if running is None:
            asking.check_wake((await self.get(tenant, machine_id)).phase)
            try:
                await self._engine.wake(machine_id, from_failed=False)
            except MachineError as error:
                if (
                    error.code != "TEMPLATE_NOT_READY"
                ):  # it runs: whoever asks may have come to mend it
                    raise
            running = roster.peek(machine_id)
            if running is None:  # it ended again at once
                machine = await self.get(tenant, machine_id)
                raise ConflictError(
                    f"The machine woke and is {machine.phase} again ({machine.reason}).",
                    details={"phase": machine.phase},
                )
        if running.machine.tenant_id != tenant:
            raise not_found(machine_id)
        roster.touch(machine_id)
        one_user = running.machine.capabilities.one_user
        told = self._engine.parts.boundary.environment(machine_id, one_user)
        return Live(running.machine, cast("AgentClient", running.agent), running.config, told)

    async def over(self, machine_id: str) -> bool:
        """Whether it is destroyed, or about to be."""
        row = await self._store.read(lambda c: rows.get(c, machine_id))
        return row is None or row["desired_state"] == Desired.DESTROYED

    def boot(self, machine_id: str, tenant: str | None = None) -> int | None:
        """Which of its starts it runs from, without I/O; None where it does not run, or is another tenant's."""
        running = self._engine.roster.peek(machine_id)
        if running is None or tenant not in (None, running.machine.tenant_id):
            return None
        return running.machine.generation

    async def connection(self, machine_id: str) -> socket.socket:
        """A TCP socket, not blocking and not connected, that reaches the machine's own address and nothing else.
        Raises NOT_FOUND for one without a network of its own."""
        return await self._engine.parts.network.connection(machine_id)

    def runs(self, machine_id: str) -> bool:
        """Whether it can be asked something now."""
        return self._engine.roster.peek(machine_id) is not None

    def using(self, machine_id: str) -> AbstractContextManager[None]:
        """Meanwhile the machine is not idle (a transfer, a terminal's viewer, an execution)."""
        return self._engine.roster.using(machine_id)

    def on_change(self, listener: Callable[[str], None]) -> None:
        """Is told the id of each machine whose row changes, once that is durable."""
        self._engine.changes.listen(listener)

    def changing(self, machine_id: str) -> AbstractContextManager[asyncio.Event]:
        """Set with every change of the machine's row from now on; clear it before looking."""
        return self._engine.changes.of(machine_id)

    async def states(
        self, tenant: str, machine_id: str, after: int | None = None
    ) -> AsyncGenerator[Machine, None]:
        """The machine as it is, unless that is revision ``after``, and again with every change, the last one
        when it is destroyed. What follows quickly may be told as one. Raises MACHINE_NOT_FOUND at once."""
        await self.get(tenant, machine_id)
        return self._states(tenant, machine_id, after)

    async def _states(
        self, tenant: str, machine_id: str, told: int | None
    ) -> AsyncGenerator[Machine, None]:
        with self.changing(machine_id) as changed:
            while True:
                changed.clear()
                machine = await self.get(tenant, machine_id)
                if machine.revision != told:
                    told = machine.revision
                    yield machine
                if machine.phase == Phase.DESTROYED:
                    return
                await changed.wait()

    def touch(self, machine_id: str) -> None:
        """Counts as activity (a terminal's keystroke, preview traffic); no I/O."""
        self._engine.roster.touch(machine_id)

    async def end_tree(self, machine_id: str, pid: int) -> bool:
        """Ends a process of the machine, by its own number for it, and all below from the host's side; False
        where there is none. Raises UNSUPPORTED where the rung cannot, TIMEOUT."""
        running = self._engine.roster.peek(machine_id)
        if running is None:
            return False
        driver = self._engine.rungs.driver(running.machine.driver)
        return await driver.end_tree(running.handle, pid)

    # --- helpers --------------------------------------------------------------------------------

    async def _ensure(self, tenant: str, key: str, req: CreateMachine) -> tuple[Machine, bool]:
        engine = self._engine
        for _ in range(_TRIES):
            row = await self._store.read(lambda c: rows.by_key(c, tenant, key))
            if row is None:
                try:
                    return await self.create(tenant, req), True
                except ConflictError as error:
                    if error.code != "ALREADY_EXISTS":
                        raise
                    continue
            machine = Machine.from_row(row)
            running = engine.roster.peek(machine.id)
            if running is not None and running.machine.tenant_id == tenant:
                return running.machine, False
            if machine.desired_state == Desired.DESTROYED:
                await engine.destroy(machine.id)
                continue
            try:
                return await engine.wake(machine.id), False
            except RoostError as error:
                after = await engine.load(machine.id)
                if error.code in ("INVALID_STATE", "MACHINE_NOT_FOUND") and (
                    after.desired_state == Desired.DESTROYED
                ):
                    continue  # it was deleted meanwhile
                raise
        raise InternalError(
            f"The machine of key {key} changed too often; try again.", retryable=True
        )

    def _ensured(self, flight: tuple[str, str], task: asyncio.Task[tuple[Machine, bool]]) -> None:
        self._ensuring.pop(flight, None)
        if not task.cancelled():
            task.exception()

    async def _taken(self, tenant: str, key: str | None, error: IntegrityError) -> RoostError:
        row = None
        if key is not None:
            row = await self._store.read(lambda c: rows.by_key(c, tenant, key))
        if row is None:
            return InternalError(
                "The machine's row could not be made.", details={"cause": str(error)[:200]}
            )
        return _key_taken(str(key), row["id"])

    def _mine(self, connection: sa.Connection, tenant: str, machine_id: str) -> Machine:
        row = rows.get(connection, machine_id)
        if row is None or row["tenant_id"] != tenant:
            raise not_found(machine_id)
        return Machine.from_row(row)

    def _patched(self, before: Machine, patch: PatchMachine) -> dict[str, Any]:
        values: dict[str, Any] = {}
        if patch.name is not UNSET:
            limits.name(patch.name)
            if patch.name != before.name:
                limits.no_id("name", patch.name)
            values["name"] = patch.name
        if patch.labels is not UNSET:
            limits.labels(patch.labels)
            values["labels"] = dict(patch.labels)
        if patch.autosleep_seconds is not UNSET:
            limits.seconds("autosleep", patch.autosleep_seconds)
            values["autosleep_seconds"] = patch.autosleep_seconds
        if patch.hibernate_after_seconds is not UNSET:
            limits.seconds("hibernate_after", patch.hibernate_after_seconds)
            values["hibernate_after_seconds"] = patch.hibernate_after_seconds
        if patch.ttl_seconds is not UNSET:
            limits.seconds("ttl", patch.ttl_seconds)
            values["ttl_seconds"] = patch.ttl_seconds
            values["expires_at"] = (
                None
                if patch.ttl_seconds is None
                else self._engine.clock.now() + timedelta(seconds=patch.ttl_seconds)
            )
        if patch.expiry is not UNSET:
            limits.expiry(patch.expiry)
            values["expiry"] = patch.expiry
        if patch.autowake is not UNSET:
            limits.flag("autowake", patch.autowake)
            values["autowake"] = patch.autowake
        if patch.run_as is not UNSET:
            limits.run_as(patch.run_as)
            _check_run_as(patch.run_as, before.capabilities)
            values["run_as"] = patch.run_as or None
        if patch.vcpu is not UNSET and patch.vcpu != before.vcpu:
            limits.vcpu(patch.vcpu)
            values["vcpu"] = float(patch.vcpu)
        if patch.memory_mib is not UNSET and patch.memory_mib != before.memory_mib:
            limits.memory(patch.memory_mib)
            values["memory_mib"] = patch.memory_mib
        if patch.storage_gib is not UNSET and patch.storage_gib != before.storage_gib:
            limits.storage(patch.storage_gib)
            if patch.storage_gib < before.storage_gib:
                raise limits.bad("storage_gib", f"can only grow: it is {before.storage_gib}")
            raise UnsupportedError(
                "Disks cannot grow yet: make a machine with the size you need.",
                details={"field": "storage_gib"},
            )
        return values


def _shared(parent: Machine) -> tuple[Attach, ...]:
    """What a copy of it has as well."""
    return tuple(
        Attach(each.volume_id, each.path, True) for each in parent.volumes if each.read_only
    )


def check_tier(machine: Machine, tier: str | None) -> None:
    """Raises VALIDATION_FAILED, UNSUPPORTED."""
    if tier is not None and tier not in set(Tier):
        raise limits.bad("tier", f"is one of {', '.join(Tier)}")
    if tier == Tier.HIBERNATED and not machine.memory_kept:
        raise UnsupportedError(
            f"Machines of the {machine.driver} driver cannot keep memory: sleep it without a tier, "
            "which keeps its disk."
        )
    if tier == Tier.FROZEN and not machine.capabilities.freeze:
        raise UnsupportedError(
            f"Machines of the {machine.driver} driver cannot stand still: sleep it without a tier."
        )


def _allowed(now: Allowance, patch: PatchMachine) -> Allowance:
    """What it took already stays taken. Raises VALIDATION_FAILED."""
    asked = Allowance.of(
        now.allow if patch.allow_inside is UNSET else patch.allow_inside,
        now.forks if patch.inside_forks is UNSET else patch.inside_forks,
    )
    return replace(now, allow=asked.allow, forks=asked.forks)


def _check_not_frozen(machine: Machine) -> None:
    """Its limits are those it was frozen with. Raises INVALID_STATE."""
    if machine.frozen:
        raise ConflictError(
            "The machine is frozen: wake it, or let it sleep deeper, to change its size.",
            details={"phase": machine.phase, "tier": machine.tier},
        )


def _no_volumes(driver: str) -> UnsupportedError:
    return UnsupportedError(
        f"Machines of the {driver} driver have no volumes.", details={"field": "volumes"}
    )


def _check_run_as(user: str | None, capabilities: Capabilities) -> None:
    if user and capabilities.one_user:
        raise UnsupportedError(
            "Machines of this rung have one user, whom everything in them runs as: leave run_as out.",
            details={"field": "run_as"},
        )


def _check_key(connection: sa.Connection, tenant: str, key: str | None) -> None:
    """Raises ALREADY_EXISTS."""
    if key is not None and (row := rows.by_key(connection, tenant, key)):
        raise _key_taken(key, row["id"])


def _key_taken(key: str, machine_id: str) -> ConflictError:
    return ConflictError(
        f"You have a machine of key {key}: {machine_id}. PUT /v1/machines/by-key/{key} gives it.",
        code="ALREADY_EXISTS",
        details={"machine_id": machine_id, "key": key},
    )
