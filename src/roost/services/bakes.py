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
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa
import structlog

from roost import ids
from roost.agent.v1 import agent_pb2 as pb
from roost.drivers.interface import Capabilities, Size
from roost.engine.engine import Engine
from roost.engine.machine import Machine, capabilities_to_json
from roost.errors import MachineError, RoostError
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
}
KEEP = timedelta(days=7)  # without a machine made from it
WARMUP = ("true",)  # what a template that names nothing runs before it is captured
WARMUP_S = 120.0
PIECE = 1 << 20


class Bakes:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._store = engine.store
        self._making: dict[str, asyncio.Task[rows.Row]] = {}
        self._since = engine.clock.now()
        self._used: dict[str, datetime] = {}  # snapshot id -> when, since then
        engine.source = self.of

    @contextlib.asynccontextmanager
    async def of(self, machine: Machine) -> AsyncIterator[Mapping[str, Any]]:
        """As ``source``, for a machine that is there and waits, with what its driver turned out to be. One of nobody
        begins where it was told."""
        engine = self._engine
        if machine.tenant_id == NOBODY or not engine.rungs.driver(machine.driver).bakes:
            yield {}
            return
        capabilities = await engine.rungs.prepared(machine.driver)
        row = await self._store.read(lambda c: templates.get(c, machine.template_id))
        # Of the image that it was promised; its template may have another by now.
        template = replace(Template(**row), digest=machine.image_digest)
        async with self.source(template, machine.driver, machine.size, machine.id) as source:
            yield {**source, "capabilities": capabilities_to_json(capabilities)}

    @contextlib.asynccontextmanager
    async def source(
        self, template: Template, driver: str, size: Size, waiting: str | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """The columns that tell a new machine where it begins: none for a driver that boots each, else those of
        a bake, which stays meanwhile; made where there is none, once for all who wait. ``waiting``: the machine
        that does, and has its reservation.

        Raises HOST_UNSUPPORTED, DEPENDENCY_UNAVAILABLE, CAPACITY_EXCEEDED, MACHINE_FAILED (with the console's last
        lines), STORAGE_FULL."""
        engine = self._engine
        if not engine.rungs.driver(driver).bakes:
            yield {}
            return
        name = self._name(template, driver, size)
        row = await self._find(name)
        if row is None:
            task = self._making.get(name)
            if task is None:
                task = asyncio.ensure_future(self._make(name, template, driver, size, waiting))
                self._making[name] = task
                task.add_done_callback(lambda _: self._making.pop(name, None))
            row = await asyncio.shield(task)
        self._used[row["id"]] = engine.clock.now()
        with engine.holding(row["id"]):
            yield {"snapshot_id": row["id"], "memory_image": row["memory_image"]}

    def _name(self, template: Template, driver: str, size: Size) -> str:
        chosen = self._engine.rungs.driver(driver)
        depends = [
            driver,
            template.digest,
            _warmup(template),
            [-(-size.vcpu // 1), size.memory_mib, size.storage_gib],
            dict(chosen.traits()),
            {path: hashlib.sha256(data).hexdigest() for path, data in chosen.given().items()},
        ]
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
            values = {"tenant_id": NOBODY, "name": name, "for_fork": False}
            await engine.snapshot(machine.id, values)
        finally:
            await asyncio.shield(engine.destroy(machine.id))

    async def _warm_up(self, machine_id: str, template: Template) -> None:
        running = self._engine.roster.peek(machine_id)
        if running is None:
            raise MachineError("The machine to be baked ended at once.", code="MACHINE_FAILED")
        agent = cast("AgentClient", running.agent)
        for path, content in self._engine.rungs.driver(running.machine.driver).given().items():
            header = pb.WriteFileHeader(path=path.encode(), permissions=0o644, make_parents=True)
            await agent.write_file(header, _pieces(content))
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


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(content), PIECE):
        yield content[at : at + PIECE]


def _warmup(template: Template) -> tuple[str, ...]:
    commands: Any = template.config.get("warmup")
    if isinstance(commands, list) and all(isinstance(each, str) for each in commands):
        return tuple(commands)
    return WARMUP
