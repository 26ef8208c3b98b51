"""Saved memory that is damaged, or another version's: refused before anything runs from it, and set aside by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from roost import Machine, RoostError, Snapshot
from tests.attack.record import case
from tests.system.conftest import Daemon
from tests.system.faults import state
from tests.system.faults.sweep import Api, require

pytestmark = [pytest.mark.system, case("F5")]


def _flip(daemon: Daemon, snapshot: str, directory: Path) -> None:
    """A bit of what is not guest memory, where the rung's check is not of all of it."""
    path = directory / "memory" if (directory / "memory").exists() else directory / "checkpoint.img"
    with path.open("r+b") as file:
        file.seek(-40, os.SEEK_END)
        byte = file.read(1)
        file.seek(-40, os.SEEK_END)
        file.write(bytes([byte[0] ^ 0x10]))


def _cut(daemon: Daemon, snapshot: str, directory: Path) -> None:
    path = max(directory.iterdir(), key=lambda p: p.stat().st_size)
    os.truncate(path, path.stat().st_size - 4096)


def _foreign(daemon: Daemon, snapshot: str, directory: Path) -> None:
    """As one that was brought here, or left by a runtime that was upgraded."""
    with state.database(daemon) as db:
        ((text,),) = db.execute(
            "select memory_image from snapshots where id = ?", (snapshot,)
        ).fetchall()
        image = json.loads(text)
        if "host" in image["manifest"]:
            image["manifest"]["host"]["runsc"] = "release-20010101.0"
        db.execute(
            "update snapshots set memory_image = ? where id = ?", (json.dumps(image), snapshot)
        )
    manifest = directory / "manifest.json"
    if (directory / "memory").exists():
        said = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({**said, "vmm_version": "1.0.0"}))


# Each boots from its disk twice, which takes long where a CPU is emulated.
@pytest.fixture(scope="module", params=["gvisor", pytest.param("qemu", marks=pytest.mark.long)])
def machine(daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[Machine]:
    require(daemon, request.param)
    m = Machine.get(Api(daemon, request.param).running())
    yield m
    m.destroy()


@pytest.mark.parametrize("damage", [_flip, _cut, _foreign], ids=["flipped", "cut", "foreign"])
def test_it_is_refused_and_quarantined(
    daemon: Daemon, machine: Machine, damage: Callable[[Daemon, str, Path], None]
) -> None:
    api = Api(daemon, str(machine.isolation["driver"]))
    snapshot = machine.snapshot("damaged")
    damage(daemon, snapshot.id, daemon.data_dir / "pool/snapshots" / snapshot.id / "memory")
    with Machine.create(snapshot="damaged") as found_out:
        (told,) = api.told(found_out.id, "memory_lost")
        assert "SNAPSHOT_INVALID" in told
        assert api.count(found_out.id) == (0, 0), "nothing of that memory runs"
        assert api.exec(found_out.id, "cat /root/kept") == "kept"
    found = Snapshot.get("damaged")
    assert found.status == "quarantined" and "SNAPSHOT_INVALID" in (found.reason or "")
    for ask in (lambda: Machine.create(snapshot="damaged"), lambda: machine.rollback("damaged")):
        with pytest.raises(RoostError) as caught:
            ask()
        assert caught.value.code == "SNAPSHOT_INVALID"
        assert snapshot.id in caught.value.message and "quarantined" in caught.value.message
    with Machine.create(snapshot="damaged", memory=False) as other:
        assert api.exec(other.id, "cat /root/kept") == "kept"
    snapshot.delete()
    assert api.count(machine.id)[0], "the machine it was of is none the worse"
    state.whole(daemon)
