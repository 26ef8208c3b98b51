"""The guest under a bare QEMU: no engine, no driver, no jail; directories of the session's own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from roost.agent.client import AgentClient
from roost.agent.dialler import Dialler, SocketStream
from roost.agent.v1 import agent_pb2 as pb
from roost.drivers.tree import AgentBinary, default_agent
from roost.guest import FIRST_TOKEN, PORT, Guest, Guests, Network, command_line, tsc
from roost.settings import Settings
from roost.storage import PoolStorage
from roost.templates import recipe
from roost.templates.build import Builder

TEMPLATES = Path(__file__).parents[3] / "templates"
PACKAGES = ["iproute2", "kmod", "procps", "runc", "sudo"]
# QEMU's user network offers its gateway and resolver there.
NETWORK = Network("10.0.2.15/24", "10.0.2.2", "10.0.2.3")
BOOT_S = 90.0  # on a busy host


def quiet(stage: str, percent: int | None, message: str) -> None:
    """Nobody watches the build."""


@dataclass
class Machine:
    """One QEMU and its agent. The order of the devices is the one ``roost.guest`` asks for."""

    work: Path
    guest: Guest
    disk: Path
    process: subprocess.Popen[bytes] = field(init=False)
    dialler: Dialler = field(init=False)
    client: AgentClient = field(init=False)
    renewed: pb.RenewIdentityReply = field(init=False)
    token: str = ""
    ready_s: float = 0.0
    count: int = 0

    @property
    def console(self) -> str:
        return (self.work / "console").read_text(errors="replace")

    def argv(self) -> list[str]:
        stream = self.work / "agent"
        return [
            "qemu-system-x86_64", "-M", "microvm,isa-serial=on,rtc=on,pic=on,pit=on",
            "-accel", "tcg,thread=single", "-cpu", "max", "-smp", "1", "-m", "512",
            "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
            "-bios", str(self.guest.firmware),
            "-kernel", str(self.guest.kernel), "-initrd", str(self.guest.initrd),
            "-append", command_line(tsc_khz=tsc.khz(), network=NETWORK),
            "-chardev", f"file,id=console,path={self.work}/console", "-serial", "chardev:console",
            "-drive", f"id=root,file={self.disk},format=raw,if=none",
            "-device", "virtio-blk-device,drive=root",
            "-drive", f"id=modules,file={self.guest.modules},format=raw,if=none,readonly=on",
            "-device", "virtio-blk-device,drive=modules",
            "-device", "virtio-serial-device",
            "-chardev", f"socket,id=agent,path={stream},server=on,wait=off",
            "-device", f"virtserialport,chardev=agent,name={PORT}",
            "-netdev", "user,id=net", "-device", "virtio-net-device,netdev=net",
            "-object", "rng-random,id=rng,filename=/dev/urandom",
            "-device", "virtio-rng-device,rng=rng",
        ]  # fmt: skip

    async def start(self) -> None:
        (self.work / "agent").unlink(missing_ok=True)
        begun = time.monotonic()
        with (self.work / "monitor").open("wb") as log:
            self.process = subprocess.Popen(
                self.argv(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        while not (self.work / "agent").exists():
            assert self.process.poll() is None, (self.work / "monitor").read_text()
            await asyncio.sleep(0.005)
        self.dialler = Dialler(self.work / "grpc", FIRST_TOKEN, self._open, handshake_s=BOOT_S)
        await self.dialler.start()
        self.client = AgentClient(self.dialler.target, FIRST_TOKEN)
        try:
            await self.client.wait_ready(BOOT_S)
        except Exception as failure:
            raise AssertionError(f"{failure}\n{self.console[-3000:]}") from failure
        self.ready_s = time.monotonic() - begun
        await self.renew()

    async def renew(self) -> None:
        """What the daemon does before anything else."""
        reseeded = await self.client.reseed(secrets.token_bytes(64))
        assert reseeded.kernel_reseeded
        await self.client.set_clock(time.time_ns())
        token = secrets.token_hex(16)
        request = pb.RenewIdentityRequest(
            hostname="box", machine_id=secrets.token_hex(16), new_token=token
        )
        self.renewed = await self.client.renew_identity(request)
        self.token = token
        self.dialler.use_token(token)

    async def _open(self) -> SocketStream:
        return await SocketStream.open(self.work / "agent")

    async def run(self, shell: str, user: str = "", timeout_s: float = 60) -> tuple[int, str]:
        """Exit code and both outputs."""
        self.count += 1
        request = pb.StartRequest(
            execution_id=f"e{self.count}", shell=shell, user=user, timeout_ms=int(timeout_s * 1000)
        )
        result = await self.client.run(request)
        return result.execution.exit_code, (result.stdout + result.stderr).decode(errors="replace")

    async def ok(self, shell: str, user: str = "") -> str:
        code, text = await self.run(shell, user)
        assert code == 0, text
        return text.strip()

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def gone(self, timeout_s: float = 30) -> int:
        """QEMU's exit code once it has ended by itself."""
        return await asyncio.to_thread(self.process.wait, timeout_s)

    async def close(self) -> None:
        await self.client.close()
        await self.dialler.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def place(guests: Guests) -> Iterator[Path]:
    base = Path(tempfile.mkdtemp(prefix="roost-guest-"))
    try:
        yield base
    finally:
        shutil.rmtree(base)


@pytest.fixture(scope="session")
def guest(guests: Guests) -> Guest:
    found = guests.kept()
    assert found is not None
    return found


@pytest.fixture(scope="session")
def image(place: Path) -> Path:
    """A root disk of the base template's making, with what the tests need in place of what people do."""
    directory = place / "guest-test"
    shutil.copytree(TEMPLATES / "base", directory)
    text = (directory / "recipe.toml").read_text().replace('"base"', '"guest-test"')
    start, end = text.index("packages = ["), text.index("size_gib")
    listed = ", ".join(f'"{name}"' for name in PACKAGES)
    text = f"{text[:start]}packages = [{listed}]\n{text[end:].replace('size_gib = 10', 'size_gib = 2')}"
    (directory / "recipe.toml").write_text(text)
    made = place / "disk.ext4"

    async def build() -> None:
        storage = PoolStorage(
            Settings(data_dir=place / "pool", pool_gib=8, pool_reserve_percent=0.5)
        )
        await storage.open()
        try:
            builder = Builder(storage.pool, storage.image_store, AgentBinary(default_agent()))
            digest = recipe.digest(directory)
            image = await builder.build(
                directory, recipe.load(directory), digest, quiet, force=False
            )
            subprocess.run(["cp", "--sparse=always", image.path, made], check=True)
        finally:
            await storage.close()
            with contextlib.suppress(TimeoutError):
                await storage.purge()

    asyncio.run(build())
    return made


@pytest.fixture
async def machines(place: Path, guest: Guest, image: Path) -> AsyncIterator[Callable[[], Machine]]:
    """Makes machines on disks of their own, not yet started."""
    made: list[Machine] = []

    def make() -> Machine:
        work = Path(tempfile.mkdtemp(prefix="machine-", dir=place))
        disk = work / "disk.ext4"
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", image, disk], check=True)
        made.append(Machine(work, guest, disk))
        return made[-1]

    try:
        yield make
    finally:
        for machine in made:
            if hasattr(machine, "client"):
                await machine.close()
