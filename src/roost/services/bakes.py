"""Bakes: machines of a template that were started once and captured, for every other of their size to go on from.

A bake is a snapshot that belongs to nobody, made of a machine that belongs to nobody, so all that holds for those
(journal, recovery, sweeping) holds for it. Its name is a digest of what it depends on: another image, size, kernel
or monitor is another bake, and one that no machine was made from for long is deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa
import structlog

from roost import ids
from roost.agent.v1 import agent_pb2 as pb
from roost.drivers.interface import Capabilities, Size
from roost.drivers.sizes import rounded
from roost.engine.engine import Engine
from roost.engine.machine import Machine, capabilities_to_json
from roost.errors import MachineError, RoostError
from roost.services import starting
from roost.services.models import Template
from roost.store import keys, templates
from roost.store import snapshots as rows

if TYPE_CHECKING:
    from roost.agent.client import AgentClient

log = structlog.get_logger(__name__)

NOBODY = keys.NOBODY
# The columns that tell whose a machine is, of one that is nobody's.
NOBODYS: Mapping[str, Any] = {
    "tenant_id": NOBODY,
    "key": None,
    "name": None,
    "labels": {},
    "autosleep_seconds": None,
    "hibernate_after_seconds": None,
    "ttl_seconds": None,
    "expires_at": None,
    "created_by": None,
    "inside": None,
    "tools": None,
    "expiry": "destroy",
    "autowake": True,
    "run_as": None,
}
KEEP = timedelta(days=7)  # without a machine made from it
TRY_AGAIN_S = 600.0  # a bake that failed, where machines can do without
WARMUP = ("true",)  # what a template that names nothing runs before it is captured
WARMUP_S = 120.0
SETTLE_S = 60.0  # for what was started to have nothing left to do
SETTLE_LOOK_S = 1.5
QUIET = 0.1  # of a CPU
_STARTED = ("start", "ready", "env", "user", "workdir")  # what runs in it, and how


class Bakes:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._store = engine.store
        self._making: dict[str, asyncio.Task[rows.Row]] = {}
        self._since = engine.clock.now()
        self._used: dict[str, datetime] = {}  # snapshot id -> when, since then
        self._failed: dict[str, float] = {}  # name -> monotonic seconds
        engine.source = self.of

    def bakes(self, config: Mapping[str, Any], driver: str, env: Mapping[str, str]) -> bool:
        """Whether machines of this template go on from a bake: on drivers that boot none for a user, and, where the
        template starts something, on all that keep memory, or on those of them that it names (``bake``: drivers or
        rungs)."""
        chosen = self._engine.rungs.driver(driver)
        if starting.of(config) is None:
            return chosen.bakes
        if not alike(config, env) or not (chosen.bakes or self._keeps_memory(driver)):
            return False
        named = config.get("bake")
        return not isinstance(named, list) or bool(
            {driver, self._rung(driver)} & {*map(str, named)}
        )

    def fit(
        self, config: Mapping[str, Any], driver: str, size: Size, env: Mapping[str, str]
    ) -> Size:
        """The size that a machine asked to be of that size gets: what is in a bake knows its own."""
        chosen = self._engine.rungs.driver(driver)
        if not chosen.bakes and self.bakes(config, driver, env):
            return rounded(size)
        return chosen.fit(size)

    def _keeps_memory(self, driver: str) -> bool:
        capabilities = self._engine.rungs.capabilities(driver)
        return capabilities is not None and capabilities.memory_snapshot

    def _rung(self, driver: str) -> str | None:
        capabilities = self._engine.rungs.capabilities(driver)
        return None if capabilities is None else capabilities.isolation.value

    @contextlib.asynccontextmanager
    async def of(self, machine: Machine) -> AsyncIterator[Mapping[str, Any]]:
        """As ``source``, for a machine that is there and waits, with what its driver turned out to be. One of nobody
        begins where it was told."""
        engine = self._engine
        if machine.tenant_id == NOBODY:
            yield {}
            return
        row = await self._store.read(lambda c: templates.get(c, machine.template_id))
        # Of the image that it was promised; its template may have another by now.
        template = replace(Template(**row), digest=machine.image_digest)
        if not self.bakes(template.config, machine.driver, machine.env):
            yield {}
            return
        capabilities = await engine.rungs.prepared(machine.driver)
        async with self.source(
            template, machine.driver, machine.size, machine.env, machine.id
        ) as source:
            yield {**source, "capabilities": capabilities_to_json(capabilities)}

    @contextlib.asynccontextmanager
    async def source(
        self,
        template: Template,
        driver: str,
        size: Size,
        env: Mapping[str, str],
        waiting: str | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """The columns that tell a new machine where it begins: none for one that boots, else those of
        a bake, which stays meanwhile; made where there is none, once for all who wait. ``waiting``: the machine
        that does, and has its reservation. Where its driver boots machines well enough, one that cannot be made is
        done without for a while.

        Raises HOST_UNSUPPORTED, DEPENDENCY_UNAVAILABLE, CAPACITY_EXCEEDED, MACHINE_FAILED (with the console's last
        lines), STORAGE_FULL."""
        engine = self._engine
        row = None
        if self.bakes(template.config, driver, env):
            row = await self._baked(template, driver, size, waiting)
        if row is None:
            yield {}
            return
        self._used[row["id"]] = engine.clock.now()
        with engine.holding(row["id"]):
            yield {"snapshot_id": row["id"], "memory_image": row["memory_image"]}

    async def _baked(
        self, template: Template, driver: str, size: Size, waiting: str | None
    ) -> rows.Row | None:
        name = self._name(template, driver, size)
        if (row := await self._find(name)) is not None:
            return row
        monotonic = self._engine.clock.monotonic
        needed = self._engine.rungs.driver(driver).bakes
        self._failed = {n: at for n, at in self._failed.items() if monotonic() - at < TRY_AGAIN_S}
        if not needed and name in self._failed:
            return None
        task = self._making.get(name)
        if task is None:
            task = asyncio.ensure_future(self._make(name, template, driver, size, waiting))
            self._making[name] = task
            task.add_done_callback(lambda _: self._making.pop(name, None))
        try:
            return await asyncio.shield(task)
        except RoostError as error:
            if needed:
                raise
            self._failed[name] = monotonic()
            log.warning(
                "bake.failed",
                template=template.name,
                driver=driver,
                error=error.code,
                message=error.message[:300],
            )
            return None

    def _name(self, template: Template, driver: str, size: Size) -> str:
        chosen = self._engine.rungs.driver(driver)
        depends: list[Any] = [
            driver,
            template.digest,
            _warmup(template),
            [-(-size.vcpu // 1), size.memory_mib, size.storage_gib],
            dict(chosen.traits()),
            {path: hashlib.sha256(data).hexdigest() for path, data in chosen.given().items()},
        ]
        if starting.of(template.config) is not None:
            depends.append({name: template.config.get(name) for name in _STARTED})
        text = json.dumps(depends, sort_keys=True)
        return f"bake-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    async def _find(self, name: str) -> rows.Row | None:
        row = await self._store.read(lambda c: rows.by_name(c, NOBODY, name))
        good = row is not None and row["status"] == "ready" and row["memory_image"] is not None
        return row if good else None

    async def _make(
        self, name: str, template: Template, driver: str, size: Size, waiting: str | None
    ) -> rows.Row:
        engine = self._engine
        if (row := await self._find(name)) is not None:
            return row
        # One that could not be loaded, which no machine is to go on from any more.
        if (bad := await self._store.read(lambda c: rows.by_name(c, NOBODY, name))) is not None:
            await self._store.write(lambda c: rows.update(c, bad["id"], {"name": None}))
            await engine.delete_snapshot(bad["id"])
        await self._store.write(lambda c: keys.put_tenant(c, NOBODY, engine.clock.now()))
        log.info("bake.begin", template=template.name, driver=driver, memory_mib=size.memory_mib)
        _, capabilities = engine.rungs.choose("auto", driver)
        try:
            await self._bake(name, template, driver, size, capabilities, waiting)
        except RoostError as error:
            error.details.pop("machine_id", None)  # nobody's, and gone
            raise
        row = await self._find(name)
        assert row is not None
        log.info("bake.done", template=template.name, driver=driver, bytes=row["size_bytes"])
        return row

    async def _bake(
        self,
        name: str,
        template: Template,
        driver: str,
        size: Size,
        capabilities: Capabilities,
        waiting: str | None,
    ) -> None:
        engine = self._engine
        machine = await engine.create(
            {
                **NOBODYS,
                **columns(template, driver, capabilities, size),
                "vcpu": float(-(-size.vcpu // 1)),
                "env": {},
            },
            template.config,
            in_place_of=waiting,
        )
        try:
            await engine.settled(machine.id)
            await self._warm_up(machine.id, template)
            if starting.of(template.config) is not None:
                await self._settle(machine.id)
            values = {"tenant_id": NOBODY, "name": name, "for_fork": False}
            await engine.snapshot(machine.id, values)
        finally:
            await asyncio.shield(engine.destroy(machine.id))

    async def _warm_up(self, machine_id: str, template: Template) -> None:
        running = self._engine.roster.peek(machine_id)
        if running is None:
            raise MachineError("The machine to be baked ended at once.", code="MACHINE_FAILED")
        agent = cast("AgentClient", running.agent)
        for command in _warmup(template):
            request = pb.StartRequest(
                execution_id=ids.new(),
                argv=["/bin/sh", "-c", command],
                timeout_ms=int(WARMUP_S * 1000),
            )
            result = await agent.run(request)
            if (code := result.execution.exit_code) != 0:
                said = result.stderr.decode(errors="replace")[-500:]
                raise MachineError(
                    f"The warm-up of {template.name} failed: {command!r} ended with {code}: {said}",
                    code="MACHINE_FAILED",
                )

    async def _settle(self, machine_id: str) -> None:
        """What was started goes on with that for a while once it is ready, and would in each machine made from this."""
        running = self._engine.roster.peek(machine_id)
        if running is None:
            return
        driver, clock = self._engine.rungs.driver(running.machine.driver), time.monotonic
        until, before = clock() + SETTLE_S, (-math.inf, 0)
        while clock() < until:
            now = (clock(), (await driver.usage(running.handle)).cpu_usage_us)
            if now[1] - before[1] < QUIET * 1e6 * (now[0] - before[0]) < math.inf:
                return
            before = now
            await asyncio.sleep(SETTLE_LOOK_S)
        log.info("bake.restless", machine_id=machine_id)

    async def collect(self) -> None:
        """Deletes bakes that nothing was made from for ``KEEP``, and those that cannot be loaded."""
        now = self._engine.clock.now()

        def fn(connection: sa.Connection) -> list[rows.Row]:
            return rows.page(connection, NOBODY, machine_id=None, limit=1000, after=None)

        for row in await self._store.read(fn):
            used = max(row["created_at"], self._since, self._used.get(row["id"], self._since))
            unused = now - used > KEEP
            useless = row["name"] is None or row["memory_image"] is None
            if (unused or useless) and await self._engine.delete_snapshot(row["id"]):
                self._used.pop(row["id"], None)

    async def tidy(self) -> None:
        """Gives back what drivers kept of versions that no capture needs any more. Not while a machine may be on its
        way to sleep, and so in neither list."""
        if self._engine.desk.busy():
            return
        images = await self._store.read(rows.memory_images)
        manifests = [image["manifest"] for image in images]
        for driver in self._engine.rungs.drivers.values():
            await driver.tidy(manifests)


def alike(config: Mapping[str, Any], env: Mapping[str, str]) -> bool:
    """Whether a machine made ahead, which knows no ``env`` of its own, is as one that booted with it: what is started
    there may read it. A template that names the rungs to bake says that it does not."""
    return not env or starting.of(config) is None or isinstance(config.get("bake"), list)


def columns(
    template: Template, driver: str, capabilities: Capabilities, size: Size
) -> dict[str, Any]:
    """Those of a machine that tell what it is, not whose."""
    return {
        "template_id": template.id,
        "template": template.name,
        "image_digest": template.digest,
        "driver": driver,
        "isolation": capabilities.isolation.value,
        "capabilities": capabilities_to_json(capabilities),
        "vcpu": size.vcpu,
        "memory_mib": size.memory_mib,
        "storage_gib": size.storage_gib,
    }


def _warmup(template: Template) -> tuple[str, ...]:
    commands: Any = template.config.get("warmup")
    if isinstance(commands, list) and all(isinstance(each, str) for each in commands):
        return tuple(commands)
    return WARMUP
