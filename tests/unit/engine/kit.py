"""A host in memory: what outlives a daemon (database, machines, slots, disks) apart from the daemon itself."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa

from roost.agent.v1 import agent_pb2 as pb
from roost.clock import Clock, SystemClock
from roost.drivers.fake import FakeDriver
from roost.drivers.interface import NetworkSlot
from roost.egress.interface import Decision, Intercept
from roost.egress.policy import Policy
from roost.engine.engine import Engine
from roost.engine.identity import HostIdentity
from roost.engine.journal import Hook
from roost.engine.reservations import HostSize
from roost.errors import (
    CapacityError,
    MachineError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from roost.network.interface import SlotCounts
from roost.secrets.keeper import Keeper
from roost.services.bakes import Bakes
from roost.services.builds import Builds
from roost.services.layers import Layers
from roost.services.machines import Machines
from roost.services.models import CreateMachine, Progress
from roost.services.policies import Policies
from roost.services.secrets import Secrets
from roost.services.snapshots import Snapshots
from roost.services.starting import Starting
from roost.services.templates import Templates
from roost.services.volumes import Volumes
from roost.services.warm import Warm
from roost.settings import Settings
from roost.storage.interface import Holder, Image, PoolUsage, Snapshot
from roost.store import Store, sqlite
from roost.store import keys as key_rows
from roost.store import tenants as tenant_rows
from roost.store.upgrade import upgrade


@functools.cache
def _migrated() -> bytes:
    """An empty database of the present schema, made once: migrating takes a third of a second."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "roost.db"
        engine = sqlite.make_engine(path, 5.0)
        upgrade(engine)
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        engine.dispose()
        return path.read_bytes()


TENANT = "tenant-a"
OTHER = "tenant-b"


