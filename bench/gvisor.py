"""gVisor: capture, hibernate and restore against `runsc checkpoint` and `runsc restore` of the very same machine.

By the driver alone, in turns with the bare commands: the same flags, the same files, 64 MiB of random data in a guest
of 512 MiB. Then through the daemon, which must run with ROOST_WARM_MACHINES=0.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from bench.report import Report
from bench.warm import require_cold
from roost import Machine, ids
from roost.agent.client import AgentClient
from roost.agent.v1 import agent_pb2 as pb
from roost.drivers import saved
from roost.drivers.container import _put_address_back
from roost.drivers.gvisor import GVisorDriver, _runsc
from roost.drivers.interface import Capture, Handle, Root, Size, StartSpec
from roost.egress.policy import Policy
from roost.host import console, files, syscalls
from roost.network import SlotNetwork
from roost.settings import Settings
from roost.storage import PoolStorage

TRUE = ["/bin/true"]
DIRTY = "head -c 64M /dev/urandom >/dev/shm/r"
TOKEN = "0" * 32
Samples = dict[str, list[float]]


def run(report: Report, n: int) -> None:
    require_cold()
    took = asyncio.run(_by_driver(n))
    pair = "checkpoint", "raw checkpoint"
    report.add("capture for a fork, gvisor", "ms", *(took[k] for k in pair), bound=1.3)
    report.add("  of that its pause", "ms", took["pause"], took["raw checkpoint"])
    pair = "durable checkpoint", "raw durable checkpoint"
    report.add("capture for a snapshot, to one synced", "ms", *(took[k] for k in pair), bound=1.3)
    pair = "hibernate", "raw hibernate"
    report.add("hibernate, to a checkpoint synced", "ms", *(took[k] for k in pair), bound=1.3)
    report.add("restore, gvisor", "ms", took["restore"], took["raw restore"], bound=1.3)
    report.add("  its image read whole first", "ms", took["whole"], took["raw restore"])
    pair = "restore -> exec", "raw restore -> exec"
    report.add("restore -> first exec, gvisor", "ms", *(took[k] for k in pair), bound=1.3)
    _by_daemon(report, n, took["raw restore -> exec"])


async def _by_driver(n: int) -> Samples:
    settings = Settings(
        run_dir=Path("/run/roost-bench"), network_cidr="10.204.0.0/16", network_pool=0
    )
    storage, network = PoolStorage(settings), SlotNetwork(settings)
    await storage.open()
    await network.open({})
    work = storage.pool.tmp / f"bench{os.getpid()}"
    work.mkdir()
    machine = _Machine(settings, storage, network, work)
    try:
        await machine.start()
        for turn in range(n + 1):  # the first is not counted
            await machine.turn()
            if not turn:
                machine.took.clear()
        return machine.took
    finally:
        await machine.end()
        shutil.rmtree(work)
        await network.purge()
        await storage.close()


class _Machine:
    """One machine, captured and put down in turns by the driver and by the bare commands."""

    def __init__(
        self, settings: Settings, storage: PoolStorage, network: SlotNetwork, work: Path
    ) -> None:
        self.driver = GVisorDriver(settings)
        self.took: Samples = {}
        self._storage = storage
        self._network = network
        self._id = ids.new()
        self._into = work / "memory"
        self._disk = work / "disk.ext4"
        self._spec: StartSpec
        self._handle: Handle
        self._execs = 0

    async def start(self) -> None:
        image = max(await self._storage.images(), key=lambda i: i.path.stat().st_mtime)
        disk = await self._storage.clone(image, self._id, 10)
        slot = await self._network.take(self._id, Policy())
        size = Size(2, 512, 10)
        self._spec = StartSpec(self._id, "bench", size, Root(image=disk), slot, TOKEN, "0" * 32)
        self._handle = await self.driver.start(self._spec)
        await self._exec(["/bin/sh", "-c", DIRTY])

    async def end(self) -> None:
        await self.driver.remove(self._id)
        await self._storage.delete(self._id)

    async def turn(self) -> None:
        for durable in (False, True):
            name = "durable checkpoint" if durable else "checkpoint"

            async def ours(durable: bool = durable) -> None:
                kept = await self.driver.capture(
                    self._handle, self._into, self._disk, durable=durable
                )
                if not durable:
                    self.took.setdefault("pause", []).append(kept.paused_ms)

            async def raw(durable: bool = durable) -> None:
                await self._runsc("checkpoint", "--leave-running", *self._options())
                if durable:
                    await asyncio.to_thread(self._sync)

            for key, work in ((name, ours), (f"raw {name}", raw)):
                with self._empty():
                    await self._time(key, work)
                self._disk.unlink(missing_ok=True)
        await self._restores()

    async def _restores(self) -> None:
        kept: list[Capture] = []

        async def hibernate() -> None:
            kept.append(await self.driver.hibernate(self._handle, self._into))

        async def raw_hibernate() -> None:
            await self._runsc("checkpoint", *self._options())
            await asyncio.to_thread(self._sync)

        with self._empty():
            await self._time("hibernate", hibernate)
            await self._restore(kept[-1], "restore")
        with self._empty():
            await hibernate()
            self.driver._known = saved.Known()
            await self._restore(kept[-1], "whole")
        with self._empty():
            await self._time("raw hibernate", raw_hibernate)
            await self.driver.remove(self._id)
            kept.append(Capture(self._into, self.driver._manifest(self._into)))
            await self._raw_restore(kept[-1])

    async def _restore(self, kept: Capture, name: str) -> None:
        await self._back()
        begun = time.perf_counter()
        self._handle = await self.driver.restore(self._spec, kept)
        self._took(name, begun)
        await self._exec(TRUE)
        self._took(f"{name} -> exec", begun)

    async def _raw_restore(self, kept: Capture) -> None:
        """In the driver's place, in its own thread, namespaces and mounts: just the commands."""
        await self._back()
        launch = self.driver._launch

        def timed(
            spec: StartSpec, directory: Path, command: list[str], fifo: console.Console
        ) -> int:
            assert spec.slot is not None
            with spec.slot.netns.open() as namespace:
                syscalls.setns(namespace.fileno(), syscalls.CLONE_NEWNET)
            _put_address_back(spec.slot.interface, spec.slot.address, spec.slot.gateway)
            self.driver._in_namespace()
            output = fifo.open_for_machine()
            try:
                begun = time.perf_counter()
                _quiet(command, output)
                self._took("raw restore", begun)
                _quiet([*_runsc(directory), "exec", spec.machine_id, *TRUE], output)
                self._took("raw restore -> exec", begun)
            finally:
                os.close(output)
            return int((directory / "pid").read_text())

        self.driver._launch = timed  # type: ignore[method-assign]
        try:
            self._handle = await self.driver.restore(self._spec, kept)
        finally:
            self.driver._launch = launch  # type: ignore[method-assign]
        await self._exec(TRUE)

    async def _back(self) -> None:
        """Into its slot."""
        assert self._spec.slot is not None
        slot = await self._network.reattach(self._id, self._spec.slot.index, Policy())
        self._spec = replace(self._spec, slot=slot)

    async def _exec(self, argv: list[str]) -> None:
        self._execs += 1
        client = AgentClient(self._handle.agent_target, TOKEN)
        try:
            await client.wait_ready(20)
            request = pb.StartRequest(execution_id=f"e{self._execs}", argv=argv)
            assert (await client.run(request)).execution.exit_code == 0
        finally:
            await client.close()  # a capture wants it so

    def _options(self) -> tuple[str, str]:
        return "--compression=none", f"--image-path={self._into}"

    async def _runsc(self, *words: str) -> None:
        command = [*_runsc(self.driver._directory(self._id)), *words, self._id]
        await asyncio.to_thread(_quiet, command, subprocess.DEVNULL)

    def _sync(self) -> None:
        for path in self._into.iterdir():
            files.sync(path)

    def _empty(self) -> _Empty:
        return _Empty(self._into)

    async def _time(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        begun = time.perf_counter()
        await work()
        self._took(name, begun)

    def _took(self, name: str, begun: float) -> None:
        self.took.setdefault(name, []).append((time.perf_counter() - begun) * 1e3)


class _Empty:
    """The directory, empty, and gone afterwards."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> None:
        self._directory.mkdir()

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._directory)


def _quiet(command: list[str], output: int) -> None:
    subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", check=True
    )


def _by_daemon(report: Report, n: int, raw: list[float]) -> None:
    m = Machine.create(driver="gvisor", memory_mib=512)
    pauses, snapshots, forks, sleeps, wakes = [], [], [], [], []
    try:
        m.exec(["/bin/sh", "-c", DIRTY]).check()
        for _ in range(n):
            begun = time.perf_counter()
            kept = m.snapshot()
            snapshots.append((time.perf_counter() - begun) * 1e3)
            pauses.append(kept.paused_ms or 0.0)
            kept.delete()
            begun = time.perf_counter()
            child = m.fork()
            child.exec(TRUE).check()
            forks.append((time.perf_counter() - begun) * 1e3)
            child.destroy()
            begun = time.perf_counter()
            m.sleep("hibernated")
            sleeps.append((time.perf_counter() - begun) * 1e3)
            begun = time.perf_counter()
            m.exec(TRUE).check()
            wakes.append((time.perf_counter() - begun) * 1e3)
    finally:
        m.destroy()
    report.add("snapshot, gvisor", "ms", snapshots)
    report.add("  pause of its machine", "ms", pauses)
    report.add("  95th percentile", "ms", [sorted(pauses)[int(len(pauses) * 0.95)]])
    report.add("fork -> first exec in the child, gvisor", "ms", forks)
    report.add("sleep with memory, gvisor", "ms", sleeps)
    report.add("wake -> first exec, to raw restore -> exec", "ms", wakes, raw)
