"""microVMs of the real driver, with no daemon above. One is booted a session and saved; tests restore that.

The guest is the project's own, or a directory named by ``ROOST_TEST_GUEST`` (``vmlinux`` and ``initrd``).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from roost.agent.client import AgentClient
from roost.agent.v1 import agent_pb2 as pb
from roost.drivers.interface import Capture, Handle, NetworkSlot, Root, Size, StartSpec
from roost.drivers.qemu import GuestImage, QemuDriver
from roost.drivers.tree import default_agent
from roost.network import SlotNetwork
from roost.settings import Settings
from roost.storage import Image, PoolStorage
from tests.system.host.conftest import (  # noqa: F401
    World,
    image,
    internet,
    place,
    world,
)
from tests.system.host.conftest import tree as host_tree  # noqa: F401

MEMORY_MIB = 256
READY_S = 120.0
# 64 MiB that nothing can guess, and a process that counts in memory.
COUNTING = """
mkdir -p /dev/shm
[ -w /dev/shm/.probe ] || mount -t tmpfs none /dev/shm 2>/dev/null
dd if=/dev/urandom of=/dev/shm/random bs=1M count=64 2>/dev/null
(i=0; while :; do i=$((i+1)); echo $i >/dev/shm/.new; mv /dev/shm/.new /dev/shm/count; sleep 0.05; done) \
  >/dev/null 2>&1 </dev/null &
sleep 0.5
cksum /dev/shm/random
"""


@dataclass
class Files:
    digest: str
    directory: Path

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinux"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd"

    @property
    def modules(self) -> Path:
        return self.directory / "modules.img"


class DirectoryGuests:
    first_token = "roost-guest"

    def __init__(self, directory: Path) -> None:
        digest = hashlib.sha256((directory / "initrd").read_bytes()).hexdigest()
        self.files = Files(digest, directory)

    async def current(self) -> GuestImage:
        return self.files

    def get(self, digest: str) -> GuestImage | None:
        return self.files if digest == self.files.digest else None

    def command_line(self, *, accelerated: bool, slot: NetworkSlot | None) -> str:
        words = ["console=ttyS0 quiet panic=-1 reboot=t root=/dev/vda mitigations=off"]
        if not accelerated:
            words += [f"tsc=reliable tsc_early_khz={_tsc_khz()} no_timer_check"]
        if self.files.modules.exists():
            words += ["roost.modules=/dev/vdb"]
        if slot is not None:
            words += [f"roost.address={slot.address} roost.gateway={slot.gateway}"]
        return " ".join(words)


def _tsc_khz() -> int:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("cpu MHz"):
            return int(float(line.split(":")[1]) * 1000)
    raise LookupError("cpu MHz")


@pytest.fixture(scope="session")
def tree(host_tree: Path) -> Path:  # noqa: F811
    for program in ("cksum", "mount", "umount"):
        path = shutil.which(program)
        assert path is not None
        shutil.copy(path, host_tree / "usr/bin" / program)
        listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
        for word in listed.split():
            if word.startswith("/") and not (host_tree / word[1:]).exists():
                (host_tree / word[1:]).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(word, host_tree / word[1:])
    # A guest that does not bring the agent itself starts the image's.
    (host_tree / ".roost").mkdir(exist_ok=True)
    shutil.copy(default_agent(), host_tree / ".roost/agent")
    return host_tree


@pytest.fixture(scope="session")
def guests(place: Settings) -> Any:  # noqa: F811
    if directory := os.environ.get("ROOST_TEST_GUEST"):
        return DirectoryGuests(Path(directory))
    module = pytest.importorskip("roost.guest", reason="no guest to boot")
    found = asyncio.run(module.Guests(place.data_dir, default_agent()).ensure(lambda *_: None))
    return DirectoryGuests(found.kernel.parent)


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


@dataclass
class Lab:
    driver: QemuDriver
    storage: PoolStorage
    image: Image
    network: SlotNetwork
    vms: dict[str, Vm] = field(default_factory=dict)

    async def spec(self, machine_id: str, disk_from: Path | None = None) -> StartSpec:
        disk = await self.storage.clone(self.image, machine_id, 1)
        if disk_from is not None:
            _reflink(disk_from, disk)
        slot = await self.network.take(machine_id)
        size = Size(1, MEMORY_MIB, 1)
        return StartSpec(machine_id, "box", size, Root(image=disk), slot, "t" * 32)

    async def begin(self, spec: StartSpec, capture: Capture | None = None) -> Vm:
        if capture is None:
            handle = await self.driver.start(spec)
        else:
            handle = await self.driver.restore(spec, capture)
        token = self.driver.first_token(spec, capture)
        vm = Vm(handle, spec, AgentClient(handle.agent_target, token))
        self.vms[spec.machine_id] = vm
        try:
            await vm.client.wait_ready(READY_S)
        except Exception:
            print(await self.driver.console_tail(spec.machine_id))
            raise
        return vm

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


def _reflink(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--reflink=always", source, target], check=True)


@dataclass
class Saved:
    capture: Capture
    disk: Path
    checksum: str
    pauses_ms: list[float]


@pytest.fixture(scope="session")
def saved(place: Settings, image: Image, guests: Any, internet: str) -> Saved:  # noqa: F811
    """A machine that counts, captured ten times while it ran; the last capture is kept."""

    async def make() -> Saved:
        storage, network = PoolStorage(place), SlotNetwork(place)
        await storage.open()
        await network.open({})
        driver = QemuDriver(place, guests)
        if not (probe := await driver.probe()).available:
            pytest.skip(probe.reason or "not available")
        lab = Lab(driver, storage, image, network)
        try:
            vm = await lab.begin(await lab.spec("saved"))
            checksum = await vm.run(COUNTING)
            pauses = []
            for number in range(10):
                into = storage.pool.variants / f"saved{number}"
                disk = storage.pool.variants / f"saved{number}.ext4"
                capture = await driver.capture(vm.handle, into, disk)
                pauses.append(capture.paused_ms)
                if number < 9:
                    shutil.rmtree(into)
                    disk.unlink()
            assert await vm.counter() > 0
            return Saved(capture, disk, checksum, pauses)
        finally:
            await lab.end_all()
            await network.purge()
            await network.close()
            await storage.close()

    return asyncio.run(make())


@pytest.fixture
async def lab(world: World, saved: Saved, guests: Any) -> AsyncIterator[Lab]:  # noqa: F811
    driver = QemuDriver(world.settings, guests)
    await driver.probe()
    lab = Lab(driver, world.storage, world.image, world.network)
    try:
        yield lab
    finally:
        await lab.end_all()
        assert await driver.list_ids() == set()