class Scripted:
    """Per method: errors raised once each, in order; hangs until an event."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.errors: dict[str, list[BaseException]] = {}
        self.hangs: dict[str, asyncio.Event] = {}

    def fail(self, method: str, *errors: BaseException) -> None:
        self.errors.setdefault(method, []).extend(errors)

    def hang(self, method: str) -> asyncio.Event:
        return self.hangs.setdefault(method, asyncio.Event())

    async def enter(self, method: str) -> None:
        self.calls[method] += 1
        if (event := self.hangs.get(method)) is not None:
            await event.wait()
        await asyncio.sleep(0)
        if errors := self.errors.get(method):
            raise errors.pop(0)


class FakeNetwork(Scripted):
    def __init__(self) -> None:
        super().__init__()
        self.slots: dict[str, int] = {}
        self.policies: dict[str, Policy] = {}  # as they hold now, of slots that are taken
        self.intercepts: dict[str, tuple[Intercept, ...]] = {}
        self.tried: dict[str, list[Decision]] = {}
        self.sent: dict[str, int] = {}  # bytes, since the slot was taken
        self.size = 1000

    def _slot(self, index: int) -> NetworkSlot:
        netns = Path(f"/run/netns/fake{index}")
        return NetworkSlot(
            index,
            netns,
            "eth0",
            "02:00:00:00:00:01",
            "10.0.0.2/30",
            "10.0.0.1",
            f"10.201.0.{index}",
        )

    async def open(self, in_use: Mapping[str, int]) -> None:
        await self.enter("open")
        self.slots = {m: i for m, i in self.slots.items() if in_use.get(m) == i}

    async def take(
        self, machine_id: str, policy: Policy, intercept: Sequence[Intercept] = ()
    ) -> NetworkSlot:
        await self.enter("take")
        free = set(range(self.size)) - set(self.slots.values())
        if not free:
            raise CapacityError("no slot is left")
        self.slots[machine_id] = min(free)
        self.policies[machine_id] = policy
        self.intercepts[machine_id] = tuple(intercept)
        return self._slot(self.slots[machine_id])

    async def reattach(
        self, machine_id: str, index: int, policy: Policy, intercept: Sequence[Intercept] = ()
    ) -> NetworkSlot:
        await self.enter("reattach")
        self.slots[machine_id] = index
        self.policies[machine_id] = policy
        self.intercepts[machine_id] = tuple(intercept)
        return self._slot(index)

    async def apply(
        self, machine_id: str, policy: Policy, intercept: Sequence[Intercept] = ()
    ) -> None:
        await self.enter("apply")
        if machine_id in self.slots:
            self.policies[machine_id] = policy
            self.intercepts[machine_id] = tuple(intercept)

    async def decisions(self, machine_id: str) -> list[Decision]:
        await self.enter("decisions")
        return list(self.tried.get(machine_id, ())) if machine_id in self.slots else []

    async def connection(self, machine_id: str) -> socket.socket:
        await self.enter("connection")
        raise NotFoundError("a fake network leads nowhere")

    def counts(self) -> SlotCounts:
        return SlotCounts(used=len(self.slots), ready=0, free=self.size - len(self.slots))

    async def egress(self, machine_ids: Iterable[str]) -> dict[str, int]:
        await self.enter("egress")
        return {m: self.sent.get(m, 0) for m in machine_ids if m in self.slots}

    async def release(self, machine_id: str) -> None:
        self.sent.pop(machine_id, None)
        self.tried.pop(machine_id, None)
        await self.enter("release")
        self.slots.pop(machine_id, None)
        self.policies.pop(machine_id, None)

    async def close(self) -> None:
        await self.enter("close")

    async def purge(self) -> None:
        self.slots.clear()


class FakeStorage(Scripted):
    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        self.disks: set[str] = set()
        self.kept: set[str] = set()
        self.memories: set[str] = set()
        self.list: dict[str, Image] = {}
        self.sizes: dict[str, int] = {}  # bytes a machine or snapshot answers for
        self.volumes: set[str] = set()
        self.homes: set[str] = set()  # directories, of machines that have no disk

    def add_image(self, letter: str) -> Image:
        digest = "sha256:" + letter * 64
        path = self.directory / f"image-{letter}"
        path.touch()
        self.list[digest] = Image(digest, path, 10, 5, False, False, None)
        return self.list[digest]

    async def open(self) -> None:
        await self.enter("open")

    async def usage(self) -> PoolUsage:
        return PoolUsage(100, 50, 100, 50, "fake")

    async def require(self, bytes_needed: int) -> None:
        await self.enter("require")

    async def clone(self, image: Image, machine_id: str, storage_gib: int) -> Path:
        await self.enter("clone")
        self.disks.add(machine_id)
        self.disk(machine_id).write_text(f"image {image.digest[:10]}")
        return self.disk(machine_id)

    async def sync_disk(self, machine_id: str) -> None:
        await self.enter("sync_disk")

    async def make_home(self, machine_id: str) -> Path:
        await self.enter("make_home")
        self.homes.add(machine_id)
        self.home(machine_id).write_text("home")
        return self.home(machine_id)

    def home(self, machine_id: str) -> Path:
        return self.directory / f"home-{machine_id}"

    async def list_homes(self) -> set[str]:
        return set(self.homes)

    def disk(self, machine_id: str) -> Path:
        return self.directory / machine_id

    async def delete(self, machine_id: str) -> None:
        await self.enter("delete")
        self.disks.discard(machine_id)
        await self.delete_home(machine_id)
        self.disk(machine_id).unlink(missing_ok=True)
        await self.delete_tree(machine_id)

    async def delete_disk(self, machine_id: str) -> None:
        self.disks.discard(machine_id)
        self.disk(machine_id).unlink(missing_ok=True)

    async def pack_tree(self, machine_id: str, most: int) -> None:
        await self.enter("pack_tree")
        self.tree(machine_id).write_bytes(b"what was in the directory")

    def tree(self, machine_id: str) -> Path:
        return self.directory / f"{machine_id}.tar"

    async def delete_tree(self, machine_id: str) -> None:
        self.tree(machine_id).unlink(missing_ok=True)

    async def list_trees(self) -> set[str]:
        return {p.stem for p in self.directory.glob("*.tar")}

    async def delete_home(self, machine_id: str) -> None:
        await self.enter("delete_home")
        self.homes.discard(machine_id)
        self.home(machine_id).unlink(missing_ok=True)

    async def list_disks(self) -> set[str]:
        return self.disks | self.homes

    def snapshot(self, snapshot_id: str) -> Snapshot:
        return Snapshot(self.directory / f"snapshot-{snapshot_id}")

    async def begin_snapshot(self, snapshot_id: str) -> Snapshot:
        await self.enter("begin_snapshot")
        place = self.snapshot(snapshot_id)
        shutil.rmtree(place.directory, ignore_errors=True)
        place.memory.mkdir(parents=True)
        self.kept.add(snapshot_id)
        return place

    async def copy_disk(self, machine_id: str, snapshot_id: str) -> None:
        await self.enter("copy_disk")
        home = machine_id in self.homes
        place = self.snapshot(snapshot_id)
        source = self.home(machine_id) if home else self.disk(machine_id)
        shutil.copy(source, place.home if home else place.disk)

    async def copy_memory(self, machine_id: str, snapshot_id: str) -> None:
        await self.enter("copy_memory")
        for file in self.memory(machine_id).iterdir():
            shutil.copy(file, self.snapshot(snapshot_id).memory)

    async def seal_snapshot(self, snapshot_id: str, machine_id: str) -> int:
        await self.enter("seal_snapshot")
        return 7

    async def clone_snapshot(self, snapshot_id: str, machine_id: str) -> Path:
        await self.enter("clone_snapshot")
        place = self.snapshot(snapshot_id)
        home = place.home.exists()
        (self.homes if home else self.disks).add(machine_id)
        target = self.home(machine_id) if home else self.disk(machine_id)
        shutil.copy(place.home if home else place.disk, target)
        return target

    async def delete_snapshot(self, snapshot_id: str) -> None:
        await self.enter("delete_snapshot")
        shutil.rmtree(self.snapshot(snapshot_id).directory, ignore_errors=True)
        self.kept.discard(snapshot_id)

    async def list_snapshots(self) -> set[str]:
        return set(self.kept)

    def memory(self, machine_id: str) -> Path:
        return self.directory / f"memory-{machine_id}"

    async def begin_memory(self, machine_id: str) -> Path:
        await self.enter("begin_memory")
        shutil.rmtree(self.memory(machine_id), ignore_errors=True)
        self.memory(machine_id).mkdir()
        self.memories.add(machine_id)
        return self.memory(machine_id)

    async def delete_memory(self, machine_id: str) -> None:
        await self.enter("delete_memory")
        shutil.rmtree(self.memory(machine_id), ignore_errors=True)
        self.memories.discard(machine_id)

    async def list_memory(self) -> set[str]:
        return set(self.memories)

    async def shares(
        self, families: Sequence[Sequence[Holder]], free: Iterable[str]
    ) -> dict[str, int]:
        await self.enter("shares")
        return {each.id: self.sizes.get(each.id, 0) for family in families for each in family}

    async def make_volume(self, volume_id: str, size_gib: int) -> None:
        await self.enter("make_volume")
        self.volumes.add(volume_id)

    def volume(self, volume_id: str) -> Path:
        return self.directory / f"volume-{volume_id}"

    async def delete_volume(self, volume_id: str) -> None:
        await self.enter("delete_volume")
        self.volumes.discard(volume_id)

    async def list_volumes(self) -> set[str]:
        return set(self.volumes)

    async def images(self) -> list[Image]:
        return list(self.list.values())

    async def image(self, digest: str) -> Image | None:
        return self.list.get(digest)

    async def delete_image(self, digest: str) -> None:
        self.list.pop(digest).path.unlink()

    @property
    def tmp(self) -> Path:
        place = self.directory / "tmp"
        place.mkdir(exist_ok=True)
        return place

    async def copy_out(self, machine_id: str) -> Path:
        await self.enter("copy_out")
        made = self.tmp / f"disk-{machine_id}"
        shutil.copy(self.disk(machine_id), made)
        return made

    async def copy_out_snapshot(self, snapshot_id: str) -> Path:
        made = self.tmp / f"disk-{snapshot_id}"
        shutil.copy(self.snapshot(snapshot_id).disk, made)
        return made

    async def keep_image(
        self, made: Path, digest: str, of: Path, manifest: Mapping[str, Any]
    ) -> Image:
        await self.enter("keep_image")
        path = self.directory / f"image-{digest[7:23]}"
        made.rename(path)
        self.list[digest] = Image(
            digest, path, 10, 5, False, False, None, kind=str(manifest.get("kind", ""))
        )
        return self.list[digest]

    async def content(self, image: Image) -> str:
        return "sha256:" + hashlib.sha256(image.path.read_bytes()).hexdigest()

    async def unique_bytes(self, digests: Sequence[str], others: Sequence[str]) -> dict[str, int]:
        return dict.fromkeys(digests, 1 << 30)

    async def seal(self, layer: Image, content: str, config: Mapping[str, Any]) -> Image:
        named = f"{content}{json.dumps(config, sort_keys=True)}".encode()
        digest = f"sha256:{hashlib.sha256(named).hexdigest()}"
        if digest not in self.list:
            path = self.directory / f"image-{digest[7:23]}"
            shutil.copy(layer.path, path)
            self.list[digest] = Image(
                digest, path, 10, 5, layer.raw_written, layer.imported, None, content, "template"
            )
        return self.list[digest]

    async def close(self) -> None:
        await self.enter("close")

    async def purge(self) -> None:
        self.disks.clear()


class FakeAgent:
    def __init__(self, machine_id: str, target: str, token: str, agents: FakeAgents) -> None:
        self.machine_id, self.target, self.token, self.agents = machine_id, target, token, agents

    async def wait_ready(self, timeout_s: float) -> Any:
        await self.agents.enter("wait_ready")
        expected = self.agents.driver.machines[self.machine_id].token
        if expected != self.token:
            raise MachineError("it refused the token", code="MACHINE_FAILED")

    async def acquaint(self, timeout_s: float) -> Any:
        await self.agents.enter("acquaint")
        if self.agents.next_acquaint is not None:
            raise self.agents.next_acquaint

    async def reseed(self, entropy: bytes) -> None:
        await self.agents.enter("reseed")

    async def renew_identity(self, request: Any) -> None:
        await self.agents.enter("renew_identity")
        self.agents.renewals.append((self.machine_id, request))
        if request.new_token:
            self.agents.driver.machines[self.machine_id].token = request.new_token
        if request.hostname:
            self.agents.hostnames[self.machine_id] = request.hostname
        if request.machine_id:
            self.agents.named[self.machine_id] = request.machine_id

    async def run(self, request: Any) -> Any:
        await self.agents.enter("run")
        self.agents.ran.append((self.machine_id, list(request.argv)))
        code = self.agents.exit_codes.pop(0) if self.agents.exit_codes else 0
        execution = pb.Execution(exit_code=code)
        return SimpleNamespace(execution=execution, stdout=b"", stderr=b"what it complains of")

    async def forget(self, execution_id: str) -> None:
        pass

    async def wait(self, execution_id: str) -> Any:
        code = await self.agents.ended(self.machine_id)
        return SimpleNamespace(execution=pb.Execution(exit_code=code))

    async def output(self, execution_id: str) -> Any:
        return SimpleNamespace(stdout=b"one\ntwo\n", stderr=b"what it complains of\n")

    async def list_executions(self) -> list[Any]:
        return self.agents.listed

    def dial(self, port: int, host: str = "") -> Any:
        return FakeStream(self.agents, port)

    async def write_file(self, header: Any, pieces: Any) -> None:
        await self.agents.enter("write_file")
        self.agents.written[header.path.decode()] = b"".join([piece async for piece in pieces])

    async def read_file(self, path: bytes, offset: int = 0, length: int = 0) -> Any:
        content = self.agents.written.get(path.decode())
        if content is None:
            raise NotFoundError("There is no such file.", code="FILE_NOT_FOUND")

        async def pieces() -> AsyncGenerator[bytes, None]:
            yield content

        return SimpleNamespace(info=SimpleNamespace(size=len(content))), pieces()

    async def remove(self, path: bytes, recursive: bool) -> None:
        gone = path.decode()
        for each in [w for w in self.agents.written if w == gone or w.startswith(f"{gone}/")]:
            del self.agents.written[each]

    async def set_clock(self, unix_ns: int) -> None:
        await self.agents.enter("set_clock")

    async def shutdown(self, grace_s: float, exit_agent: bool = True) -> None:
        await self.agents.enter("shutdown")

    # --- as a build's machine: what is done to it is its disk ---------------------------------

    def _do(self, what: str) -> None:
        with self.agents.disks(self.machine_id).open("a") as disk:
            disk.write("\n" + what)

    async def start(self, request: Any) -> None:
        self.agents.started.append(request)
        await self.agents.enter("start")
        self.agents.starts.setdefault(self.machine_id, []).append(request)

    async def attach(self, execution_id: str) -> Any:
        (request,) = [r for r in self.agents.started if r.execution_id == execution_id]
        await self.agents.enter("attach")
        command = request.argv[-1]
        env = {each.name: each.value for each in request.env}
        said = env.get("SAY", f"ran {command}")
        for path, content in self.agents.written.items():
            if path in command:
                said += content.decode()
        yield pb.OutputFrame(stream=pb.OutputFrame.STREAM_STDOUT, data=f"{said}\n".encode())
        self._do(f"run {command}")
        code = int(command.split()[1]) if command.startswith("exit ") else 0
        state = pb.EXECUTION_STATE_TIMED_OUT if command == "hang" else pb.EXECUTION_STATE_EXITED
        yield pb.OutputFrame(exit=pb.Execution(state=state, exit_code=code))

    async def make_dir(self, request: Any) -> None:
        self._do(f"directory {request.path.decode()}")

    async def stat(self, path: bytes, follow: bool = True) -> Any:
        if path.decode() not in self.agents.written:
            raise NotFoundError("There is no such file.", code="FILE_NOT_FOUND")
        return SimpleNamespace(kind=0, target_kind=0)

    async def tar_in(self, header: Any, data: Any) -> None:
        await self.agents.enter("tar_in")
        content = b"".join([piece async for piece in data])
        self.agents.tars.append((header.path.decode(), header.owner, content))
        self._do(f"tar {header.path.decode()} {hashlib.sha256(content).hexdigest()}")

    async def stats(self) -> Any:
        await self.agents.enter("stats")
        return SimpleNamespace(
            disk_total_bytes=100,
            disk_used_bytes=10,
            uptime_ms=5,
            memory_used_bytes=30,
            memory_total_bytes=90,
            memory_cache_bytes=20,
        )

    async def sync(self) -> None:
        await self.agents.enter("sync")


class FakeStream:
    """To a port of the machine's own."""

    def __init__(self, agents: FakeAgents, port: int) -> None:
        self._agents, self._port = agents, port
        self.said = b""

    async def open(self) -> None:
        if self._port not in self._agents.listens:
            raise MachineError("Nothing listens there.", code="PORT_CLOSED")

    async def connected(self) -> None:
        pass

    async def write(self, data: bytes) -> None:
        self._agents.asked.append(data)

    async def read(self) -> bytes:
        answer, self._agents.listens[self._port] = self._agents.listens[self._port], b""
        return answer

    def close(self) -> None:
        pass


