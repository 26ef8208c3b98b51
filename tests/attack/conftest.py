"""The daemon of the system tests with the tests' internet for its resolver; two machines of each rung, made once.

After every case the daemon answers, the neighbour works, the host's canary files are as they were, and no slot, place
or process is left that is no living machine's.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from roost import Machine
from roost.host import netns
from roost.network.addresses import Plan, instance_tag
from tests.system.conftest import NETWORK, Daemon
from tests.system.internet import RESOLVER, Internet

from .rung import Rung, prepare

MEMORY_MIB = 256
POOL = 4  # ROOST_NETWORK_POOL


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One rung after the other would keep six machines; all of one rung at a time, two."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.system)


@pytest.fixture(scope="package")
def led(daemon: Daemon, internet: Internet) -> Iterator[Daemon]:
    """The daemon, whose machines' names come from the tests' internet."""
    before = dict(daemon.env)
    daemon.env |= {"ROOST_DNS": RESOLVER, "ROOST_EGRESS_CA": str(internet.ca)}
    daemon.restart()
    yield daemon
    daemon.env.clear()
    daemon.env.update(before)
    daemon.restart()


@pytest.fixture(scope="package", params=["gvisor", "runc", "qemu"])
def rung(request: pytest.FixtureRequest, led: Daemon, internet: Internet) -> Iterator[Rung]:
    name = str(request.param)
    if name == "qemu":
        request.getfixturevalue("guests")
    with (
        Machine.create(driver=name, memory_mib=MEMORY_MIB, autosleep="never") as machine,
        Machine.create(driver=name, memory_mib=MEMORY_MIB, autosleep="never") as neighbour,
    ):
        for each in (machine, neighbour):
            prepare(each, internet)
        yield Rung(name, machine, neighbour, internet)


def _standing(daemon: Daemon) -> dict[str, set[str]]:
    """What of ours on the host is no living machine's: slots beyond the pool, places, processes of machines."""
    tag, plan = instance_tag(daemon.run_dir), Plan(NETWORK, daemon.run_dir)
    with sqlite3.connect(daemon.data_dir / "roost.db") as database:
        rows = database.execute("select id, slot_index from machines where phase != 'destroyed'")
        living = dict(rows.fetchall())
    names = [*netns.names(f"rst{tag}-"), *os.listdir("/sys/class/net")]
    slots = {index for name in names if (index := plan.index_of(name)) is not None}
    slots -= set(living.values())
    groups = set()
    for cgroup in Path("/proc").glob("[0-9]*/cgroup"):
        with contextlib.suppress(OSError):
            groups |= set(re.findall(rf"/roost-{tag}/(\w{{20,}})", cgroup.read_text()))
    places = {path.name for path in daemon.run_dir.glob("machines/*/*")}
    found = {"processes": groups - set(living), "places": places - set(living)}
    if len(slots) > POOL:
        found["slots"] = {str(index) for index in slots}
    return {k: v for k, v in found.items() if v}


@pytest.fixture(scope="package")
def canaries() -> Iterator[dict[Path, bytes]]:
    """Files of the host that nobody should touch."""
    with tempfile.TemporaryDirectory(prefix="roost-canary-") as name:
        planted = Path(name) / "canary"
        planted.write_bytes(os.urandom(64))
        files = [planted, *(Path(p) for p in ("/etc/passwd", "/etc/hosts", "/etc/resolv.conf"))]
        yield {path: path.read_bytes() for path in files}


@pytest.fixture(autouse=True)
def unharmed(request: pytest.FixtureRequest) -> Iterator[None]:
    if "rung" not in request.fixturenames:
        yield
        return
    rung: Rung = request.getfixturevalue("rung")
    daemon: Daemon = request.getfixturevalue("led")
    canaries: dict[Path, bytes] = request.getfixturevalue("canaries")
    yield
    assert daemon.process is not None and daemon.process.poll() is None, daemon.tail()
    assert httpx.get(f"{daemon.url}/healthz", timeout=10, trust_env=False).status_code == 200
    assert rung.neighbour.exec("echo unharmed", timeout=30).stdout == "unharmed\n"
    for path, content in canaries.items():
        assert path.read_bytes() == content, path
    deadline = time.monotonic() + 15
    while left := _standing(daemon):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
