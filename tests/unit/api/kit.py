"""The serving side whole, on one port: real gateway, API, store and agent; only the machines are made up."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import dataclasses
import json
import os
import signal
import socket
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx

from roost import dialects, ids
from roost.agent.client import Agents
from roost.api.v1 import Services, create_app, native
from roost.clock import SystemClock
from roost.drivers.interface import Capabilities, ForkKind, Isolation
from roost.egress.edit import edited
from roost.egress.interface import Decision
from roost.egress.policy import Policy, Reach
from roost.egress.suggest import suggest
from roost.engine.rungs import ANY, Rungs
from roost.engine.tools import Tools
from roost.errors import ConflictError, NotFoundError, error
from roost.gateway.app import Gateway
from roost.gateway.calls import Calls
from roost.gateway.dispatch import Table, Target
from roost.gateway.front import Front, bind
from roost.gateway.metrics import Metrics
from roost.gateway.rpc import Rpc
from roost.gateway.tls import Tls
from roost.preview.plane import Plane
from roost.prices import Prices
from roost.secrets import Secret, SecretSpec
from roost.secrets.secret import check_value, made
from roost.secrets.vault import Vault
from roost.services import asking, contracts
from roost.services.approvals import Approvals
from roost.services.audit import Audit
from roost.services.browser import HELPER as BROWSER
from roost.services.browser import Browser
from roost.services.build_files import BuildFiles
from roost.services.code import HELPER as KERNEL
from roost.services.code import Code
from roost.services.computer import HELPER as DISPLAY
from roost.services.computer import Computer
from roost.services.diffs import Diffs
from roost.services.doors import Doors
from roost.services.exchange import Exchange
from roost.services.executions import Executions
from roost.services.files import Files
from roost.services.helpers import Helpers, programs
from roost.services.inner import Inner
from roost.services.keys import Keys
from roost.services.listening import ListeningPorts
from roost.services.models import (
    UNSET,
    Allowance,
    Attachment,
    CreateMachine,
    ForkMachine,
    Live,
    Machine,
    MachineEvent,
    MachineUsage,
    Mount,
    Page,
    PatchMachine,
    Progress,
    Role,
    Sample,
    Snapshot,
    Template,
    Volume,
)
from roost.services.places import Places
from roost.services.policies import EgressReport, PatchPolicy
from roost.services.ports import Ports
from roost.services.promotions import Promotions
from roost.services.rates import Rates
from roost.services.ssh_keys import SshAddress, SshKeys
from roost.services.tenants import Tenants
from roost.services.terminals import Terminals
from roost.services.tickets import Tickets
from roost.services.toolsets import Toolsets
from roost.services.trees import Trees
from roost.services.usage import Usage
from roost.services.volume_files import VolumeFiles
from roost.settings import Settings
from roost.store import Store
from roost.store import executions as rows
from roost.store import keys as key_rows
from roost.store.cursor import Cursors
from roost.store.idempotency import Idempotency
from tests.unit.agent.process import TOKEN

TENANT, OTHER = "tenant-a", "tenant-b"
PRICES = '{"currency": "EUR", "vcpu_second": "0.01"}'
CAPABILITIES = Capabilities(
    isolation=Isolation.WORKSPACE,
    boundary="nothing",
    claim="isolated workspace",
    own_kernel=False,
    own_network=True,
    disk_image=False,
    raw_disk=False,
    memory_snapshot=False,
    fork=ForkKind.NONE,
    egress_enforced=False,
    needs_root=False,
    accelerated=None,
)
NOW = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)


class FakeSnapshots:
    def __init__(self, machines: FakeMachines) -> None:
        self.machines = machines
        self.kept: dict[str, Snapshot] = {}

    async def create(self, tenant: str, machine_id: str, name: str | None = None) -> Snapshot:
        machine = await self.machines.get(tenant, machine_id)
        made = Snapshot(
            id=ids.new(),
            tenant_id=tenant,
            name=name,
            machine_id=machine.id,
            driver="fake",
            template="base",
            vcpu=1.0,
            memory_mib=64,
            storage_gib=1,
            memory=False,
            size_bytes=7,
            status="ready",
            reason=None,
            paused_ms=0.5,
            created_at=NOW,
        )
        self.kept[made.id] = made
        return made

    async def get(self, tenant: str, which: str) -> Snapshot:
        for each in self.kept.values():
            if which in (each.id, each.name) and each.tenant_id == tenant:
                return each
        raise NotFoundError("There is no such snapshot.", code="SNAPSHOT_NOT_FOUND")

    async def list(
        self,
        tenant: str,
        machine_id: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[Snapshot]:
        if cursor is not None:
            raise error("INVALID_CURSOR", "not one of ours")
        return Page([s for s in self.kept.values() if s.tenant_id == tenant][:limit], None)

    async def delete(self, tenant: str, which: str) -> None:
        del self.kept[(await self.get(tenant, which)).id]

    async def rollback(self, tenant: str, machine_id: str, which: str) -> Machine:
        machine = await self.machines.get(tenant, machine_id)
        await self.get(tenant, which)
        return machine


class FakeMachines:
    """All machines share the one agent there is."""

    def __init__(self, agents: Agents, target: str | None) -> None:
        self.agents = agents
        self.target = target
        self.machines: dict[str, Machine] = {}
        self.touched: list[str] = []
        self.users: Counter[str] = Counter()
        self.watching: set[asyncio.Event] = set()
        self.ended_trees: list[int] = []
        self.listeners: list[Callable[[str], None]] = []
        self.config: dict[str, Any] = {"env": {"FROM_TEMPLATE": "1"}, "workdir": "/", "user": ""}

    async def home(self, tenant: str, machine_id: str) -> Path | None:
        return None

    def add(self, tenant: str, req: CreateMachine | None = None) -> Machine:
        req = req or CreateMachine()
        machine = Machine(
            id=ids.new(),
            tenant_id=tenant,
            node_id="n" * 26,
            key=req.key,
            name=req.name,
            labels=dict(req.labels),
            template_id="t" * 26,
            template=req.template,
            image_digest="sha256:" + "0" * 64,
            driver="fake",
            capabilities=CAPABILITIES,
            vcpu=1.0 if req.vcpu is None else req.vcpu,
            memory_mib=req.memory_mib or 1024,
            storage_gib=req.storage_gib or 10,
            env=dict(req.env),
            autosleep_seconds=req.autosleep_seconds,
            hibernate_after_seconds=None,
            ttl_seconds=req.ttl_seconds,
            expires_at=None,
            desired_state="running",
            phase="running",
            reason=None,
            retryable=False,
            last_error=None,
            revision=1,
            generation=1,
            created_at=NOW,
            last_transition_at=NOW,
            last_progress_at=NOW,
            last_activity_at=None,
            tier=None,
            disk_ready=True,
            slot_index=None,
            handle=None,
            egress=req.egress or Policy(),
            volumes=tuple(Mount("v" * 26, v.name, v.path, v.read_only) for v in req.volumes),
            expiry=req.expiry,
            autowake=req.autowake,
            tools=req.tools,
            run_as=req.run_as,
        )
        self.machines[machine.id] = machine
        return machine

    def change(self, machine: Machine, **values: Any) -> Machine:
        machine = dataclasses.replace(machine, revision=machine.revision + 1, **values)
        self.machines[machine.id] = machine
        for event in self.watching:
            event.set()
        for listener in self.listeners:
            listener(machine.id)
        return machine

    async def fork(self, tenant: str, machine_id: str, req: ForkMachine) -> builtins.list[Machine]:
        parent = await self.get(tenant, machine_id)
        wanted = CreateMachine(
            key=req.key, name=req.name or parent.name, labels=req.labels or parent.labels
        )
        return [self.add(tenant, wanted) for _ in range(req.count)]

    async def named(self, tenant: str, name: str) -> Machine:
        for machine in self._of(tenant):
            if name in (machine.id, machine.key, machine.name):
                return machine
        raise NotFoundError("no such machine", code="MACHINE_NOT_FOUND")

    async def create(self, tenant: str, req: CreateMachine, wait: bool = True) -> Machine:
        if req.snapshot is not None:
            raise NotFoundError("no such snapshot", code="SNAPSHOT_NOT_FOUND")
        if req.template != "base":
            raise NotFoundError("no such template", code="TEMPLATE_NOT_FOUND")
        if req.key is not None and any(m.key == req.key for m in self._of(tenant)):
            raise error("ALREADY_EXISTS", "the key is taken")
        return self.add(tenant, req)

    async def ensure(self, tenant: str, key: str, req: CreateMachine) -> tuple[Machine, bool]:
        for machine in self._of(tenant):
            if machine.key == key:
                return machine, False
        return self.add(tenant, dataclasses.replace(req, key=key)), True

    async def get(self, tenant: str, machine_id: str) -> Machine:
        machine = self.machines.get(machine_id)
        if machine is None or machine.tenant_id != tenant:
            raise NotFoundError("There is no such machine.", code="MACHINE_NOT_FOUND")
        return machine

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
        if cursor is not None:
            raise error("INVALID_CURSOR", "not one of ours")
        found = [m for m in self._of(tenant) if key is None or m.key == key]
        found = [m for m in found if parent is None or m.parent_id == parent]
        if phase is not None:
            phases = {phase} if isinstance(phase, str) else set(phase)
            found = [m for m in found if not phases or m.phase in phases]
        if labels:
            found = [m for m in found if labels.items() <= m.labels.items()]
        if oldest_first:
            found.reverse()
        return Page(found[:limit], None)

    async def patch(
        self, tenant: str, machine_id: str, patch: PatchMachine, if_match: int | None = None
    ) -> Machine:
        machine = await self.get(tenant, machine_id)
        if if_match is not None and if_match != machine.revision:
            raise ConflictError("changed meanwhile", code="REVISION_MISMATCH")
        values = {
            f.name: getattr(patch, f.name)
            for f in dataclasses.fields(patch)
            if getattr(patch, f.name) is not UNSET
        }
        now = machine.inside
        allow = values.pop("allow_inside", now.allow)
        forks = values.pop("inside_forks", now.forks)
        values["inside"] = dataclasses.replace(Allowance.of(allow, forks), forked=now.forked)
        return self.change(machine, **values)

    async def delete(
        self, tenant: str, machine_id: str, wait: bool = True, if_match: int | None = None
    ) -> Machine:
        machine = await self.get(tenant, machine_id)
        if if_match is not None and if_match != machine.revision:
            raise ConflictError("changed meanwhile", code="REVISION_MISMATCH")
        return self.change(machine, phase="destroyed", desired_state="destroyed", key=None)

    async def sleep(self, tenant: str, machine_id: str, tier: str | None = None) -> Machine:
        machine = await self.get(tenant, machine_id)
        if machine.phase != "running":
            return machine
        self.agents.drop(machine_id)
        tier = tier or "stopped"
        return self.change(machine, phase="sleeping", desired_state="sleeping", tier=tier)

    async def wake(self, tenant: str, machine_id: str) -> Machine:
        machine = await self.get(tenant, machine_id)
        if machine.phase == "running":
            return machine
        generation = machine.generation + 1
        return self.change(
            machine, phase="running", desired_state="running", generation=generation, tier=None
        )

    async def reboot(self, tenant: str, machine_id: str) -> Machine:
        await self.sleep(tenant, machine_id)
        return await self.wake(tenant, machine_id)

    async def usage(self, tenant: str, machine_id: str) -> MachineUsage:
        await self.get(tenant, machine_id)
        return MachineUsage(1, 2, None, 3, None, None, None)

    async def metrics(
        self,
        tenant: str,
        machine_id: str,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> builtins.list[Sample]:
        await self.get(tenant, machine_id)
        return [Sample(NOW, 1.0, 12.5, 30, 90, 20, 10, 100)]

    async def events(self, tenant: str, machine_id: str) -> list[MachineEvent]:
        await self.get(tenant, machine_id)
        return [MachineEvent(NOW, "created", "made")]

    async def awake(self, tenant: str, machine_id: str) -> Live:
        machine = await self.get(tenant, machine_id)
        if machine.phase == "destroyed":
            raise ConflictError("The machine is destroyed.")
        if machine.phase != "running":
            asking.check_wake(machine.phase)
            if not machine.autowake:
                raise error("MACHINE_SLEEPING", "it is not woken but by wake")
            machine = await self.wake(tenant, machine_id)
        if self.target is None:
            raise error("AGENT_LOST", "this test has no agent")
        return Live(machine, self.agents.get(machine_id, self.target, TOKEN), self.config)

    def boot(self, machine_id: str, tenant: str | None = None) -> int | None:
        machine = self.machines.get(machine_id)
        if machine is None or machine.phase != "running" or tenant not in (None, machine.tenant_id):
            return None
        return machine.generation

    async def connection(self, machine_id: str) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        return sock

    def on_change(self, listener: Callable[[str], None]) -> None:
        self.listeners.append(listener)

    def touch(self, machine_id: str) -> None:
        self.touched.append(machine_id)

    def runs(self, machine_id: str) -> bool:
        machine = self.machines.get(machine_id)
        return machine is not None and machine.phase == "running"

    async def over(self, machine_id: str) -> bool:
        return self.machines[machine_id].desired_state == "destroyed"

    @contextlib.contextmanager
    def using(self, machine_id: str) -> Iterator[None]:
        self.users[machine_id] += 1
        try:
            yield
        finally:
            self.users[machine_id] -= 1

    @contextlib.contextmanager
    def changing(self, machine_id: str) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        self.watching.add(event)
        try:
            yield event
        finally:
            self.watching.discard(event)

    async def states(
        self, tenant: str, machine_id: str, after: int | None = None
    ) -> AsyncGenerator[Machine, None]:
        machine = await self.get(tenant, machine_id)

        async def told() -> AsyncGenerator[Machine, None]:
            if machine.revision != after:
                yield machine

        return told()

    async def end_tree(self, machine_id: str, pid: int) -> bool:
        """As the host would: its agent here is a process of this host."""
        self.ended_trees.append(pid)
        os.kill(pid, signal.SIGKILL)
        return True

    def _of(self, tenant: str) -> list[Machine]:
        return [m for m in self.machines.values() if m.tenant_id == tenant]


class FakeSecrets:
    def __init__(self, machines: FakeMachines) -> None:
        self.machines = machines
        self.kept: dict[str, dict[str, Secret]] = {}

    def check(self, specs: Sequence[SecretSpec]) -> None:
        for each in specs:
            check_value(each.value or "")

    async def give(self, machine: Machine, specs: Sequence[SecretSpec], wait: bool) -> None:
        for each in specs:
            await self.put(machine.tenant_id, machine.id, each)

    async def list(self, tenant: str, machine_id: str) -> builtins.list[Secret]:
        machine = await self.machines.get(tenant, machine_id)
        return builtins.list(self.kept.get(machine.id, {}).values())

    async def put(self, tenant: str, machine_id: str, spec: SecretSpec) -> tuple[Secret, bool]:
        machine = await self.machines.get(tenant, machine_id)
        mine = self.kept.setdefault(machine.id, {})
        before = mine.get(spec.name)
        if spec.value is not None:
            check_value(spec.value)
        mine[spec.name] = made(spec, before, NOW)
        return mine[spec.name], before is None

    async def delete(self, tenant: str, machine_id: str, name: str) -> None:
        machine = await self.machines.get(tenant, machine_id)
        if self.kept.get(machine.id, {}).pop(name, None) is None:
            raise NotFoundError("no such secret", code="SECRET_NOT_FOUND")


class FakePolicies:
    def __init__(self, machines: FakeMachines) -> None:
        self.machines = machines
        self.tried: list[Decision] = []

    async def report(self, tenant: str, machine_id: str) -> EgressReport:
        machine = await self.machines.get(tenant, machine_id)
        return EgressReport(
            machine.egress, self.tried, suggest(machine.egress, self.tried, Reach())
        )

    async def replace(
        self, tenant: str, machine_id: str, policy: Policy, if_match: int | None = None
    ) -> Machine:
        machine = await self.machines.get(tenant, machine_id)
        if if_match is not None and if_match != machine.revision:
            raise ConflictError("changed meanwhile", code="REVISION_MISMATCH")
        return self.machines.change(machine, egress=policy)

    async def patch(
        self, tenant: str, machine_id: str, patch: PatchPolicy, if_match: int | None = None
    ) -> Machine:
        machine = await self.machines.get(tenant, machine_id)
        wanted = edited(machine.egress, **dataclasses.asdict(patch))
        return await self.replace(tenant, machine_id, wanted, if_match)

    async def restore(self, tenant: str, machine_id: str) -> Machine:
        return await self.replace(tenant, machine_id, Policy())


class FakeToolsets:
    def __init__(self, machines: FakeMachines) -> None:
        self.machines = machines

    async def replace(
        self, tenant: str, machine_id: str, tools: Tools, if_match: int | None = None
    ) -> Machine:
        machine = await self.machines.get(tenant, machine_id)
        if if_match is not None and if_match != machine.revision:
            raise ConflictError("changed meanwhile", code="REVISION_MISMATCH")
        return self.machines.change(machine, tools=tools)


class FakePromotions:
    def __init__(self, machines: FakeMachines) -> None:
        self.machines = machines

    async def promote(
        self, tenant: str, machine_id: str, onto: str | None = None, destroy: bool = False
    ) -> Machine:
        machine = await self.machines.get(tenant, machine_id)
        if onto is None:
            raise error("VALIDATION_FAILED", "it has no parent")
        await self.machines.get(tenant, onto)
        return self.machines.change(machine, replaces=onto)

    async def climb(
        self, tenant: str, machine_id: str, isolation: str | None, driver: str | None
    ) -> Machine:
        machine = await self.machines.get(tenant, machine_id)
        if driver is not None:
            raise error("RUNG_UNAVAILABLE", "there is no such driver")
        return self.machines.change(machine, reason=f"climbed to {isolation}")


class FakeTemplates:
    async def list(self, tenant: str, unnamed: bool = False) -> list[Template]:
        return [await self.get(tenant, "base")]

    async def get(self, tenant: str, name: str) -> Template:
        if name != "base":
            raise NotFoundError("no such template", code="TEMPLATE_NOT_FOUND")
        return Template(
            "t" * 26, None, "base", "ready", "sha256:0", None, 5, {"user": "root"}, None, NOW, NOW
        )

    async def delete(self, tenant: str, name: str) -> tuple[builtins.list[str], bool]:
        await self.get(tenant, name)
        raise error("FORBIDDEN", "shipped")

    async def tag(self, tenant: str, name: str, other: str) -> Template:
        return await self.get(tenant, name)

    async def build(
        self,
        name: str,
        force: bool = False,
        progress: Progress | None = None,
        driver: str | None = None,
    ) -> Template:
        if progress is not None:
            progress("packages", 50, "half way")
            progress("image", None, "nearly")
        if force:
            raise error("TEMPLATE_BUILD_FAILED", "no mirror")
        return await self.get("", name)


class FakeBuilds:
    """None is ever there."""

    def _none(self, *args: Any) -> NotFoundError:
        return NotFoundError("no such build", code="BUILD_NOT_FOUND")

    async def start(self, tenant: str, request: Any) -> Any:
        raise error("DOCKERFILE_INVALID", "nothing is built here")

    async def list(self, tenant: str, status: Any, limit: int, cursor: Any) -> Page[Any]:
        if cursor is not None:
            raise error("INVALID_CURSOR", "not one of ours")
        return Page([], None)

    async def get(self, tenant: str, build_id: str) -> Any:
        raise self._none()

    cancel = get

    async def give(self, tenant: str, build_id: str, pieces: Any) -> Any:
        raise self._none()

    async def follow(self, tenant: str, build_id: str, after: int) -> Any:
        raise self._none()

    async def gc(self, tenant: str, older: float, dry_run: bool, shipped: bool) -> dict[str, Any]:
        return {"dry_run": dry_run, "templates": [], "layers": 0, "builds": 0, "bytes": 0}


class FakeVolumes:
    """One a tenant, "data", until it is deleted; others are made and not kept."""

    async def create(
        self, tenant: str, name: str, size_gib: int, created_by: str | None = None
    ) -> Volume:
        if name == "data":
            raise error("ALREADY_EXISTS", "there is one")
        return Volume("v" * 26, tenant, name, size_gib, False, NOW)

    async def get(self, tenant: str, which: str) -> Volume:
        if which not in ("data", "v" * 26):
            raise NotFoundError("no such volume", code="VOLUME_NOT_FOUND")
        held = (Attachment("m" * 26, "/data", False),)
        return Volume("v" * 26, tenant, "data", 10, False, NOW, held)

    async def list(self, tenant: str, limit: int = 100, cursor: str | None = None) -> Page[Volume]:
        if cursor is not None:
            raise error("INVALID_CURSOR", "not one of ours")
        return Page([await self.get(tenant, "data")], None)

    async def delete(self, tenant: str, which: str) -> None:
        await self.get(tenant, which)
        raise error("VOLUME_IN_USE", "a machine has it")


class FakeTransfers:
    """Files whose one member says what they are of."""

    def __init__(self, templates: Any, snapshots: FakeSnapshots) -> None:
        self.templates = templates
        self.snapshots = snapshots
        self.asked: list[tuple[str | None, bool, str | None]] = []

    async def export_template(self, tenant: str, name: str) -> AsyncGenerator[bytes, None]:
        template = await self.templates.get(tenant, name)
        yield b"template "
        yield template.name.encode()

    async def export_snapshot(
        self, tenant: str, which: str, memory: bool = False
    ) -> AsyncGenerator[bytes, None]:
        snapshot = await self.snapshots.get(tenant, which)
        yield f"snapshot {snapshot.id} {memory}".encode()

    async def import_snapshot(
        self,
        tenant: str,
        pieces: AsyncIterator[bytes],
        name: str | None = None,
        trusted: bool = False,
        created_by: str | None = None,
    ) -> Snapshot:
        data = b"".join([piece async for piece in pieces])
        if not data.startswith(b"snapshot "):
            raise error("INVALID_BODY", "this is no snapshot")
        self.asked.append((name, trusted, created_by))
        return await self.snapshots.get(tenant, data.split()[1].decode())


class FakeHost:
    async def describe(self) -> dict[str, Any]:
        return {"daemon": {"pid": 1, "started_at": NOW}, "rungs": []}

    async def public(self) -> dict[str, Any]:
        return {"daemon": {"pid": None, "started_at": None}, "rungs": []}

    async def capabilities(self, tenant: str, everything: bool) -> dict[str, Any]:
        rungs = Rungs({}, [])
        return contracts.describe(rungs, ANY, everything)


class Served:
    """A daemon but for its machines: made up, or those of ``engine`` (a Daemon of tests.unit.engine.kit). ``http``
    speaks for TENANT; ``admin`` is the key of an admin."""

    def __init__(
        self,
        directory: Path,
        target: str | None,
        first_bytes_s: float = 10.0,
        engine: Any = None,
        dialects: Sequence[Callable[[Services], Target]] = (),
    ) -> None:
        self.engine = engine
        self.dialects = dialects
        self.directory = directory
        self.target = target
        self.first_bytes_s = first_bytes_s
        self.max_connections = 1000
        self.tls: Tls | None = None
        self.per_second = 1e6

    async def open(self) -> None:
        clock = SystemClock()
        self.agents = Agents()
        self.machines = _any(
            self.engine.machines if self.engine else FakeMachines(self.agents, self.target)
        )
        self.store = (
            self.engine.store if self.engine else Store.open(self.directory / "roost.db", clock)
        )
        self.keys = Keys(self.store, clock, self.directory)
        self.rates = Rates(clock.monotonic, 10_000)
        settings = Settings.model_validate({"tenant_requests_per_second": 1e6})
        self.tenants = Tenants(self.store, settings, self.keys, self.rates)
        await self.tenants.open()
        self.admin = await self.keys.bootstrap() or ""
        for tenant in (TENANT, OTHER):
            await self.store.write(lambda c, t=tenant: key_rows.put_tenant(c, t, clock.now()))
        self.key = await self.add_key(TENANT)
        self.other_key = await self.add_key(OTHER)
        self.audit = Audit(self.store, clock, Cursors(b"secret"), days=90)
        await self.audit.open()
        self.rows = rows.Executions(self.store)
        self.idempotency = Idempotency(self.store)
        await self.idempotency.recover()
        self.metrics = Metrics()
        machines: Any = self.machines
        self.approvals = Approvals(
            self.store, clock, Vault(b"k" * 32), Cursors(b"secret"), wait_s=900.0
        )
        machines.on_change(lambda id: self.approvals.changed(id, lambda: machines.over(id)))
        await self.approvals.open()
        self.executions = Executions(
            self.rows, machines, self.agents, Cursors(b"secret"), clock, self.approvals
        )
        await self.executions.open()
        self.doors = Doors(machines, None, programs=programs(BROWSER, DISPLAY, KERNEL))
        self.ssh_keys = SshKeys(self.store, clock, self.keys.ended)
        sockets = bind("127.0.0.1", 0)
        here = f"http://localhost:{sockets[0].getsockname()[1]}"
        self.ports = Ports(self.store, machines, clock, b"secret", Places("localhost", here))
        await self.ports.open()
        helpers = Helpers(Inner(self.doors), self.executions)
        self.browser = Browser(helpers, b"secret", clock)
        self.previews = Plane(
            self.ports,
            machines,
            self.keys,
            self.rates,
            clock,
            self.per_second,
            Doors(machines, machines.connection, "127.0.0.1"),
            self.browser,
        )
        kept = FakeSnapshots(self.machines)
        self.transfers = FakeTransfers(FakeTemplates(), kept)
        self.services = Services(
            machines=machines,
            snapshots=self.engine.snapshots if self.engine else _any(kept),
            volumes=self.engine.volumes if self.engine else _any(FakeVolumes()),
            executions=self.executions,
            approvals=self.approvals,
            terminals=Terminals(machines),
            files=(files := Files(machines)),
            templates=self.engine.templates if self.engine else _any(FakeTemplates()),
            builds=self.engine.builds if self.engine else _any(FakeBuilds()),
            build_files=BuildFiles(
                self.directory / "build-files", b"secret", clock, 1 << 20, _room
            ),
            keys=self.keys,
            ports=self.ports,
            tenants=self.tenants,
            audit=self.audit,
            host=_any(FakeHost()),
            usage=Usage(self.store, clock, Prices.read(PRICES)),
            doors=self.doors,
            ssh_keys=self.ssh_keys,
            ssh=SshAddress(None, 2222, f"ssh-ed25519 {'A' * 68}"),
            metrics=self.metrics,
            policies=self.engine.policies if self.engine else _any(FakePolicies(self.machines)),
            toolsets=(
                Toolsets(self.engine.engine, machines)
                if self.engine
                else _any(FakeToolsets(self.machines))
            ),
            promotions=(
                Promotions(
                    self.engine.engine, machines, self.ports, self.keys, self.engine.templates
                )
                if self.engine
                else _any(FakePromotions(self.machines))
            ),
            diffs=Diffs(machines),
            trees=Trees(self.store, machines),
            tickets=Tickets(self.keys, b"secret", clock),
            secrets=self.engine.secrets if self.engine else _any(FakeSecrets(self.machines)),
            transfers=_any(self.transfers),
            browser=self.browser,
            computer=Computer(helpers),
            code=Code(helpers, machines),
            volume_files=VolumeFiles(
                machines, self.engine.volumes if self.engine else _any(FakeVolumes())
            ),
            exchange=Exchange(self.keys, self.rates, clock, b"secret"),
            listening=ListeningPorts(files, machines),
        )
        self.app = create_app(self.services)
        table = Table(
            [
                *(make(self.services) for make in self.dialects),
                native(self.app, self.services.tickets),
            ]
        )
        self.gateway = Gateway(
            table, self.keys, self.idempotency, self.metrics, self.rates, self.audit, clock
        )
        guard = Calls(
            self.services.exchange.authenticate,
            self.gateway.sessions,
            self.rates,
            self.audit,
            self.metrics,
        )
        self.rpc = Rpc(self.directory / "grpc.sock", dialects.handlers(self.services, guard))
        await self.rpc.start()
        self.front = Front(
            self.gateway,
            self.rpc.path,
            sockets,
            previews=self.previews,
            max_connections=self.max_connections,
            tls=self.tls,
            first_bytes_s=self.first_bytes_s,
        )
        await self.front.start()
        self.http = self.client(self.key)

    async def close(self) -> None:
        await self.http.aclose()
        await self.front.stop(2.0)
        await self.rpc.stop(0.2)
        await self.executions.close()
        await self.agents.close()
        await self.audit.close()
        if not self.engine:
            await self.store.close()

    @property
    def port(self) -> int:
        return self.front.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str | None, **kw: Any) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.AsyncClient(
            base_url=self.url, headers=headers, timeout=30, trust_env=False, **kw
        )

    def machine(self, tenant: str = TENANT) -> str:
        return self.machines.add(tenant).id

    def later(self, ago: timedelta) -> None:
        """It is as much later for keys and tickets."""
        now: Any = SimpleNamespace(now=lambda: datetime.now(UTC) + ago)
        self.keys._clock = self.services.tickets._clock = now

    async def add_key(self, tenant: str, role: Role = Role.TENANT, **kw: Any) -> str:
        made = await self.keys.create(tenant, "k", role, **kw)
        assert made.secret is not None
        return made.secret

    async def add_token(self, machine_id: str, role: Role, **kw: Any) -> str:
        made = await self.keys.issue(TENANT, machine_id, role, **kw)
        assert made.secret is not None
        return made.secret


def _any(value: Any) -> Any:
    return value


@contextlib.asynccontextmanager
async def serving(directory: Path, target: str | None, **kw: Any) -> AsyncIterator[Served]:
    served = Served(directory, target, **kw)
    await served.open()
    try:
        yield served
    finally:
        await served.close()


async def events(lines: AsyncIterator[str]) -> AsyncIterator[tuple[str, Any]]:
    """Server-sent events, as (name, data)."""
    name = ""
    async for line in lines:
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])


async def until(condition: Any, timeout: float = 30.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


async def _room(size: int) -> None:
    pass