class FakeAgents(Scripted):
    next_acquaint: BaseException | None = None  # what the agents of adopted machines answer

    def __init__(self, driver: FakeDriver) -> None:
        super().__init__()
        self.driver = driver
        self.kept: dict[str, FakeAgent] = {}
        self.named: dict[str, str] = {}
        self.hostnames: dict[str, str] = {}
        self.dialled = 0
        self.renewals: list[tuple[str, Any]] = []  # machine id, request
        self.ran: list[tuple[str, list[str]]] = []
        self.written: dict[str, bytes] = {}
        self.exit_codes: list[int] = []  # of the next commands
        self.starts: dict[str, list[Any]] = {}  # requests, by machine
        self.ends: dict[str, asyncio.Future[int]] = {}  # of what was started: its exit code
        self.listed: list[Any] = []  # executions that an agent remembers
        self.listens: dict[int, bytes] = {}  # port -> what is answered there, once
        self.asked: list[bytes] = []
        self.started: list[Any] = []
        self.tars: list[tuple[str, str, bytes]] = []
        self.disks: Any = None

    async def ended(self, machine_id: str) -> int:
        loop = asyncio.get_running_loop()
        return await asyncio.shield(self.ends.setdefault(machine_id, loop.create_future()))

    def get(self, machine_id: str, target: str, token: str) -> FakeAgent:
        kept = self.kept.get(machine_id)
        if kept is None or (kept.target, kept.token) != (target, token):
            kept = self.kept[machine_id] = FakeAgent(machine_id, target, token, self)
            self.dialled += 1
        return kept

    def renewed(self, machine_id: str, token: str) -> None:
        self.kept[machine_id].token = token

    def drop(self, machine_id: str) -> None:
        self.kept.pop(machine_id, None)


