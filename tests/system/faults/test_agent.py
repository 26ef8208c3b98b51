"""A machine's root against the agent in it: what comes of that is told, and the host keeps the machine in hand."""

from __future__ import annotations

import time

import pytest

from roost import ExecTimeout, Machine, RoostError
from tests.attack.record import case
from tests.system.conftest import Daemon
from tests.system.faults import state
from tests.system.faults.sweep import Api, require

pytestmark = pytest.mark.system


@case(10, "F2", rung="gvisor")
def test_killed_in_gvisor(daemon: Daemon) -> None:
    """There it takes the machine with it: the command's caller hears AGENT_LOST, the machine says why it failed."""
    require(daemon, "gvisor")
    with Machine.create(driver="gvisor", memory_mib=256, storage_gib=1) as m:
        m.files.write("/root/kept", "kept", sync=True)
        with pytest.raises(RoostError) as caught:
            m.exec("kill -9 1; sleep 60", timeout=60)
        assert caught.value.code == "AGENT_LOST"
        execution = caught.value.details["execution_id"]
        deadline = time.monotonic() + 20
        while m.refresh().phase != "failed":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        m.wake()
        assert m.files.read("/root/kept") == b"kept"
        listed = Api(daemon, "gvisor").call("GET", f"/machines/{m.id}/executions")["items"]
        (found,) = [each for each in listed if each["execution_id"] == execution]
        assert (found["status"], bool(found["reason"])) == ("failed", True)
    state.whole(daemon)


@case(10, "F2")
@pytest.mark.parametrize("driver", ["gvisor", "runc"])
def test_stopped(daemon: Daemon, driver: str) -> None:
    """On runc PID 1 cannot be. On gVisor it can: whoever waits hears so in time, and the host stops and wakes it."""
    with Machine.create(driver=driver, memory_mib=256, storage_gib=1) as m:
        m.files.write("/root/kept", "kept", sync=True)
        begun = time.monotonic()
        try:
            assert m.exec("kill -STOP 1; sleep 1; echo on", timeout=10).stdout == "on\n"
            assert driver == "runc"
        except ExecTimeout:
            assert driver == "gvisor"
        assert time.monotonic() - begun < 10 + 10 + 10, (
            "10 s after its timeout, and a host that is busy"
        )
        assert m.refresh().phase == "running"
        m.sleep()
        assert m.refresh().phase == "sleeping"
        if driver == "gvisor":
            assert Api(daemon, driver).told(m.id, "memory_lost"), (
                "it could not be kept, and says so"
            )
        assert m.exec("cat /root/kept").stdout == "kept"
    state.whole(daemon)


@case(10, "F2", rung="qemu")
@pytest.mark.long
def test_killed_in_a_microvm(daemon: Daemon) -> None:
    """It is the kernel's init, which no signal from inside ends; what it does not survive ends the kernel."""
    require(daemon, "qemu")
    with Machine.create(driver="qemu", memory_mib=256, storage_gib=1) as m:
        assert m.exec("kill -9 1; kill -STOP 1; sleep 1; echo on", timeout=30).stdout == "on\n"
        with pytest.raises(RoostError) as caught:
            m.exec("sync; echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger; sleep 60")
        assert caught.value.code in ("AGENT_LOST", "MACHINE_FAILED")
        deadline = time.monotonic() + 60
        while m.refresh().phase != "failed":
            assert time.monotonic() < deadline
            time.sleep(0.1)
    state.whole(daemon)
