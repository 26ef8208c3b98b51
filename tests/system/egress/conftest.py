from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from roost.egress.policy import Policy
from roost.egress.supervisor import Supervisor
from roost.settings import Settings

from .world import DNS, OTHER, PLAIN, WEB, World

SLOT = 7


@pytest.fixture(scope="session")
def far() -> Iterator[World]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    place = Path(tempfile.mkdtemp(prefix="roost-egress-", dir="/run"))
    try:
        with World(place).up() as world:
            yield world
    finally:
        shutil.rmtree(place)


@pytest.fixture
def world(far: World) -> World:
    """With nothing of an earlier test."""
    far.far.heard.clear()
    far.far.bodies.clear()
    far.names.asked.clear()
    far.names.turns.clear()
    far.names.silent = False
    far.names.addresses = {
        "allowed.test": [WEB],
        "front.allowed.test": [WEB],
        "second.test": [OTHER],
        "other.test": [WEB],
        "plain.test": [PLAIN],
    }
    far.names.aliases = {"alias.test": "allowed.test"}
    return far


class Egress:
    """The process, with one slot of the world's."""

    def __init__(self, world: World, supervisor: Supervisor) -> None:
        self.world = world
        self.supervisor = supervisor

    async def attach(self) -> None:
        listeners = self.world.listeners()
        await self.supervisor.attach(SLOT, listeners)
        for sock in (listeners.dns_udp, listeners.dns_tcp, listeners.proxy):
            sock.close()

    async def allow(self, *entries: str, **more: object) -> None:
        await self.apply({"mode": "allowlist", "allow": list(entries), **more})

    async def apply(self, policy: object, **more: object) -> None:
        await self.supervisor.apply(SLOT, "m-1", Policy.read(policy), **more)  # type: ignore[arg-type]

    async def tried(self) -> dict[tuple[str, int, str], str]:
        """(host, port, via) -> why not, the last."""
        found = await self.supervisor.decisions(SLOT)
        return {(each.host, each.port, each.via): each.reason for each in found}


@pytest.fixture
def settings() -> Iterator[Settings]:
    place = Path(tempfile.mkdtemp(prefix="roost-egress-", dir="/run"))
    yield Settings(data_dir=place / "data", run_dir=place / "run")
    shutil.rmtree(place)


@pytest.fixture
async def egress(world: World, settings: Settings) -> AsyncIterator[Egress]:
    supervisor = Supervisor(settings, servers=[(DNS, 53)])
    await supervisor.open()
    try:
        made = Egress(world, supervisor)
        await made.attach()
        yield made
    finally:
        await supervisor.purge()
        log = settings.data_dir / "logs" / "egress.log"
        assert log.read_text() == "", "the process complained"
