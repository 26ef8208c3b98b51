"""microVMs: create, fork, sleep and wake against a bare script that restores the very same snapshot.

The daemon must run with ROOST_WARM_MACHINES=0, or creates are not what is measured.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.raw_qemu import RawVmm, private_mib
from bench.report import Report, paired
from bench.warm import require_cold
from roost import Machine, ids
from roost.drivers.interface import Capture, Root, Size, StartSpec
from roost.drivers.qemu import QemuDriver
from roost.egress.policy import Policy
from roost.engine.identity import HostIdentity
from roost.network import SlotNetwork
from roost.services.bakes import NOBODY
from roost.settings import Settings
from roost.storage import PoolStorage

TRUE = ["/bin/true"]
DIRTY = "head -c 64M /dev/urandom >/dev/shm/r"
CHILDREN, SIBLINGS = 10, 30


def run(report: Report, n: int) -> None:
    require_cold()
    first = Machine.create(driver="qemu")  # bakes where nobody has yet
    first.exec(TRUE).check()
    raw = RawVmm(*_bake())
    loop = asyncio.new_event_loop()
    private: list[float] = []

    def restore() -> float:
        took = loop.run_until_complete(raw.run())
        private.append(took.private_mib)
        return took.first_exec

    try:
        cold, raw_cold = paired(n, _create, restore)
        report.add("create -> first exec, qemu", "ms", cold, raw_cold, bound=1.3)
        woken, raw_woken = paired(n, lambda: _wake(first), restore)
        report.add("wake -> first exec, qemu", "ms", woken, raw_woken, bound=1.3)
        slept, saved = paired(
            n,
            lambda: _sleep(first),
            lambda: loop.run_until_complete(raw.run(DIRTY)).saved,
        )
        name = "hibernate, 64 MiB written since, to a full save"
        report.add(name, "ms", slept, saved, bound=0.6)
        first.exec(TRUE).check()
        own = _private(first)
        report.add("private memory of an idle sibling", "MiB", [own])
        report.add("  more than the raw VMM's", "MiB", [own - max(private)], bound=10)
    finally:
        loop.run_until_complete(asyncio.sleep(0))
        raw.close()
        first.destroy()
    asyncio.run(_freezes(report, n))
    _forks(report, n, cold)
    _siblings(report)


def _create() -> float:
    begun = time.perf_counter()
    m = Machine.create(driver="qemu")
    m.exec(TRUE).check()
    took = (time.perf_counter() - begun) * 1e3
    m.destroy()
    return took


def _wake(m: Machine) -> float:
    m.sleep("hibernated")
    begun = time.perf_counter()
    m.exec(TRUE).check()
    return (time.perf_counter() - begun) * 1e3


def _sleep(m: Machine) -> float:
    m.exec(DIRTY).check()
    begun = time.perf_counter()
    m.sleep("hibernated")
    return (time.perf_counter() - begun) * 1e3


def _forks(report: Report, n: int, cold: list[float]) -> None:
    parent = Machine.create(driver="qemu", memory_mib=512)
    try:
        pauses, forks, many = [], [], []
        for _ in range(n):
            parent.exec(DIRTY).check()
            kept = parent.snapshot()
            pauses.append(kept.paused_ms or 0.0)
            kept.delete()
            begun = time.perf_counter()
            child = parent.fork()
            child.exec(TRUE).check()
            forks.append((time.perf_counter() - begun) * 1e3)
            child.destroy()
        report.add("pause of a parent, 64 MiB dirty of 512", "ms", pauses, bound=50)
        report.add("  95th percentile", "ms", [sorted(pauses)[int(len(pauses) * 0.95)]], bound=150)
        report.add("fork -> first exec in the child, to create", "ms", forks, cold, bound=2.0)
        for _ in range(3):
            begun = time.perf_counter()
            children = parent.fork(CHILDREN)
            with ThreadPoolExecutor(CHILDREN) as pool:
                list(pool.map(lambda m: m.exec(TRUE).check(), children))
            many.append((time.perf_counter() - begun) * 1e3)
            for child in children:
                child.destroy()
        report.add(f"{CHILDREN} children all answering, to one", "ms", many, forks, bound=4.0)
    finally:
        parent.destroy()


async def _freezes(report: Report, n: int) -> None:
    """By the driver alone: the API has no call for it."""
    snapshot, _, token = _bake()
    settings = Settings(
        run_dir=Path("/run/roost-bench"), network_cidr="10.204.0.0/16", network_pool=0
    )
    driver, storage, network = QemuDriver(settings), PoolStorage(settings), SlotNetwork(settings)
    await storage.open()
    await network.open({})
    machine_id = ids.new()
    try:
        disk = await storage.clone_snapshot(snapshot.name, machine_id)
        slot = await network.take(machine_id, Policy())
        size = Size(1, 1024, 10)
        spec = StartSpec(machine_id, "bench", size, Root(image=disk), slot, token, "0" * 32)
        manifest = json.loads((snapshot / "memory" / "manifest.json").read_text())
        handle = await driver.restore(spec, Capture(snapshot / "memory", manifest))
        freezes, thaws = [], []
        for _ in range(n):
            begun = time.perf_counter()
            await driver.freeze(handle)
            frozen = time.perf_counter()
            await driver.thaw(handle)
            freezes.append((frozen - begun) * 1e3)
            thaws.append((time.perf_counter() - frozen) * 1e3)
        report.add("freeze, qemu", "ms", freezes, bound=10)
        report.add("thaw, qemu", "ms", thaws, bound=10)
    finally:
        await driver.remove(machine_id)
        await storage.delete(machine_id)
        await network.purge()
        await storage.close()


def _siblings(report: Report) -> None:
    machines: list[Machine] = []
    try:
        with ThreadPoolExecutor(4) as pool:
            machines = list(
                pool.map(lambda _: Machine.create(driver="qemu", memory_mib=512), range(SIBLINGS))
            )
            answers = list(pool.map(lambda m: m.exec(TRUE).exit_code, machines))
        report.add(
            f"{SIBLINGS} siblings, answering",
            "",
            [float(answers.count(0))],
            bound=SIBLINGS,
            at_least=True,
        )
        memory = [_private(m) for m in machines]
        report.add("  private memory of each", "MiB", memory)
    finally:
        for m in machines:
            m.destroy()


def _bake() -> tuple[Path, Path, str]:
    """The newest: its directory, its guest's, and its agent's token."""
    settings = Settings()
    database = sqlite3.connect(f"file:{settings.data_dir / 'roost.db'}?mode=ro", uri=True)
    query = (
        "select id, memory_image from snapshots where tenant_id = ? and memory_image is not null "
        "order by created_at desc"
    )
    snapshot_id, text = database.execute(query, (NOBODY,)).fetchone()
    image = json.loads(text)
    token = HostIdentity.load(settings.data_dir).agent_token(*image["token_of"])
    guest = settings.data_dir / "guest" / image["manifest"]["guest"]
    return settings.data_dir / "pool" / "snapshots" / snapshot_id, guest, token


def _private(m: Machine) -> float:
    """Of a running machine's VMM."""
    settings = Settings()
    database = sqlite3.connect(f"file:{settings.data_dir / 'roost.db'}?mode=ro", uri=True)
    (handle,) = database.execute("select handle from machines where id = ?", (m.id,)).fetchone()
    return private_mib(json.loads(handle)["pid"])
