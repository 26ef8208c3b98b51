"""50-53, F6: what a copy shares with the one it came from, and what time does to it."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from roost import Machine, RoostError
from roost.agent.client import AgentClient
from roost.engine.identity import HostIdentity
from tests.system.conftest import Daemon
from tests.system.faults import state

from .record import case, escapes, untested
from .rung import Rung, home, until

ELSEWHERE = "tests/system/test_instant.py does it there, with memory"


@case(50)
@pytest.mark.timeout(900)
@untested("gvisor", "qemu", reason=ELSEWHERE)
def test_copies_draw_apart(rung: Rung) -> None:
    parent = rung.machine
    children = parent.fork(count=50)
    try:
        drawn = [
            m.exec("od -An -tx8 -N16 /dev/urandom; cat /proc/sys/kernel/random/uuid").stdout.split()
            for m in (parent, *children)
        ]
        assert len({word for each in drawn for word in each}) == sum(map(len, drawn))
    finally:
        for child in children:
            child.destroy()


@case(51)
@escapes("workspace", reason="host name and machine-id are the host's")
def test_a_copy_has_names_of_its_own(rung: Rung) -> None:
    tell = "cat /etc/machine-id; cat /etc/hostname; cat /etc/ssh/ssh_host_*_key.pub 2>/dev/null"
    theirs = rung.machine.exec(tell).stdout.split("\n")
    child = rung.machine.fork()
    assert isinstance(child, Machine)
    with child:
        mine = child.exec(tell).stdout.split("\n")
        assert len(mine[0]) == 32 and not set(mine) & set(theirs) - {""}, (mine, theirs)


@case(51)
def test_a_copy_answers_to_its_own_token_alone(rung: Rung, led: Daemon) -> None:
    """Neither to its parent's nor the parent to its."""
    parent = rung.machine
    child = parent.fork()
    assert isinstance(child, Machine)
    with child:
        for of, by in ((child, child), (child, parent), (parent, parent), (parent, child)):
            assert asyncio.run(_answers(led, of.id, by.id)) is (of is by), (of, by)


async def _answers(led: Daemon, of: str, by: str) -> bool:
    """Whether the agent of the one says hello to the other's token."""
    started = "select handle, generation from machines where id = ?"
    target = json.loads(state.rows(led, started, of)[0]["handle"])["agent_target"]
    generation = state.rows(led, started, by)[0]["generation"]
    client = AgentClient(target, HostIdentity.load(led.data_dir).agent_token(by, generation))
    try:
        for _ in range(
            20
        ):  # a microVM's has one caller at a time, which its daemon would be as well
            try:
                await client.acquaint(10)
                return True
            except RoostError as failure:
                if failure.details.get("grpc") == "UNAUTHENTICATED":
                    return False
                await asyncio.sleep(0.2)
        raise TimeoutError("it answers nobody")
    finally:
        await client.close()


@case(52)
def test_the_clock_is_right_at_the_first_command(rung: Rung) -> None:
    with rung.another() as m:
        for tier in ("frozen", None) if rung.name != "workspace" else (None,):
            before = float(m.exec("cut -d' ' -f1 /proc/uptime").stdout)
            m.sleep(tier=tier) if tier else m.sleep()
            time.sleep(3)
            m.wake()  # first, so that what it takes hides no clock that is behind
            begun = time.time()
            said = m.exec("date +%s.%N; cut -d' ' -f1 /proc/uptime", timeout=60).stdout.split()
            ended = time.time()
            assert begun - 1 <= float(said[0]) <= ended + 1, (begun, said, ended)
            if rung.keeps_memory or tier == "frozen":
                assert float(said[1]) >= before, "its own time went backwards"


HOLD = """
import json, socket, sys, time
def tell(what):
    with open("/dev/shm/held.new", "w") as file: json.dump(what, file)
    import os; os.rename("/dev/shm/held.new", "/dev/shm/held")
s = socket.create_connection((sys.argv[1], 80), 10)
n = 0
try:
    while True:
        s.settimeout(10)
        s.sendall(b"GET /x HTTP/1.1\\r\\nHost: allowed.test\\r\\nContent-Length: 0\\r\\n\\r\\n")
        said = s.recv(65536)
        if not said: raise ConnectionResetError("it was closed")
        n += 1
        tell({"n": n, "at": time.time()})
        time.sleep(0.1)
except Exception as exc:
    tell({"n": n, "ended": f"{type(exc).__name__}: {exc}"})
"""


@case(53)
@pytest.mark.own_network
@untested("workspace", reason="no process outlives its sleep")
@untested("user", "runc", reason="no process outlives its sleep but frozen")
def test_a_connection_of_before_ends_or_goes_on(rung: Rung) -> None:
    """It never hangs: within seconds of the wake the program has an answer or an error."""
    with rung.another() as m:
        m.set_egress("allowlist", allow=["allowed.test"])
        m.files.write(f"{home(m)}/hold.py", HOLD)
        m.exec("nohup python3 ~/hold.py allowed.test >/dev/null 2>&1 &")

        def held() -> dict[str, object]:
            said = m.exec("cat /dev/shm/held 2>/dev/null || echo '{}'").stdout
            found: dict[str, object] = json.loads(said)
            return found

        until(lambda: held().get("n", 0))
        m.sleep(tier="hibernated")
        time.sleep(2)
        m.wake()
        since = time.time()
        until(lambda: "ended" in held() or float(str(held().get("at", 0))) > since, 40)


@case("F6")
def test_children_outlive_their_parent(rung: Rung) -> None:
    parent = rung.another()
    parent.files.write(f"{home(parent)}/kept", b"kept", sync=True)
    child = parent.fork()
    assert isinstance(child, Machine)
    with child:
        parent.destroy()
        assert child.exec("cat ~/kept").stdout == "kept"
        grandchild = child.fork()
        assert isinstance(grandchild, Machine)
        with grandchild:
            child.sleep()
            assert grandchild.exec("cat ~/kept").stdout == "kept"
        assert child.exec("cat ~/kept", timeout=60).stdout == "kept"
