"""The pool full in the middle of a snapshot, where it keeps no memory: of a workspace, which is copied file by file, and
of disks. ``test_instant`` has those that keep it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost import CapacityError, Machine
from tests.attack.record import case
from tests.system.conftest import Daemon
from tests.system.faults import state
from tests.system.test_instant import kept, pool_with, run

pytestmark = pytest.mark.system
FILES = 5000  # of which not all inodes find room
ROOM = 1 << 20
DIGEST = "cd; find many -type f | sort | xargs cat | sha256sum"


@contextlib.contextmanager
def full(daemon: Daemon, of_disks: bool) -> Iterator[None]:
    """A copy of a disk takes hardly anything: not even that is there then."""
    with pool_with(daemon, free=ROOM), contextlib.ExitStack() as stack:
        many = daemon.data_dir / "pool" / "tmp"
        with contextlib.suppress(OSError):
            for number in range(FILES if of_disks else 0):
                path = many / f"filler-{number}"
                path.touch()
                stack.callback(Path.unlink, path)
                path.write_bytes(b"x" * 4096)
        yield


@case("F4")
@pytest.mark.parametrize("driver", ["workspace", "user", "runc"])
def test_a_snapshot_there_is_no_space_for_leaves_nothing_and_harms_nobody(
    daemon: Daemon, driver: str
) -> None:
    if why := state.unavailable(daemon, driver):
        pytest.skip(why)
    with Machine.create(driver=driver, autosleep="never") as parent:
        run(
            parent,
            f"cd; mkdir many; for i in $(seq {FILES}); do echo $i > many/$i; done; sync -f . || sync",
        )
        before, digest = kept(daemon), run(parent, DIGEST)
        with full(daemon, of_disks=driver != "workspace"):
            for _ in range(2):
                with pytest.raises(CapacityError) as caught:
                    parent.snapshot()
                assert (caught.value.code, caught.value.status) == ("STORAGE_FULL", 507)
                assert kept(daemon) == before
                assert run(parent, DIGEST) == digest
        assert parent.refresh().phase == "running"
        run(parent, "cd; echo more > many/more")
        digest = run(parent, DIGEST)
        snapshot = parent.snapshot()  # what failed spoils no later one
        try:
            with Machine.create(snapshot=snapshot) as child:
                assert run(child, DIGEST) == digest
        finally:
            snapshot.delete()
    state.whole(daemon)
