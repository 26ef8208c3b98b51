"""The place of one build: a machine that belongs to nobody, from the first step that changes files to the last.

Such a machine is like one that is baked: journal, recovery and sweeping hold for it, and what a daemon left when it
was killed is ended by the next. It becomes a tenant's only where its step failed and somebody wants to look.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa
import structlog

from roost.drivers.interface import Capabilities, Isolation, Size
from roost.engine import ladder, quotas
from roost.engine.engine import Engine
from roost.engine.machine import Machine, capabilities_to_json
from roost.engine.transitions import amend
from roost.errors import MachineError, RoostError, UnsupportedError
from roost.services.bakes import NOBODYS
from roost.services.build_log import Output
from roost.services.images import Use
from roost.services.layers import Layers
from roost.storage.interface import Image
from roost.store import keys, machines

if TYPE_CHECKING:
    from roost.agent.client import AgentClient

log = structlog.get_logger(__name__)
# For what a step started in the background, to end by itself.
GRACE_S = 2.0


@dataclass(frozen=True, slots=True)
class Place:
    """What the build's machines are. ``template_id``: of the row whose config they have."""

    tenant: str  # whose layers are used and kept
    template_id: str
    template: str
    driver: str
    size: Size


class BuildRoom:
    """See ``templates.base.Room``."""

    def __init__(self, shop: BuildWorkshop, machine: Machine) -> None:
        self._shop = shop
        self.machine_id = machine.id
        self.kept = False  # it is a tenant's now

    @property
    def agent(self) -> AgentClient:
        """Raises MACHINE_FAILED where the machine has ended."""
        running = self._shop.engine.roster.peek(self.machine_id)
        if running is None:
            raise MachineError("The build's machine ended.", code="MACHINE_FAILED")
        return cast("AgentClient", running.agent)

    @property
    def environment(self) -> Mapping[str, str]:
        """What its driver tells every program."""
        return self._shop.engine.rungs.driver(self._shop.place.driver).environment()

    async def keep(self, key: str) -> Image:
        await self.agent.shutdown(GRACE_S, exit_agent=False)
        shop = self._shop
        return await shop.layers.keep(shop.place.tenant, key, self.machine_id, shop.use)

    async def hand_over(
        self, tenant: str, key_id: str | None, name: str, env: Mapping[str, str]
    ) -> None:
        """To whoever wants to look into it. Raises QUOTA_EXCEEDED, RUNG_REFUSED."""
        engine = self._shop.engine
        now = engine.clock.now()

        def fn(connection: sa.Connection) -> Machine:
            row = machines.get(connection, self.machine_id)
            assert row is not None
            least, isolation = engine.least(connection, tenant), Isolation(row["isolation"])
            ladder.check(least, isolation, "The machine", "Build again.")
            quotas.check(connection, tenant, quotas.of_machine(dict(row)))
            values = {
                **NOBODYS,
                "tenant_id": tenant,
                "name": name,
                "created_by": key_id,
                "env": dict(env),
                "autosleep_seconds": 300,
                "hibernate_after_seconds": engine.settings.hibernate_after_s or None,
                "created_at": now,
            }
            machines.record(connection, self.machine_id, now, "kept", "its build failed")
            return amend(connection, self.machine_id, values, now)

        await engine.change(self.machine_id, fn)
        engine.roster.touch(self.machine_id)
        self.kept = True

    async def why_ended(self) -> str | None:
        """Where the machine itself has ended."""
        for _ in range(10):
            machine = await self._shop.engine.load(self.machine_id)
            if machine.phase != "running":
                return machine.reason or machine.phase
            await asyncio.sleep(0.1)
        return None


class BuildWorkshop:
    """See ``templates.base.Workshop``."""

    def __init__(
        self, engine: Engine, layers: Layers, place: Place, output: Output, use: Use
    ) -> None:
        self.engine = engine
        self.layers = layers
        self.place = place
        self.output = output  # of the step under way
        self.use = use
        self.base: Image | None = None  # what it begins from, once that is known
        self._tmp: Path | None = None

    @property
    def tmp(self) -> Path:
        if self._tmp is None:
            self._tmp = Path(tempfile.mkdtemp(prefix="build-", dir=self.engine.parts.storage.tmp))
        return self._tmp

    async def find(self, key: str) -> Image | None:
        image = await self.layers.find(self.place.tenant, key, self.use)
        if image is None or mountable(self.engine, image, self.place.driver):
            return image
        # A build in a microVM kept it. It serves where what this one begins from is not mounted either.
        began = self.base is not None and not mountable(self.engine, self.base, self.place.driver)
        return image if began else None

    async def require(self, bytes_needed: int) -> None:
        await self.engine.parts.storage.require(bytes_needed)

    def say(self, stream: str, text: bytes) -> None:
        self.output.say(stream, text)

    @contextlib.asynccontextmanager
    async def room(self, image: Image) -> AsyncIterator[BuildRoom]:
        """Ended afterwards, unless it was handed over."""
        engine, place = self.engine, self.place
        check_mountable(engine, image, place.driver)
        capabilities = await engine.rungs.prepared(place.driver)
        await engine.store.write(lambda c: keys.put_tenant(c, keys.NOBODY, engine.clock.now()))
        machine = await engine.create(
            {**NOBODYS, **self._columns(image, capabilities)}, {}, make_room=True
        )
        room = BuildRoom(self, machine)
        try:
            await engine.settled(machine.id)
            yield room
        finally:
            if not room.kept:
                await asyncio.shield(self._end(machine.id))

    def _columns(self, image: Image, capabilities: Capabilities) -> dict[str, Any]:
        place = self.place
        size = self.engine.rungs.driver(place.driver).fit(place.size)
        return {
            "template_id": place.template_id,
            "template": place.template,
            "image_digest": image.digest,
            "driver": place.driver,
            "isolation": capabilities.isolation.value,
            "capabilities": capabilities_to_json(capabilities),
            "vcpu": size.vcpu,
            "memory_mib": size.memory_mib,
            "storage_gib": size.storage_gib,
            "env": {},
            "egress": self.engine.settings.egress_policy.to_json(),
        }

    async def _end(self, machine_id: str) -> None:
        try:
            await self.engine.destroy(machine_id)
        except RoostError as failure:  # the reconciler tries again
            log.warning("build.machine_left", machine_id=machine_id, error=failure.code)

    async def close(self) -> None:
        if self._tmp is not None:
            remove = asyncio.to_thread(shutil.rmtree, self._tmp, ignore_errors=True)
            await asyncio.shield(remove)


def mountable(engine: Engine, image: Image, driver: str) -> bool:
    """The host does not mount what a virtual machine wrote, or what came from elsewhere; such drivers mount it."""
    capabilities = engine.rungs.capabilities(driver)
    foreign = image.raw_written or image.imported
    return not foreign or capabilities is None or capabilities.raw_disk


def check_mountable(engine: Engine, image: Image, driver: str) -> None:
    """Raises UNSUPPORTED."""
    if not mountable(engine, image, driver):
        why = "a microVM wrote its blocks" if image.raw_written else "it came from elsewhere"
        raise UnsupportedError(
            f"What this build begins from cannot be used with the driver {driver}, since the host does not mount it "
            f"({why}). Build it in a microVM: --driver qemu.",
            details={
                "driver": driver,
                "raw_written": image.raw_written,
                "imported": image.imported,
            },
        )
