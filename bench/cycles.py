"""Machines made and destroyed one after the other, four at a time: what the host and the daemon have afterwards is what
they had before. ``scripts/bench cycles -n 10000`` by hand (a tenth of it on microVMs); ROOST_BENCH_DRIVER names one rung.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.report import Report
from roost import Client, Machine
from roost.host import netns
from roost.network.addresses import instance_tag
from roost.settings import Settings

AT_ONCE = 4
WARM_UP = 8  # cycles after which a daemon has all that it keeps for good
SETTLES_S = 60.0
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
KEPT = ("homes", "disks", "memory", "snapshots", "tmp")
MAY_GROW = {"MB": 48, "egress MB": 24, "threads": 8, "fds": 8, "egress fds": 4}


def footprint(pid: int, run_dir: Path, data_dir: Path) -> dict[str, int]:
    """What there is of a daemon's machines on its host, counted; another daemon's are not."""
    tag = instance_tag(run_dir)
    mounts = Path("/proc/mounts").read_text()
    loops = subprocess.run(["losetup", "-ln"], capture_output=True, text=True, check=True).stdout
    groups = Path("/sys/fs/cgroup")
    found = {
        **_process(pid),
        "children": len(_children(pid)),
        "mounts": mounts.count(f" {run_dir}/") + mounts.count(f" {data_dir}/"),
        "loops": loops.count(f" {data_dir}/"),
        "cgroups": len([*groups.glob(f"*/roost-{tag}/*/"), *groups.glob(f"roost-{tag}/*/")]),
        "network namespaces": len(list(netns.names(f"rst{tag}-"))),
        "interfaces": len(list(Path("/sys/class/net").glob(f"rst{tag}*"))),
        "places": len(list(run_dir.glob("machines/*/*"))),
        **{f"namespaces {k}": len(v) for k, v in namespaces(pid, f"/roost-{tag}/").items()},
        **{f"pool's {name}": len(list((data_dir / "pool" / name).iterdir())) for name in KEPT},
    }
    egress = run_dir / "egress.json"
    if egress.exists():
        other = _process(int(json.loads(egress.read_text())["pid"]))
        found |= {f"egress {what}": count for what, count in other.items()}
    return found


def namespaces(pid: int, ours: str) -> dict[str, set[str]]:
    """Of each kind, those that any process of the host is in, or this daemon holds open; without those of other daemons'
    machines, which are in groups but not in ``ours``."""
    found = {kind: set[str]() for kind in NAMESPACES}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            groups = (process / "cgroup").read_text()
            if "/roost-" not in groups or ours in groups:
                for kind in NAMESPACES:
                    found[kind].add(os.readlink(process / "ns" / kind))
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            kind, _, number = os.readlink(fd).partition(":")
            if kind in found:
                found[kind].add(f"{kind}:{number}")
    return found


def _process(pid: int) -> dict[str, int]:
    process = Path(f"/proc/{pid}")
    status = (process / "status").read_text()
    return {
        "fds": len(os.listdir(process / "fd")),
        "threads": len(os.listdir(process / "task")),
        "MB": int(status.split("VmRSS:")[1].split()[0]) >> 10,
    }


def _children(pid: int) -> list[str]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [child for task in tasks for child in task.read_text().split()]


def cycle(driver: str) -> None:
    with Machine.create(driver=driver, memory_mib=256, storage_gib=1, autosleep="never") as m:
        assert m.exec("echo on").stdout == "on\n"


def cycles(driver: str, count: int) -> float:
    """Milliseconds of each."""
    begun = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(cycle, [driver] * count))
    return (time.monotonic() - begun) * 1e3 / count


def at_rest(pid: int, run_dir: Path, data_dir: Path) -> dict[str, int]:
    """The footprint once it holds still: what is made ahead (slots) has been made again."""
    deadline = time.monotonic() + SETTLES_S
    kept = [footprint(pid, run_dir, data_dir)]
    while time.monotonic() < deadline:
        time.sleep(1)
        kept.append(footprint(pid, run_dir, data_dir))
        if all(_still(each) == _still(kept[-1]) for each in kept[-4:-1]) and len(kept) > 3:
            break
    return kept[-1]


def _still(found: dict[str, int]) -> dict[str, int]:
    return {what: count for what, count in found.items() if what not in MAY_GROW}


def grown(before: dict[str, int], pid: int, run_dir: Path, data_dir: Path) -> dict[str, int]:
    """What is more than before and may not be, once it holds still; {} is what should be."""
    deadline = time.monotonic() + SETTLES_S
    while True:
        now = footprint(pid, run_dir, data_dir)
        more = {what: count - before.get(what, 0) for what, count in now.items()}
        more = {what: count for what, count in more.items() if count > MAY_GROW.get(what, 0)}
        if not more or time.monotonic() > deadline:
            return more
        time.sleep(1)


def run(report: Report, n: int) -> None:
    host = Client().request("GET", "/v1/host").json()
    daemon = int(host["daemon"]["pid"]), Settings().run_dir, Path(host["daemon"]["data_dir"])
    offered = [rung["driver"] for rung in host["rungs"] if rung["available"]]
    if only := os.environ.get("ROOST_BENCH_DRIVER"):
        offered = [only]
    for driver in offered:
        count = max(1, n // 10) if driver == "qemu" else n
        cycles(driver, WARM_UP)
        before = at_rest(*daemon)
        each = cycles(driver, count)
        more = grown(before, *daemon)
        after = footprint(*daemon)
        report.add(f"create + exec + destroy, {count:,} times, {driver}", "ms", [each])
        report.add("  daemon RSS growth", "MB", [after["MB"] - before["MB"]], bound=MAY_GROW["MB"])
        report.add(f"  kinds of things left behind {more or ''}", "", [len(more)], bound=0)
