"""kill -9 at every boundary of every operation, on the real rungs.

The short form takes a few boundaries of each operation, spread over it, on gVisor; the long one all of them, on every
rung that keeps memory, the next daemon killed in its recovery as well. Its table is printed and kept beside the
daemon's log as ``sweep.json``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.attack.record import case
from tests.system.conftest import Daemon
from tests.system.faults.sweep import SCENARIOS, Boundary, Sweep, Tally, require, table

pytestmark = pytest.mark.system
TALLIES: list[Tally] = []


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


def opened(daemon: Daemon, driver: str, directory: Path) -> Iterator[Sweep]:
    require(daemon, driver)
    sweep = Sweep(daemon, driver, directory)
    sweep.open()
    try:
        yield sweep
    finally:
        sweep.close()


@pytest.fixture(scope="module")
def gvisor(daemon: Daemon, directory: Path) -> Iterator[Sweep]:
    yield from opened(daemon, "gvisor", directory)


@pytest.fixture(scope="module", params=["gvisor", "qemu"])
def rung(daemon: Daemon, directory: Path, request: pytest.FixtureRequest) -> Iterator[Sweep]:
    yield from opened(daemon, request.param, directory)


@pytest.fixture(scope="module", autouse=True)
def told(daemon: Daemon) -> Iterator[None]:
    yield
    if TALLIES:
        print(f"\n{table(TALLIES)}")
        path = Path(os.environ.get("ROOST_TEST_SWEEP", daemon.data_dir / "sweep.json"))
        path.write_text(json.dumps([asdict(t) for t in TALLIES], indent=1))


@case("F1")
@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_every_boundary(rung: Sweep, name: str) -> None:
    scenario = SCENARIOS[name]
    begun = time.monotonic()
    found = rung.boundaries(scenario)
    assert len(found) >= 4, found
    tally = Tally(name, rung.driver, len(found))
    TALLIES.append(tally)
    for n, boundary in enumerate(found):
        rung.lost.clear()
        try:
            died, again = rung.cut(scenario, boundary, again_at=n % 6)
        except AssertionError as failure:  # the others are looked at all the same
            tally.wrong.append(f"{boundary}: {failure}")
            rung.clean()
            continue
        finally:
            tally.seconds = time.monotonic() - begun
            tally.memory_lost += len(rung.lost)
        tally.hit += died
        tally.in_recovery += again
        if not died:
            tally.missed.append(str(boundary))
    assert not tally.wrong, "\n".join(tally.wrong)
    # What runs at the same time has no fixed order, so that a point in the middle of a step may come too late.
    assert all(" + " in each for each in tally.missed), tally.missed


@case("F1", rung="gvisor")
def test_killed_at_some_boundaries(gvisor: Sweep) -> None:
    for name, at in {
        "exec": "row Executions.insert",
        "sleep": "sleep did:hush",
        "freeze": "freeze did:freeze",
        "wake": "wake do:agent",
        "destroy": "destroy begin:clear",
        "fork": "create end",  # of the child that is ready second
    }.items():
        died, _ = gvisor.cut(SCENARIOS[name], Boundary(at, 2 if name == "fork" else 1))
        assert died, (name, at)
