"""The control plane with 10,000 sleeping machines: a page of the list, one of them, idleness, and the start.

Starts a daemon of its own with the fake driver, in directories, a port and a range of its own (ROOST_BENCH_DIR,
ROOST_BENCH_PORT, ROOST_BENCH_CIDR), and removes it all at the end. The machines are rows: nothing of them is on the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bench.report import Report
from roost import ids
from roost.drivers.fake import FakeDriver
from roost.engine.machine import capabilities_to_json
from roost.services.keys import DEFAULT_TENANT
from roost.settings import Settings
from roost.store import sqlite
from roost.store.schema import executions, machine_events, machines, meters

COUNT = 10_000
IDLE_S = 70.0  # with every clock of the daemon's in it
STARTS = 5
READY_S = 60.0


def run(report: Report, n: int) -> None:
    base = Path(os.environ.get("ROOST_BENCH_DIR", "/var/tmp/roost-bench"))
    if (base / "data").exists():
        raise SystemExit(f"{base} is there already: another bench runs, or one was broken off")
    settings = Settings.model_validate(
        {
            "data_dir": base / "data",
            "run_dir": base / "run",
            "port": int(os.environ.get("ROOST_BENCH_PORT", "7699")),
            "drivers": "fake",
            "pool_gib": 2,
            "network_cidr": os.environ.get("ROOST_BENCH_CIDR", "10.203.0.0/16"),
            "warm_machines": 0,
            "max_machines": 2 * COUNT,
        }
    )
    try:
        with running(settings):
            pass  # makes the database, the pool and the key
        made = populate(settings)
        starts, busy = [], []
        for _ in range(STARTS):
            with running(settings) as (pid, ready_s):
                starts.append(ready_s)
                busy.append(cpu_s(pid))
        with running(settings) as (pid, _):
            name = f"{COUNT:,} machines asleep"
            report.add(f"start, exec to ready, {name}", "s", starts, bound=5)
            report.add("  of it CPU", "s", busy)
            api = Api(settings)
            pages = [api.ms("/v1/machines?limit=100", 100) for _ in range(5 * n)]
            report.add(f"list, a page of 100, {name}", "ms", pages, bound=30)
            deep, cursor = [], ""
            for _ in range(50):
                begun = time.perf_counter()
                page = api.get(f"/v1/machines?limit=100{cursor}")
                deep.append((time.perf_counter() - begun) * 1e3)
                cursor = f"&cursor={page['next_cursor']}"
            report.add("  pages 1 to 50, one after the other", "ms", deep, bound=30)
            one = [api.ms(f"/v1/machines/{random.choice(made)}") for _ in range(20 * n)]
            report.add(f"get one, {name}", "ms", one, bound=5)
            key = [api.ms(f"/v1/machines?key=user-{random.randrange(COUNT)}", 1) for _ in made[:99]]
            report.add("  found by its key", "ms", key, bound=5)
            report.add("  /metrics", "ms", [api.ms("/metrics") for _ in range(n)])
            report.add("  usage of a month by day", "ms", [api.ms("/v1/usage") for _ in range(n)])
            time.sleep(10)
            before, begun = cpu_s(pid), time.monotonic()
            time.sleep(IDLE_S)
            share = 100 * (cpu_s(pid) - before) / (time.monotonic() - begun)
            report.add(f"idle daemon's CPU over {IDLE_S:.0f} s, {name}", "%", [share], bound=2)
    finally:
        remove(settings)
        shutil.rmtree(base, ignore_errors=True)


class Api:
    """One connection, as an SDK keeps it."""

    def __init__(self, settings: Settings) -> None:
        key = (settings.data_dir / "key").read_text().strip()
        self._headers = {"authorization": f"Bearer {key}"}
        self._connection = http.client.HTTPConnection("127.0.0.1", settings.port, timeout=60)

    def _read(self, path: str) -> bytes:
        self._connection.request("GET", path, headers=self._headers)
        answer = self._connection.getresponse()
        body = answer.read()
        assert answer.status == 200, (path, answer.status, body[:300])
        return body

    def get(self, path: str) -> Any:
        return json.loads(self._read(path))

    def ms(self, path: str, items: int | None = None) -> float:
        begun = time.perf_counter()
        body = self._read(path)
        took = (time.perf_counter() - begun) * 1e3
        assert items is None or len(json.loads(body)["items"]) == items
        return took


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[tuple[int, float]]:
    """Its pid, and how long it took from exec to its first answer, s."""
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    env = {name: value for name, value in os.environ.items() if not name.startswith("ROOST_")}
    env |= {
        f"ROOST_{name.upper()}": str(value)
        for name, value in settings.model_dump().items()
        if value
    }
    env["ROOST_WARM_MACHINES"] = "0"
    begun = time.monotonic()
    with open(settings.data_dir / "bench.err", "ab") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "roost.daemon"], env=env, stdout=err, stderr=err
        )
    try:
        while not healthy(settings.port):
            if process.poll() is not None or time.monotonic() - begun > READY_S:
                raise SystemExit((settings.data_dir / "bench.err").read_text()[-2000:])
            time.sleep(0.01)
        yield process.pid, time.monotonic() - begun
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def populate(settings: Settings) -> list[str]:
    """Machines asleep since days, each with a life, some commands and a meter; their ids."""
    now = datetime.now(UTC)
    made, events, ran, counted = [], [], [], []
    for n in range(COUNT):
        at = now - timedelta(days=20, seconds=-n)
        machine = _machine(n, at)
        made.append(machine)
        for k, event in enumerate(("accepted", "placement_pending", "starting", "running") * 2):
            events.append(
                {
                    "machine_id": machine["id"],
                    "at": at + timedelta(seconds=k),
                    "event": event,
                    "message": "",
                }
            )
        ran += [_execution(machine, at, k) for k in range(3)]
        since = int(at.timestamp() * 1000)
        counted.append(
            {
                "id": machine["id"],
                "tenant_id": DEFAULT_TENANT,
                "machine_id": machine["id"],
                "key_id": "",
                "family": machine["id"],
                "since_ms": since,
                "vcpu_milli": 0,
                "memory_mib": 0,
                "storage_kib": 40_000 + n,
                "born_ms": since,
                "measured_ms": since,
                "egress_generation": 1,
                "egress_seen": 0,
            }
        )
    engine = sqlite.make_engine(settings.data_dir / "roost.db", 5.0)
    with engine.connect().execution_options(roost_write=True) as connection:
        with connection.begin():
            for table, rows in (
                (machines, made),
                (machine_events, events),
                (executions, ran),
                (meters, counted),
            ):
                connection.execute(sa.insert(table), rows)
    engine.dispose()
    return [each["id"] for each in made]


def _machine(n: int, at: datetime) -> dict[str, Any]:
    capabilities = FakeDriver(memory_snapshot=True).capabilities()
    machine_id = ids.new()
    return {
        "id": machine_id,
        "tenant_id": DEFAULT_TENANT,
        "node_id": "n" * 26,
        "key": f"user-{n}",
        "name": None,
        "labels": {"app": "chat", "shard": str(n % 16)},
        "template_id": "t" * 26,
        "template": "base",
        "image_digest": "sha256:" + "0" * 64,
        "driver": "fake",
        "isolation": capabilities.isolation.value,
        "capabilities": capabilities_to_json(capabilities),
        "vcpu": 1.0,
        "memory_mib": 1024,
        "storage_gib": 10,
        "env": {"USER_ID": str(n)},
        "autosleep_seconds": 300,
        "ttl_seconds": None,
        "expires_at": None,
        "desired_state": "sleeping",
        "phase": "sleeping",
        "reason": None,
        "retryable": False,
        "last_error": None,
        "revision": 9,
        "generation": 2,
        "disk_ready": True,
        "slot_index": None,
        "handle": None,
        "snapshot_id": None,
        "memory_image": {
            "manifest": {"files": {"checkpoint.img": {"size": 2**26, "crc32": n}}},
            "token_of": [machine_id, 2],
            "snapshot_id": None,
            "used": False,
        },
        "created_at": at,
        "last_transition_at": at,
        "last_progress_at": at,
        "last_activity_at": at,
    }


def _execution(machine: dict[str, Any], at: datetime, k: int) -> dict[str, Any]:
    return {
        "id": ids.new(),
        "tenant_id": DEFAULT_TENANT,
        "machine_id": machine["id"],
        "command": ["/bin/sh", "-c", f"echo {k}"],
        "status": "succeeded",
        "exit_code": 0,
        "stdout": b"line\n" * 20,
        "stderr": b"",
        "stdout_bytes": 100,
        "stderr_bytes": 0,
        "duration_us": 1000,
        "created_at": at,
        "started_at": at,
        "ended_at": at,
    }


def remove(settings: Settings) -> None:
    from roost.network import SlotNetwork
    from roost.storage import PoolStorage

    async def work() -> None:
        await SlotNetwork(settings).purge()
        await PoolStorage(settings).purge()

    asyncio.run(work())
