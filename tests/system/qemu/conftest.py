"""microVMs of the real driver, with no daemon above. One is booted a session and saved; tests restore that."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from roost.agent.client import AgentClient
from roost.agent.v1 import agent_pb2 as pb
from roost.drivers.interface import Capture, Handle, Root, Size, StartSpec
from roost.drivers.qemu import QemuDriver
from roost.egress.policy import Policy
from roost.guest import Guests
from roost.network import SlotNetwork
from roost.settings import Settings
from roost.storage import Image, PoolStorage
from tests.system import conftest as session
from tests.system.host.conftest import (  # noqa: F401
    World,
    image,
    world,
)
from tests.system.host.conftest import place as host_place  # noqa: F401
from tests.system.host.conftest import tree as host_tree  # noqa: F401
from tests.system.internet import Internet

MEMORY_MIB = 256
READY_S = 60.0
TOKEN = "t" * 32  # of every machine here, once it has been renewed
# 16 MiB that nothing can guess, and a process that counts in memory.
COUNTING = """
dd if=/dev/urandom of=/dev/shm/random bs=1M count=16 2>/dev/null
(i=0; while :; do i=$((i+1)); echo $i >/dev/shm/.new; mv /dev/shm/.new /dev/shm/count; sleep 0.05; done) \
  >/dev/null 2>&1 </dev/null &
until test -e /dev/shm/count; do sleep 0.1; done
cksum /dev/shm/random
"""


@pytest.fixture(scope="session")
def tree(host_tree: Path) -> Path:  # noqa: F811
    for name in ("cksum", "dd"):
        path = shutil.which(name)
        assert path is not None
        shutil.copy(path, host_tree / "usr/bin" / name)
    return host_tree


@pytest.fixture(scope="session")
def place(host_place: Settings, guests: Guests) -> Iterator[Settings]:  # noqa: F811
    """With the guest that all share."""
    host_place.data_dir.mkdir(parents=True, exist_ok=True)
    link = host_place.data_dir / "guest"
    link.symlink_to(session.DATA_DIR / "guest")
    yield host_place.model_copy(update={"operation_timeout_s": 2 * READY_S})
    link.unlink()


@dataclass
class Vm:
    handle: Handle
    spec: StartSpec
    client: AgentClient
    count: int = 0

    async def run(self, shell: str, timeout_s: float = 60) -> str:
        self.count += 1
        request = pb.StartRequest(
            execution_id=f"e{self.count}x{os.urandom(4).hex()}",
            argv=["/bin/bash", "-c", shell],
            timeout_ms=int(timeout_s * 1000),
        )
        result = await self.client.run(request)
        return (result.stdout + result.stderr).decode(errors="replace").strip()

    async def counter(self) -> int:
        return int(await self.run("cat /dev/shm/count"))

    async def counts_on(self) -> int:
        """Waits for it to do so."""
        at = await self.counter()
        async with asyncio.timeout(60):
            while (now := await self.counter()) <= at:
                await asyncio.sleep(0.05)
        return now


@dataclass
class Lab:
    driver: QemuDriver
    storage: PoolStorage
    image: Image
    network: SlotNetwork
    vms: dict[str, Vm] = field(default_factory=dict)
    directories: int = 0

    async def spec(self, machine_id: str, disk_from: Path | None = None) -> StartSpec:
        disk = await self.storage.clone(self.image, machine_id, 1)
        if disk_from is not None:
            _reflink(disk_from, disk)
        return StartSpec(
            machine_id=machine_id,
            hostname="box",
            size=Size(1, MEMORY_MIB, 1),
            root=Root(image=disk),
            slot=await self.network.take(machine_id, Policy()),
            agent_token=TOKEN,
            linux_id="1" * 32,
        )

    def directory(self) -> Path:
        """An empty one, in the pool."""
        self.directories += 1
        made = self.storage.pool.variants / f"lab{self.directories}"
        made.mkdir()
        return made

    async def begin(self, spec: StartSpec, capture: Capture | None = None) -> Vm:
        if capture is None:
            handle = await self.driver.start(spec)
            client = AgentClient(handle.agent_target, self.driver.first_token)
        else:
            handle = await self.driver.restore(spec, capture)
            client = AgentClient(handle.agent_target, TOKEN)
        vm = Vm(handle, spec, client)
        self.vms[spec.machine_id] = vm
        await client.wait_ready(READY_S)
        if capture is None:
            await client.renew_identity(pb.RenewIdentityRequest(hostname="box", new_token=TOKEN))
            client.use_token(TOKEN)
            self.driver.use_token(handle, TOKEN)
        return vm

    async def again(self, vm: Vm, capture: Capture) -> Vm:
        """The same machine, after ``hibernate``."""
        await vm.client.close()
        return await self.begin(vm.spec, capture)

    async def end(self, machine_id: str) -> None:
        vm = self.vms.pop(machine_id, None)
        if vm is not None:
            await vm.client.close()
        await self.driver.remove(machine_id)
        await self.network.release(machine_id)
        await self.storage.delete(machine_id)

    async def end_all(self) -> None:
        for machine_id in [*self.vms, *await self.driver.list_ids()]:
            await self.end(machine_id)
        for number in range(self.directories):
            path = self.storage.pool.variants / f"lab{number + 1}"
            shutil.rmtree(path, ignore_errors=True)


def _reflink(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--reflink=always", source, target], check=True)


def copied(capture: Capture, directory: Path) -> Capture:
    """The same, in the empty ``directory``, whose files may be written."""
    for path in capture.directory.iterdir():
        _reflink(path, directory / path.name)
        os.chmod(directory / path.name, 0o644)
    return Capture(directory, capture.manifest)


@dataclass
class Saved:
    capture: Capture
    disk: Path
    checksum: str
    pauses_ms: list[float]


@pytest.fixture(scope="session")
def saved(place: Settings, image: Image, internet: Internet) -> Saved:  # noqa: F811
    """A machine that counts, captured ten times while it ran; the last capture is kept."""

    async def make() -> Saved:
        storage, network = PoolStorage(place), SlotNetwork(place)
        await storage.open()
        await network.open({})
        driver = QemuDriver(place)
        if not (probe := await driver.probe()).available:
            pytest.skip(probe.reason or "not available")
        lab = Lab(driver, storage, image, network)
        try:
            vm = await lab.begin(await lab.spec("saved"))
            checksum = await vm.run(COUNTING)
            pauses = []
            for number in range(10):
                into = storage.pool.variants / f"saved{number}"
                into.mkdir()
                disk = into.with_suffix(".ext4")
                capture = await driver.capture(vm.handle, into, disk)
                pauses.append(capture.paused_ms)
                if number < 9:
                    shutil.rmtree(into)
                    disk.unlink()
            await vm.counts_on()
            return Saved(capture, disk, checksum, pauses)
        finally:
            await lab.end_all()
            await network.purge()
            await network.close()
            await storage.close()

    return asyncio.run(make())


@pytest.fixture
async def lab(world: World, saved: Saved) -> AsyncIterator[Lab]:  # noqa: F811
    driver = QemuDriver(world.settings)
    await driver.probe()
    lab = Lab(driver, world.storage, world.image, world.network)
    try:
        yield lab
    finally:
        await lab.end_all()
        assert await driver.list_ids() == set()
