"""Real drivers, slots and pool, with no daemon above them, in directories and an address range of their own.

The root tree is a handful of the host's programs with their libraries: no mirror is needed, and a test
starts in a second. The "internet" is a namespace with public addresses that only this host routes to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from roost.agent.client import AgentClient
from roost.agent.v1 import agent_pb2 as pb
from roost.drivers import create
from roost.drivers.container import ContainerDriver
from roost.drivers.interface import Capture, Handle, NetworkSlot, Root, Size, StartSpec
from roost.drivers.tree import AgentBinary, default_agent
from roost.egress.policy import Policy
from roost.host import files
from roost.network import SlotNetwork
from roost.settings import Settings
from roost.storage import Image, PoolStorage, disks
from roost.templates.build import Builder
from tests.system.internet import RESOLVER, Internet

TOKEN = "t" * 32
_PROGRAMS = (
    "bash cat chmod cp dd env id ln ls mkdir mv perl rm sh sleep stat sync timeout touch true"
)
PROGRAMS = _PROGRAMS.split()


@dataclass
class Machine:
    id: str
    driver: ContainerDriver
    handle: Handle
    slot: NetworkSlot
    disk: Path
    spec: StartSpec
    client: AgentClient

    async def run(self, shell: str, timeout_s: float = 20) -> tuple[int, str]:
        """Exit code and both outputs."""
        request = pb.StartRequest(
            execution_id=uuid.uuid4().hex,
            argv=["/bin/bash", "-c", shell],
            timeout_ms=int(timeout_s * 1000),
        )
        result = await self.client.run(request)
        text = (result.stdout + result.stderr).decode(errors="replace")
        return result.execution.exit_code, text


@dataclass
class World:
    settings: Settings
    storage: PoolStorage
    image: Image
    network: SlotNetwork
    machines: dict[str, Machine] = field(default_factory=dict)
    made: int = 0

    def driver(self, name: str) -> ContainerDriver:
        driver = create(name, self.settings)
        assert isinstance(driver, ContainerDriver)
        return driver

    async def start(self, driver: ContainerDriver, **changes: Any) -> Machine:
        self.made += 1
        machine_id = f"test{self.made}"
        slot = await self.network.take(machine_id, Policy())
        disk = await self.storage.clone(self.image, machine_id, changes.pop("storage_gib", 1))
        values: dict[str, Any] = {
            "machine_id": machine_id,
            "hostname": f"box{self.made}",
            "size": Size(1, 256, 1),
            "root": Root(image=disk),
            "slot": slot,
            "agent_token": TOKEN,
            "linux_id": f"{self.made:032x}",
        }
        spec = StartSpec(**{**values, **changes})
        return await self.boot(driver, spec)

    async def boot(
        self, driver: ContainerDriver, spec: StartSpec, capture: Capture | None = None
    ) -> Machine:
        assert spec.slot is not None
        assert spec.root.image is not None
        handle = await (driver.restore(spec, capture) if capture else driver.start(spec))
        client = AgentClient(handle.agent_target, TOKEN)
        machine = Machine(spec.machine_id, driver, handle, spec.slot, spec.root.image, spec, client)
        self.machines[spec.machine_id] = machine
        await client.wait_ready(60)
        return machine

    async def hang_up(self, machine: Machine) -> None:
        """As whoever captures memory must; the next call dials again."""
        await machine.client.close()
        machine.client = AgentClient(machine.handle.agent_target, TOKEN)

    async def capture(self, machine: Machine) -> tuple[Capture, Path]:
        """And its disk, which is of the same instant."""
        self.made += 1
        into = self.storage.pool.tmp / f"capture{self.made}"
        into.mkdir()
        disk = into.with_suffix(".ext4")
        await self.hang_up(machine)
        return await machine.driver.capture(machine.handle, into, disk), disk

    async def child(self, kept: tuple[Capture, Path], parent: Machine, **changes: Any) -> Machine:
        """Goes on from the capture where it has memory, else starts from its disk."""
        capture, source = kept
        self.made += 1
        machine_id = f"test{self.made}"
        slot = await self.network.take(machine_id, Policy())
        disk = self.storage.disk(machine_id)
        files.reflink(source, disk)
        info = disks.read(parent.disk)
        assert info is not None
        disks.write(disk, info)
        spec = replace(
            parent.spec,
            machine_id=machine_id,
            hostname=f"box{self.made}",
            root=Root(image=disk),
            slot=slot,
            linux_id=f"{self.made:032x}",
            **changes,
        )
        return await self.boot(parent.driver, spec, capture if capture.memory else None)

    async def destroy(self, machine: Machine) -> None:
        await machine.client.close()
        await machine.driver.remove(machine.id)
        await self.network.release(machine.id)
        await self.storage.delete(machine.id)
        self.machines.pop(machine.id, None)


@pytest.fixture(scope="session")
def tree() -> Iterator[Path]:
    """A root tree of the host's programs."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not default_agent().exists():
        pytest.skip("needs the agent (scripts/up builds it)")
    root = Path(tempfile.mkdtemp(prefix="roost-tree-"))
    try:
        for name in ("etc", "tmp", "proc", "sys", "dev", "run", "root", "usr/bin", "home/user"):
            (root / name).mkdir(parents=True)
        (root / "bin").symlink_to("usr/bin")
        (root / "tmp/.keep").write_text("x")
        os.chmod(root / "tmp", 0o1777)
        (root / "etc/passwd").write_text(
            "root:x:0:0::/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/bash\n"
        )
        (root / "etc/group").write_text("root:x:0:\nuser:x:1000:\n")
        for program in PROGRAMS:
            path = shutil.which(program, path="/usr/bin:/bin")
            assert path is not None, program
            shutil.copy(path, root / "usr/bin" / program)
            for word in subprocess.run(
                ["ldd", path], capture_output=True, text=True
            ).stdout.split():
                if word.startswith("/") and not (root / word[1:]).exists():
                    (root / word[1:]).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(word, root / word[1:])
        yield root
    finally:
        shutil.rmtree(root)


