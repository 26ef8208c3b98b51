"""Host: what this machine of machines is and can, for ``GET /v1/host``."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import roost
from roost.engine import reservations
from roost.engine.engine import Engine
from roost.engine.lifecycle import HOLDING
from roost.engine.machine import capabilities_to_json
from roost.host import doctor
from roost.services import contracts
from roost.services.warm import Warm
from roost.settings import Settings
from roost.store import machines as rows

Checks = Callable[[], Awaitable[Sequence[Mapping[str, Any]]]]  # {name, ok, detail, remedy} each

DECIDE_S = 20.0  # after which the answer is the one of now


class Host:
    """``checks`` looks at what the daemon needs of the host: ``roost.host.doctor`` unless told otherwise."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        url: str,
        checks: Checks | None = None,
        warm: Warm | None = None,
    ) -> None:
        self._warm = warm
        self._engine = engine
        self._settings = settings
        self._url = url
        self._checks = checks or functools.partial(doctor.checks, settings)
        self._started_at = engine.clock.now()

    async def describe(self) -> dict[str, Any]:
        """As SPECIFICATION says; plus ``stuck``: operations that could neither be done nor undone."""
        described = await self.describe_rungs()
        return {
            "daemon": {
                "pid": os.getpid(),
                "version": roost.__version__,
                "started_at": self._started_at,
                "data_dir": str(self._settings.data_dir),
                "url": self._url,
            },
            "node_id": self._engine.identity.node_id,
            "rungs": described,
            "checks": [dict(check) for check in await self._checks()],
            "default_driver": self._engine.rungs.default,
            "profile": self._engine.rungs.profile.value,
            "capacity": await self._capacity(),
            "pool": asdict(await self._engine.parts.storage.usage()),
            "stuck": await self._engine.stuck(),
        }

    async def public(self) -> dict[str, Any]:
        """For those who are not admins: what machines can be made and what they are, in the same form; nothing of the
        host's paths, processes, versions, fullness or others' machines."""
        described = await self.describe_rungs()
        hidden = dict.fromkeys(("version", "reason", "remedy"))
        return {
            "daemon": {
                "pid": None,
                "version": roost.__version__,
                "started_at": None,
                "data_dir": None,
                "url": self._url,
            },
            "node_id": self._engine.identity.node_id,
            "rungs": [{**rung, **hidden, "details": {}} for rung in described],
            "checks": [],
            "default_driver": self._engine.rungs.default,
            "profile": self._engine.rungs.profile.value,
            "capacity": None,
            "pool": None,
        }

    async def capabilities(self, tenant: str, everything: bool) -> dict[str, Any]:
        """The contract of each rung, for a tenant (``contracts``)."""
        engine = self._engine
        least = await engine.store.read(lambda c: engine.least(c, tenant))
        await engine.rungs.decide(DECIDE_S)
        await engine.rungs.probe()
        return await asyncio.to_thread(contracts.describe, engine.rungs, least, everything)

    async def describe_rungs(self) -> list[dict[str, Any]]:
        """As they are now."""
        await self._engine.rungs.decide(DECIDE_S)
        await self._engine.rungs.probe()
        return self._rungs()

    def _rungs(self) -> list[dict[str, Any]]:
        rungs = self._engine.rungs
        described = []
        for name in rungs.offered:
            probe = rungs.probes[name]
            capabilities = rungs.capabilities(name)
            described.append(
                {
                    "driver": name,
                    "isolation": capabilities.isolation.value if capabilities else None,
                    "level": capabilities.level if capabilities else None,
                    "available": probe.available,
                    "version": probe.version,
                    "reason": probe.reason,
                    "remedy": probe.remedy,
                    "details": dict(probe.details),
                    "capabilities": capabilities_to_json(capabilities) if capabilities else None,
                }
            )
        return described

    async def _capacity(self) -> dict[str, Any]:
        host = self._engine.host()
        limit = reservations.budget(self._settings, host)
        vcpu, memory_mib, count = await self._engine.store.read(lambda c: rows.held(c, HOLDING))
        return {
            "host_vcpu": host.vcpu,
            "host_memory_mib": host.memory_mib,
            "available_memory_mib": host.available_mib,
            "vcpu": {"held": vcpu, "limit": limit.vcpu},
            "memory_mib": {"held": memory_mib, "limit": limit.memory_mib},
            "machines_running": count,
            "warm_machines": {
                "ready": self._warm.count if self._warm else 0,
                "of_each_kind": self._settings.warm_machines if self._warm else 0,
            },
        }
