"""A host that restarted under its machines, as far as that can be without one: no process, mount, namespace, group or run
directory is left, and what is written down of machines is of another boot."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from roost.host import netns
from roost.network.addresses import Plan
from tests.attack.record import case
from tests.system.conftest import NETWORK, Daemon
from tests.system.faults import state
from tests.system.faults.sweep import Api, require

pytestmark = [pytest.mark.system, case("F10")]


def reboot(daemon: Daemon) -> None:
    """Between a daemon's death and the next one's start."""
    daemon.stop(signal.SIGKILL)
    groups = state.groups(daemon)
    for group in groups:
        for procs in group.rglob("cgroup.procs"):
            _kill(procs.read_text().split())
    _kill(pid for pid, _ in state.in_workspaces(daemon.data_dir / "pool/homes"))
    deadline = time.monotonic() + 20
    for group in groups:
        for inner in sorted((p for p in group.rglob("*") if p.is_dir()), reverse=True):
            inner.rmdir()
        while True:
            try:
                group.rmdir()
                break
            except FileNotFoundError:
                break
            except OSError:
                assert time.monotonic() < deadline, group
                time.sleep(0.05)
    plan = Plan(NETWORK, daemon.run_dir)
    for link in Path("/sys/class/net").glob(f"{plan.prefix}h*"):
        subprocess.run(["ip", "link", "del", link.name], check=False)
    for name in netns.names(plan.prefix):
        netns.delete(name)
    subprocess.run(["umount", daemon.data_dir / "pool"], check=True)
    shutil.rmtree(daemon.run_dir)
    with state.database(daemon) as db:
        db.execute(
            "update machines set handle = json_set(handle, '$.boot_id', 'the-boot-before')"
            " where json_type(handle) = 'object'"
        )


def _kill(pids: Iterable[int | str]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def test_sleeping_machines_wake_and_running_ones_sleep(daemon: Daemon) -> None:
    rungs = [driver for driver in ("gvisor", "qemu") if state.available(daemon, driver)]
    asleep, running, counts = {}, {}, {}
    for driver in rungs:
        api = Api(daemon, driver)
        asleep[driver] = api.running()
        counts[driver] = api.count(asleep[driver])
        api.call("POST", f"/machines/{asleep[driver]}/sleep", params={"tier": "hibernated"})
        running[driver] = api.running()
    reboot(daemon)
    daemon.start()
    state.whole(daemon)
    for driver in rungs:
        api = Api(daemon, driver)
        assert api.machine(asleep[driver])["phase"] == "sleeping"
        found = api.machine(running[driver])
        assert (found["phase"], found["status"]["reason"]) == ("sleeping", "host restarted")
        pid, count = api.count(asleep[driver])
        assert pid == counts[driver][0] and count >= counts[driver][1], "woken with its memory"
        assert not api.told(asleep[driver], "memory_lost")
        if driver != "qemu":  # which boots: elsewhere, and slow where a CPU is emulated
            assert api.exec(running[driver], "cat /root/kept") == "kept"
        for machine_id in (asleep[driver], running[driver]):
            api.call("DELETE", f"/machines/{machine_id}")
    state.whole(daemon)


@pytest.mark.parametrize("driver", ["runc", "user", "workspace"])
def test_where_memory_is_not_kept_the_disk_is(daemon: Daemon, driver: str) -> None:
    require(daemon, driver)
    api = Api(daemon, driver)
    asleep, running = api.create(), api.create()
    lasting = f"sleep {90_000 + os.getpid() % 1000}"  # a workspace sees those of this host, too
    for machine_id in (asleep, running):
        api.exec(machine_id, f"echo kept > kept; sync; {lasting} >/dev/null 2>&1 </dev/null &")
    api.call("POST", f"/machines/{asleep}/sleep")
    reboot(daemon)
    daemon.start()
    state.whole(daemon)
    assert api.machine(asleep)["phase"] == "sleeping"
    found = api.machine(running)
    assert (found["phase"], found["status"]["reason"]) == ("sleeping", "host restarted")
    for machine_id in (asleep, running):
        assert (
            api.exec(machine_id, f"cat kept; pgrep -fx '{lasting}' || echo ended") == "kept\nended"
        )
    state.whole(daemon)
    for machine_id in (asleep, running):
        api.call("DELETE", f"/machines/{machine_id}")
    state.whole(daemon)


def test_a_sleep_that_was_cut_off_by_it(daemon: Daemon) -> None:
    """Memory that was not known to be durable is not gone on from."""
    require(daemon, "gvisor")
    api = Api(daemon, "gvisor")
    machine_id = api.running()
    with state.database(daemon) as db:
        (row,) = db.execute("select handle from machines where id = ?", (machine_id,)).fetchall()
    api.call("POST", f"/machines/{machine_id}/sleep", params={"tier": "hibernated"})
    reboot(daemon)
    with state.database(daemon) as db:  # as if its first step had not been written
        db.execute(
            "update machines set phase = 'stopping', desired_state = 'sleeping', memory_image = null,"
            " handle = json_set(?, '$.boot_id', 'the-boot-before') where id = ?",
            (row[0], machine_id),
        )
        db.execute(
            "update operations set state = 'doing', step = 1, context = '{\"keep_memory\": true}'"
            " where kind = 'sleep' and machine_id = ?",
            (machine_id,),
        )
    daemon.start()
    state.whole(daemon)
    assert api.machine(machine_id)["phase"] == "sleeping"
    assert api.count(machine_id) == (0, 0)
    assert api.told(machine_id, "memory_lost")
    assert api.exec(machine_id, "cat /root/kept") == "kept"
    api.call("DELETE", f"/machines/{machine_id}")
