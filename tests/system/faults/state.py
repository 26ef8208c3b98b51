"""Whether database and host say the same: every row means something here, and nothing here is nobody's."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from roost.host import netns, processes
from roost.network.addresses import Plan, instance_tag
from tests.system.conftest import NETWORK, Daemon

SETTLED = ("running", "sleeping", "failed", "destroyed")
_MACHINE = re.compile(r"/(?:gvisor|runc|qemu|user)-([a-z0-9]{26,40})")


def rows(daemon: Daemon, query: str, *values: object) -> list[dict[str, Any]]:
    path = f"file:{daemon.data_dir / 'roost.db'}?mode=ro"
    with contextlib.closing(sqlite3.connect(path, uri=True)) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute(query, values)]


@contextlib.contextmanager
def database(daemon: Daemon) -> Iterator[sqlite3.Connection]:
    """To change what is written in it."""
    with contextlib.closing(sqlite3.connect(daemon.data_dir / "roost.db")) as db, db:
        yield db


def whole(daemon: Daemon, within_s: float = 60.0) -> None:
    """Nothing is wrong, at the latest then: the pool of slots refills, an ended process is reaped a moment later."""
    deadline = time.monotonic() + within_s
    while found := wrong(daemon):
        assert time.monotonic() < deadline, json.dumps(found, indent=1)
        time.sleep(0.2)


def wrong(daemon: Daemon) -> list[str]:
    return [*_database(daemon), *_host(daemon)]


def _database(daemon: Daemon) -> Iterator[str]:
    for row in rows(daemon, "pragma quick_check"):
        if set(row.values()) != {"ok"}:
            yield f"the database is damaged: {row}"
    for row in rows(daemon, "pragma foreign_key_check"):
        yield f"a row names one that is not there: {row}"
    for row in rows(daemon, "select * from operations where state not in ('done', 'undone')"):
        yield f"operation {row['kind']} of {row['machine_id']} is {row['state']}: {row['error']}"
    for row in rows(daemon, "select * from machines"):
        if row["phase"] not in SETTLED:
            yield f"machine {row['id']} is {row['phase']}"
        if row["phase"] == "failed" and not row["reason"]:
            yield f"machine {row['id']} failed for no reason"
        if not _lives(row) and (row["handle"] or "null") != "null":
            yield f"machine {row['id']} is {row['phase']} and has a handle"
    for row in rows(daemon, "select * from snapshots where status = 'creating' or for_fork"):
        yield f"snapshot {row['id']} is {row['status']}, for_fork={row['for_fork']}"
    running = "select id from machines where phase = 'running' or tier in ('frozen', 'hibernated')"
    for row in rows(
        daemon,
        "select * from executions where status in ('queued', 'running')"
        f" and machine_id not in ({running})",
    ):
        yield f"execution {row['id']} runs in a machine that does not"
    for row in rows(daemon, "select * from idempotency where status is null"):
        yield f"the request {row['key']} is in progress"


def _host(daemon: Daemon) -> Iterator[str]:
    machines = rows(daemon, "select * from machines")
    running = {m["id"]: m for m in machines if _lives(m)}
    # A directory of the daemon's user is no disk, and its processes have no group, mount or slot of their own:
    # ``_workspaces`` looks for these.
    bare = {m["id"] for m in machines if m["driver"] == "workspace"}
    kept = rows(daemon, "select id from snapshots")  # bakes are snapshots, too
    volumes = {row["id"] for row in rows(daemon, "select id from volumes")}
    pool = daemon.data_dir / "pool"
    disks = {m["id"] for m in machines if m["phase"] != "destroyed" and m["disk_ready"]}
    asleep = {m["id"] for m in machines if m["phase"] != "destroyed" and _own_memory(m)}
    in_groups = set(_in_groups(daemon))
    names = {p.stem for p in (pool / "disks").iterdir()}
    pairs = (
        ("disk", names, disks),
        ("saved memory", {p.name for p in (pool / "memory").iterdir()}, asleep),
        ("volume", {p.stem for p in (pool / "volumes").iterdir()}, volumes),
        ("snapshot", {p.name for p in (pool / "snapshots").iterdir()}, {s["id"] for s in kept}),
        ("directory", {p.name for p in daemon.run_dir.glob("machines/*/*")}, set(running)),
        ("cgroup", {g.name.partition("-")[2] for g in groups(daemon)}, set(running)),
        ("process", in_groups, set(running)),
        (
            "loop device",
            set(_loops(pool)),
            {m for m, row in running.items() if row["driver"] != "qemu"},
        ),
    )
    for what, there, wanted in pairs:
        without = set() if what == "directory" else bare
        yield from (f"leaked {what} of {m}" for m in sorted(there - wanted - without))
        yield from (f"missing {what} of {m}" for m in sorted(wanted - there - without))
    yield from _workspaces(pool / "homes", machines)
    for path in (pool / "tmp").iterdir():
        yield f"leaked {path}"
    for machine_id, row in running.items():
        handle = json.loads(row["handle"])
        if not processes.is_same(handle["pid"], handle["pid_start_ticks"], handle["boot_id"]):
            yield f"the process of {machine_id} is not the one of its row"
    yield from _strays(daemon, set(running))
    for line in Path("/proc/mounts").read_text().splitlines():
        if f"{daemon.run_dir}/machines/" in line.split()[1]:
            yield f"leaked mount {line.split()[1]}"
    yield from _network(daemon, running)


def _lives(row: dict[str, Any]) -> bool:
    return row["phase"] == "running" or row["tier"] == "frozen"


def _own_memory(row: dict[str, Any]) -> bool:
    image = json.loads(row["memory_image"] or "null")
    return image is not None and image.get("snapshot_id") is None


def groups(daemon: Daemon) -> list[Path]:
    """Of machines, in every hierarchy."""
    name = f"roost-{instance_tag(daemon.run_dir)}"
    root = Path("/sys/fs/cgroup")
    return [g for g in [*root.glob(f"*/{name}/*-*"), *root.glob(f"{name}/*-*")] if g.is_dir()]


def _in_groups(daemon: Daemon) -> Iterator[str]:
    """Machines that have a process that lives."""
    ours = f"/roost-{instance_tag(daemon.run_dir)}/"
    for path in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            text = path.read_text()
            if ours in text and path.with_name("cmdline").read_bytes():
                yield from set(_MACHINE.findall(text))
        except OSError:
            continue


def _strays(daemon: Daemon, running: set[str]) -> Iterator[str]:
    """Processes whose command line tells of our run directory, of no machine that runs, and that are neither in a group
    nor the daemon. What tells of neither is not seen here, nor one too many of a machine that runs."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            grouped = (
                f"/roost-{instance_tag(daemon.run_dir)}/" in path.with_name("cgroup").read_text()
            )
        except OSError:
            continue
        if f"{daemon.run_dir}/" not in text or grouped or int(path.parent.name) == daemon.pid:
            continue
        if not any(machine_id in text for machine_id in running):
            yield f"leaked process {path.parent.name}: {text[:200]}"