class FakeRecipes(Scripted):
    def __init__(self, storage: FakeStorage) -> None:
        super().__init__()
        self.storage = storage
        self.digest = "sha256:r1"
        self.letter = "a"

    def names(self) -> list[str]:
        return ["base", "other"]

    def recipe(self, name: str) -> Any:
        return SimpleNamespace(
            name=name,
            digest=self.digest,
            config={"env": {"FROM": name}},
            dockerfile=None,
            parents=(),
        )

    async def build(self, name: str, progress: Progress, *, force: bool = False) -> Image:
        progress("unpack", 10, "unpacking")
        await self.enter("build")
        progress("done", 100, "done")
        return self.storage.add_image(self.letter)


@dataclass
class Host:
    """Outlives daemons. So does the store: a killed daemon's last transaction is whole or not there, and
    preparing statements anew for each daemon would be most of the tests' time."""

    directory: Path
    clock: Clock = field(default_factory=SystemClock)
    boot_id: str = "fake-boot"
    size: HostSize = field(default_factory=lambda: HostSize(4.0, 1_000_000, None))
    memory: bool = False  # the rung keeps memory
    driver: FakeDriver = None  # type: ignore[assignment]
    others: dict[str, FakeDriver] = field(default_factory=dict)  # by name, of lower preference

    def __post_init__(self) -> None:
        if not (self.directory / "roost.db").exists():
            (self.directory / "roost.db").write_bytes(_migrated())
        self.identity = HostIdentity("node", bytes(32))
        self.driver = self.driver or FakeDriver(memory_snapshot=self.memory)
        for name, each in self.others.items():
            each.name, each.machines = name, self.driver.machines  # one host
        self.network = FakeNetwork()
        self.storage = FakeStorage(self.directory)
        self.recipes = FakeRecipes(self.storage)
        self.store = Store.open(self.directory / "roost.db", self.clock)

    async def close(self) -> None:
        await self.store.close()

    def reboot(self) -> None:
        self.driver.machines.clear()
        self.network.slots.clear()
        self.boot_id += "+"

    def leaks(self, machines: list[Any]) -> list[str]:
        """What is on the host and belongs to no machine that may have it, or is missing of one that runs."""
        running = {m.id for m in machines if m.phase == "running" or m.frozen}
        with_disk = {m.id for m in machines if m.phase != "destroyed" and m.disk_ready}
        asleep = {
            m.id
            for m in machines
            if m.memory_image is not None and m.memory_image.snapshot_id is None
        } - {m.id for m in machines if m.phase == "destroyed"}
        slotted = {m.id for m in machines if m.id in running and m.capabilities.own_network}
        found = []
        for what, have, want in (
            ("process", set(self.driver.machines) | self.driver.debris, running),
            ("slot", set(self.network.slots), slotted),
            ("disk", self.storage.disks | self.storage.homes, with_disk),
            # of a machine that runs: swept when it sleeps, goes, or the daemon starts
            ("memory", self.storage.memories - running, asleep),
        ):
            found += [f"leaked {what} of {m}" for m in sorted(have - want)]
            found += [f"missing {what} of {m}" for m in sorted(want - have)]
        for m in machines:
            there = self.driver.machines.get(m.id)
            if there is not None and m.id in running and there.frozen != m.frozen:
                found.append(f"wrongly {'frozen' if there.frozen else 'running'} {m.id}")
        return found