@pytest.fixture(scope="session")
def place() -> Iterator[Settings]:
    """Directories and a range of the session's own; purged at its end."""
    base = Path(tempfile.mkdtemp(prefix="roost-host-"))
    settings = Settings(
        data_dir=base / "data",
        run_dir=base / "run",
        pool_gib=8,
        pool_reserve_percent=0.5,
        network_cidr="10.231.0.0/20",
        network_pool=2,
        dns=RESOLVER,
        operation_timeout_s=30,
    )
    try:
        yield settings
    finally:
        create("runc", settings).cgroups.remove_parent()  # type: ignore[attr-defined]
        # Whoever cloned the host's mount table meanwhile holds the pool on; that is not ours to end.
        with contextlib.suppress(TimeoutError):
            asyncio.run(PoolStorage(settings).purge())
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session")
def image(tree: Path, place: Settings) -> Image:
    """In the pool, with the agent."""

    async def make() -> Image:
        storage = PoolStorage(place)
        await storage.open()
        work = storage.pool.tmp / "tree.ext4"
        with work.open("xb") as file:
            file.truncate(1 << 30)
        subprocess.run(
            ["mke2fs", "-q", "-t", "ext4", "-E", "assume_storage_prezeroed=1", "-d", tree, work],
            check=True,
        )
        layer = storage.image_store.add(work, "sha256:" + "0" * 64, {"agent_digest": None})
        builder = Builder(storage.pool, storage.image_store, AgentBinary(default_agent()))
        made = builder._with_agent(layer, "")
        await storage.close()
        return made

    return asyncio.run(make())


@pytest.fixture
async def world(place: Settings, image: Image, internet: Internet) -> AsyncIterator[World]:
    storage, network = PoolStorage(place), SlotNetwork(place)
    await storage.open()
    await network.open({})
    world = World(place, storage, image, network, made=World.made)
    try:
        yield world
    finally:
        for machine in list(world.machines.values()):
            await world.destroy(machine)
        World.made = world.made
        await world.network.purge()
        await world.network.close()
        await storage.close()


@pytest.fixture(params=["runc", "gvisor"])
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def driver(world: World, runtime: str) -> ContainerDriver:
    driver = world.driver(runtime)
    probe = await driver.probe()
    if not probe.available:
        pytest.skip(probe.reason or "not available")
    return driver
