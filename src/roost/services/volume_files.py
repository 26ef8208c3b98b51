"""Files of volumes, for who has no machine that mounts them: through the machine that has the volume, else through a
small one made for it, which ends by itself a while after it was last asked.

    reach --> the machine that has it read-write, or any that has it
          '-> nobody has it: ``keeper`` (labelled, no network, a minute's life) --> reach again
    release --> the keeper goes, for somebody wants the volume
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import timedelta
from weakref import WeakValueDictionary

from roost.egress.policy import Mode, Policy
from roost.errors import NotFoundError
from roost.services.machines import Machines
from roost.services.models import Attach, CreateMachine, PatchMachine, Volume
from roost.services.volumes import Volumes

LABEL = "roost.volume-files"
PATH = "/volume"
TTL_S = 120
MEMORY_MIB = 256


@dataclass(frozen=True, slots=True)
class Reached:
    """Where the volume's files are: below ``path`` of a machine."""

    machine_id: str
    path: str
    kept: bool = False  # by a keeper


class VolumeFiles:
    """Every call takes the caller's tenant first; another tenant's volume answers VOLUME_NOT_FOUND."""

    def __init__(self, machines: Machines, volumes: Volumes) -> None:
        self._machines = machines
        self._volumes = volumes
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def reach(self, tenant: str, which: str) -> Reached:
        """Raises VOLUME_NOT_FOUND and what making a machine raises."""
        volume = await self._volumes.get(tenant, which)
        turn = self._turns.setdefault(volume.id, asyncio.Lock())
        async with turn:
            volume = await self._volumes.get(tenant, volume.id)
            held = sorted(volume.attachments, key=lambda each: each.read_only)
            for each in held:
                try:
                    machine = await self._machines.get(tenant, each.machine_id)
                except NotFoundError:
                    continue
                kept = LABEL in machine.labels
                if kept:
                    await self._stay(tenant, machine.id)
                return Reached(each.machine_id, each.path, kept)
            made = await self._machines.create(tenant, _keeper(volume))
            return Reached(made.id, PATH, True)

    async def during(
        self, tenant: str, reached: Reached, data: AsyncGenerator[bytes, None]
    ) -> AsyncGenerator[bytes, None]:
        """The same, for as long as it takes: a keeper stays."""
        asked = self._machines.clock.monotonic()
        async with contextlib.aclosing(data):
            async for piece in data:
                now = self._machines.clock.monotonic()
                if reached.kept and now - asked > TTL_S / 8:
                    await self._stay(tenant, reached.machine_id)
                    asked = now
                yield piece

    async def release(self, tenant: str, which: str) -> None:
        """Nobody but users' machines has it any more. Raises VOLUME_NOT_FOUND."""
        volume = await self._volumes.get(tenant, which)
        turn = self._turns.setdefault(volume.id, asyncio.Lock())
        async with turn:
            volume = await self._volumes.get(tenant, volume.id)
            for each in volume.attachments:
                machine = await self._machines.get(tenant, each.machine_id)
                if LABEL in machine.labels:
                    await self._machines.delete(tenant, machine.id)

    async def _stay(self, tenant: str, machine_id: str) -> None:
        machine = await self._machines.get(tenant, machine_id)
        soon = self._machines.clock.now() + timedelta(seconds=TTL_S / 2)
        if machine.expires_at is not None and machine.expires_at < soon:
            await self._machines.patch(tenant, machine_id, PatchMachine(ttl_seconds=TTL_S))


def _keeper(volume: Volume) -> CreateMachine:
    return CreateMachine(
        labels={LABEL: volume.id},
        memory_mib=MEMORY_MIB,
        isolation="microvm" if volume.raw_written else "auto",
        autosleep_seconds=None,
        ttl_seconds=TTL_S,
        egress=Policy(Mode.OFF),
        volumes=(Attach(volume.id, PATH),),
    )