class FakeBoundary:
    """The process that adds values and redacts: what it was told."""

    endpoint = "tcp:127.0.0.1:1"
    password = "the-password-of-this-start"

    def __init__(self) -> None:
        self.states: dict[str, Any] = {}
        self.installed = True
        self.up = True

    def check(self) -> None:
        if not self.installed:
            raise UnsupportedError("mitmproxy is not installed")

    def start(self) -> None:
        pass

    async def tell(self, machines: Mapping[str, Any]) -> None:
        if not self.up:
            raise UnavailableError("it does not answer")
        for machine_id, state in machines.items():
            self.states.pop(machine_id, None)
            if state is not None:
                self.states[machine_id] = state

    async def close(self) -> None:
        pass


@dataclass
class Daemon:
    host: Host
    store: Store
    engine: Engine
    templates: Templates
    machines: Machines
    snapshots: Snapshots
    agents: FakeAgents
    bakes: Bakes
    warm: Warm
    policies: Policies
    keeper: Keeper
    secrets: Secrets
    starting: Starting
    builds: Builds
    volumes: Volumes

    @classmethod
    async def start(
        cls, host: Host, *, hook: Hook | None = None, build: bool = True, **settings: Any
    ) -> Daemon:
        store = host.store
        for each in (host.driver, *host.others.values()):
            each.known.clear()
        now = host.clock.now()

        def tenants(connection: sa.Connection) -> None:
            for tenant in (TENANT, OTHER):
                key_rows.put_tenant(connection, tenant, now)

        await store.write(tenants)
        agents = FakeAgents(host.driver)
        keeper = Keeper(store, host.clock, host.directory, Path("/none"), Path("/none"))
        keeper.process = FakeBoundary()  # type: ignore[assignment]
        await keeper.open()
        engine = Engine(
            store,
            Settings.model_construct(
                data_dir=host.directory,
                **{
                    "drivers": ",".join(("fake", *host.others)),
                    "operation_timeout_s": 5.0,
                    "memory_reserve_mib": 0,
                    **settings,
                },
            ),
            host.clock,
            drivers={"fake": host.driver, **host.others},
            network=host.network,
            storage=host.storage,
            agents=agents,
            boundary=keeper,
            identity=host.identity,
            host=lambda: host.size,
            boot_id=lambda: host.boot_id,
            hook=hook,
            retry_delay_s=0.0,
        )
        starting = Starting(engine)
        agents.disks = host.storage.disk
        templates = Templates(store, host.storage, host.clock, host.recipes)
        await templates.open()
        builds = Builds(
            engine, templates, Layers(engine, templates.images), host.storage.seal, host.directory / "builds"
        )  # fmt: skip
        if build:
            await templates.build("base")
        await engine.open()
        volumes = Volumes(engine)
        await volumes.open()
        await builds.open()
        bakes = Bakes(engine)
        warm = Warm(engine, bakes, settings.get("warm_machines", 0))
        await warm.open()
        machines = Machines(engine, templates, bakes, warm)
        snapshots = Snapshots(engine, machines)
        policies = Policies(engine, machines)
        return cls(
            host, store, engine, templates, machines, snapshots, agents, bakes, warm, policies,
            keeper, Secrets(engine, machines, keeper), starting, builds, volumes,
        )  # fmt: skip

    async def stop(self) -> None:
        await self.warm.close()
        await self.builds.close()
        await self.engine.close(1.0)
        await self.templates.close()

    async def kill(self) -> None:
        """As ``kill -9``: nothing is tidied up."""
        await self.warm.halt()
        await self.builds.close()
        await self.engine.kill()
        await self.templates.close()

    async def quota(self, tenant: str, **quotas: Any) -> None:
        """What the tenant may have from now on; nothing else is limited."""
        await self.store.write(lambda c: tenant_rows.update(c, tenant, {"quotas": quotas}))

    async def all(self) -> list[Any]:
        found = await self.machines.list(TENANT, limit=500)
        gone = await self.machines.list(TENANT, phase="destroyed", limit=500)
        return found.items + gone.items

    async def open_operations(self) -> list[Any]:
        from roost.store import operations

        return await self.store.read(operations.open_ones)


@contextlib.asynccontextmanager
async def daemon(
    directory: Path,
    clock: Clock | None = None,
    memory: bool = False,
    driver: FakeDriver | None = None,
    **settings: Any,
) -> AsyncIterator[Daemon]:
    host = Host(directory, clock or SystemClock(), memory=memory, driver=driver)  # type: ignore[arg-type]
    running = await Daemon.start(host, **settings)
    try:
        yield running
    finally:
        await running.stop()
        await host.close()


def small(**changes: Any) -> CreateMachine:
    return CreateMachine(**{"vcpu": 0.1, "memory_mib": 64, "autosleep_seconds": None, **changes})


async def until(condition: Any, timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return
            await asyncio.sleep(0.002)