def _workspaces(homes: Path, machines: list[dict[str, Any]]) -> Iterator[str]:
    """A directory for each that is not destroyed; processes, as they tell in their command line or environment, of those
    that live."""
    ours = [m for m in machines if m["driver"] == "workspace" and m["phase"] != "destroyed"]
    living = {m["id"] for m in ours if _lives(m)}
    wanted = {m["id"] for m in ours if m["disk_ready"]}
    there = {path.name for path in homes.iterdir()}
    yield from (f"leaked directory of the workspace {m}" for m in sorted(there - wanted))
    yield from (f"missing directory of the workspace {m}" for m in sorted(wanted - there))
    found = dict(in_workspaces(homes))
    yield from (f"leaked process {p} of {m}" for p, m in sorted(found.items()) if m not in living)
    yield from (f"missing process of {m}" for m in sorted(living - set(found.values())))


def in_workspaces(homes: Path) -> Iterator[tuple[int, str]]:
    """Every process that was started for or in one of these directories, and of which."""
    told = re.compile(
        rb"(?:^|\0)(?:--workspace\0|ROOST_WORKSPACE=)"
        + re.escape(os.fsencode(homes))
        + rb"/([^/\0]+)\0"
    )
    for pid in processes.everyone():
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                if said := told.search(Path(f"/proc/{pid}/{name}").read_bytes()):
                    yield pid, os.fsdecode(said[1])


def _loops(pool: Path) -> Iterator[str]:
    listed = subprocess.run(
        ["losetup", "-lnO", "BACK-FILE"], capture_output=True, text=True, check=True
    )
    for line in listed.stdout.splitlines():
        if line.startswith(f"{pool}/"):
            yield Path(line.split()[0]).stem


def _network(daemon: Daemon, running: dict[str, dict[str, Any]]) -> Iterator[str]:
    plan = Plan(NETWORK, daemon.run_dir)
    parts: dict[int, set[str]] = {}
    links = (p.name for p in Path("/sys/class/net").glob(f"{plan.prefix}h*"))
    for name in [*netns.names(plan.prefix), *links]:
        if (index := plan.index_of(name)) is not None:
            parts.setdefault(index, set()).add(name.removeprefix(plan.prefix)[0])
    used = {row["slot_index"]: row for row in running.values() if row["slot_index"] is not None}
    for index in sorted(set(used) - set(parts)):
        yield f"missing slot {index}"
    for index, found in sorted(parts.items()):
        if found != {"g", "m", "h"}:
            yield f"slot {index} has only {sorted(found)}"
            continue
        taps = [
            link for link in _links(plan.slot(index).machine_netns) if link not in ("lo", "eth0")
        ]
        tapped = index in used and used[index]["driver"] == "qemu"
        if bool(taps) != tapped:
            yield f"slot {index} has the interfaces {taps}"
    spare = len(set(parts) - set(used))
    if spare > int(daemon.env.get("ROOST_NETWORK_POOL", "4")):
        yield f"{spare} slots are in nobody's use"


def _links(namespace: str) -> list[str]:
    listed = subprocess.run(["ip", "-n", namespace, "-j", "link"], capture_output=True, check=False)
    return [link["ifname"] for link in json.loads(listed.stdout or b"[]")]


def available(daemon: Daemon, driver: str) -> bool:
    return not unavailable(daemon, driver)


def unavailable(daemon: Daemon, driver: str) -> str:
    """Why this host has none; "" where it has."""
    with daemon.http() as http:
        rungs = {rung["driver"]: rung for rung in http.get("/v1/host").json()["rungs"]}
    if driver not in rungs:
        return f"this daemon does not offer {driver}"
    return "" if rungs[driver]["available"] else f"{driver}: {rungs[driver]['reason']}"
