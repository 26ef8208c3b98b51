"""The daemon of the system tests with the tests' internet for its resolver; two machines of each rung, made once.

After every case the daemon answers, the neighbour works (of the same boot, a file of it whole), the host's canary
files are as they were, the database is sound, and what its rows say of machines is what the host has of them: no slot, disk, mount, group or process more.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from roost import Machine
from tests.system.conftest import Daemon
from tests.system.faults import state
from tests.system.internet import RESOLVER, Internet

from .cases import RUNGS
from .record import escapes, rung_of
from .rung import MEMORY_MIB, Rung, harm, prepare

ESCAPED = (AssertionError, pytest.fail.Exception)
WITHOUT_A_NETWORK = "it has the host's own network, and no policy"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here not in item.path.parents:
            continue
        item.add_marker(pytest.mark.system)
        told = {name for mark in item.iter_markers("untested") for name in mark.args}
        if item.get_closest_marker("own_network") and "workspace" not in told:
            item.add_marker(escapes("workspace", reason=WITHOUT_A_NETWORK, run=False))
        name = rung_of(item)
        for mark in item.iter_markers("escapes"):
            if name in mark.args:
                item.add_marker(pytest.mark.xfail(strict=True, raises=ESCAPED, **mark.kwargs))
        for mark in item.iter_markers("untested"):
            if name in mark.args:
                item.add_marker(pytest.mark.skip(**mark.kwargs))


@pytest.fixture(scope="package")
def wild(request: pytest.FixtureRequest) -> Internet | None:
    """The tests' internet, where a test of the session wants one: a host has one at a time."""
    wanted = any(item.get_closest_marker("own_network") for item in request.session.items)
    return request.getfixturevalue("internet") if wanted else None


@pytest.fixture(scope="package")
def led(daemon: Daemon, wild: Internet | None) -> Iterator[Daemon]:
    """The daemon, whose machines' names come from the tests' internet."""
    if wild is None:
        yield daemon
        return
    before = dict(daemon.env)
    daemon.env |= {"ROOST_DNS": RESOLVER, "ROOST_EGRESS_CA": str(wild.ca)}
    daemon.restart()
    yield daemon
    daemon.env.clear()
    daemon.env.update(before)
    daemon.restart()


@pytest.fixture(scope="package", params=list(RUNGS))
def rung(request: pytest.FixtureRequest, led: Daemon, wild: Internet | None) -> Iterator[Rung]:
    """All tests of one rung, then those of the next: two machines at a time instead of ten."""
    name = str(request.param)
    if why := state.unavailable(led, name):
        pytest.skip(why)
    if name == "qemu":
        request.getfixturevalue("guests")
    with (
        Machine.create(driver=name, memory_mib=MEMORY_MIB, autosleep="never") as machine,
        Machine.create(driver=name, memory_mib=MEMORY_MIB, autosleep="never") as neighbour,
    ):
        if wild is not None:
            for each in (machine, neighbour):
                prepare(each, wild)
        yield Rung(name, machine, neighbour, wild)


@pytest.fixture(scope="package")
def canaries() -> Iterator[dict[Path, bytes]]:
    """Files of the host that nobody should touch. One of them anybody of the host could: what keeps it is no mode."""
    with (
        tempfile.TemporaryDirectory(prefix="roost-canary-") as closed,
        tempfile.TemporaryDirectory(prefix="roost-open-canary-") as opened,
    ):
        planted = [Path(closed, "canary"), Path(opened, "canary")]
        for path in planted:
            path.write_bytes(os.urandom(64))
        planted[1].chmod(0o666)
        planted[1].parent.chmod(0o777)
        others = [Path(p) for p in ("/etc/passwd", "/etc/hosts", "/etc/resolv.conf")]
        yield {path: path.read_bytes() for path in (*planted, *others)}


@pytest.fixture(autouse=True)
def unharmed(request: pytest.FixtureRequest) -> Iterator[None]:
    if "rung" not in request.fixturenames:
        yield
        return
    rung: Rung = request.getfixturevalue("rung")
    daemon: Daemon = request.getfixturevalue("led")
    canaries: dict[Path, bytes] = request.getfixturevalue("canaries")
    yield
    with harm():
        assert daemon.process is not None and daemon.process.poll() is None, daemon.tail()
        assert httpx.get(f"{daemon.url}/healthz", timeout=10, trust_env=False).status_code == 200
        assert rung.neighbour.exec(rung.known.tell, timeout=60).stdout == rung.known.said
        for path, content in canaries.items():
            assert path.read_bytes() == content, path
        state.whole(daemon)
