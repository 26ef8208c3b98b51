"""Every process of a machine stands as it did when its rung was last looked at: ``postures/RUNG.json``.

    ROOST_POSTURES=record .venv/bin/pytest tests/attack/test_posture.py -k they_stand_as_recorded

writes them anew; what changed is then read in the diff, and either meant or mended.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest

from roost import Machine
from roost.drivers import oci
from roost.host import processes
from roost.network.addresses import instance_tag
from tests.system.conftest import Daemon
from tests.system.faults import state

from . import posture
from .posture import Posture
from .record import case
from .rung import Rung, until

POSTURES = Path(__file__).with_name("postures")
SYS_ADMIN, SYS_PTRACE, SYS_MODULE, NET_ADMIN = 1 << 21, 1 << 19, 1 << 16, 1 << 12
pytestmark = case(12, 16, 18)


def members(led: Daemon, machine_id: str) -> set[int]:
    """By its groups, in whichever hierarchy; a workspace's by descent."""
    pids: set[int] = set()
    for group in state.groups(led):
        if group.name.endswith(machine_id):
            for procs in group.rglob("cgroup.procs"):
                pids |= {int(pid) for pid in procs.read_text().split()}
    (row,) = state.rows(led, "select handle from machines where id = ?", machine_id)
    top = json.loads(row["handle"])["pid"]
    everyone = {int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()}
    return pids | processes.tree(top, everyone)


def words_of(led: Daemon, machine: Machine) -> dict[str, str]:
    return {machine.id: "ID", instance_tag(led.run_dir): "TAG"}


def masked_on(rung: Rung) -> Collection[str]:
    return oci.MASKED if rung.name in ("runc", "user") else ()


def outside(rung: Rung, led: Daemon, machine: Machine) -> Posture:
    words, masked = words_of(led, machine), masked_on(rung)
    return steady(lambda: posture.outside(members(led, machine.id), words, masked))


def inside(rung: Rung, led: Daemon, machine: Machine) -> Posture:
    """Of every process that the machine shows; a workspace shows the host's."""
    words, masked = words_of(led, machine), masked_on(rung)
    names = {"sleep", "python3"} if rung.name == "workspace" else None

    def look() -> Posture:
        told = machine.exec(["python3", "-c", posture.TELL], timeout=60).check()
        return posture.inside(told.stdout, names, words, masked)

    seen = steady(look)
    if rung.name == "workspace":  # whose mounts and bounds are the host's
        for each in (facts for ways in seen.values() for facts in ways):
            del each["mounts"], each["CapBnd"]
    return seen


def steady(look: Callable[[], Posture]) -> Posture:
    """Once two looks agree: a moment after an execution its agent may still have a pipe of it open."""
    seen = [look()]

    def agrees() -> bool:
        time.sleep(0.3)
        seen.append(look())
        return seen[-1] == seen[-2]

    until(agrees)
    return seen[-1]


@pytest.fixture
def alone(rung: Rung) -> Iterator[Machine]:
    """One that no other test has left anything running in."""
    with rung.another() as machine:
        machine.exec("true")
        yield machine


@pytest.fixture
def stood(rung: Rung, led: Daemon, alone: Machine) -> dict[str, Posture]:
    """While a program runs in it that an execution started."""
    alone.start(["sleep", "345"])
    until(lambda: "sleep 345" in alone.exec("ps -eo args").stdout)
    return {"outside": outside(rung, led, alone), "inside": inside(rung, led, alone)}


def test_they_stand_as_recorded(rung: Rung, stood: dict[str, Posture]) -> None:
    path = POSTURES / f"{rung.name}.json"
    if os.environ.get("ROOST_POSTURES") == "record":
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(stood, indent=1, sort_keys=True) + "\n")
    assert stood == json.loads(path.read_text())


def test_an_execution_leaves_them_as_they_were(rung: Rung, led: Daemon, alone: Machine) -> None:
    before = outside(rung, led, alone), inside(rung, led, alone)
    alone.exec("sleep 0.2 & wait; python3 -c 'import ctypes'", timeout=30)
    until(lambda: (outside(rung, led, alone), inside(rung, led, alone)) == before)


def test_no_process_of_it_could_do_more_than_it_must(rung: Rung, stood: dict[str, Posture]) -> None:
    """Whatever is recorded: the least that a rung is."""
    for name, ways in stood["outside"].items():
        for each in ways:
            if rung.name == "workspace":
                continue
            apart = {"mnt", "net", "ipc"} if rung.name == "gvisor" else {"mnt", "net", "ipc", "pid"}
            assert apart <= set(each["namespaces"]), (name, each)
            assert each["cgroups"], (name, each)
            assert each["root"] == "its own", (name, each)
            if rung.name != "gvisor":  # whose kernel has rights in a user namespace of its own
                may = int(each["CapEff"], 16)
                assert not may & (SYS_ADMIN | SYS_PTRACE | SYS_MODULE | NET_ADMIN), (name, each)
            assert each["Seccomp"] == "2" or name in UNFILTERED.get(rung.name, ()), (name, each)
            if rung.name in ("user", "qemu"):
                assert (each["CapEff"], each["NoNewPrivs"]) == ("0000000000000000", "1"), (
                    name,
                    each,
                )
    for name, ways in stood["inside"].items():
        for each in ways:
            if rung.name == "user":
                assert each["uid"] == "1000" and each["NoNewPrivs"] == "1", (name, each)


UNFILTERED: dict[str, tuple[str, ...]] = {}
