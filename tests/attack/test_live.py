"""41: policy at every instant of a machine's life. A program inside tries all the time; what it may not reach hears
nothing while the machine starts, forks, sleeps and wakes, nor from the moment the policy says so.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from roost import Machine
from tests.system.conftest import Daemon
from tests.system.internet import Internet

from .conftest import MEMORY_MIB
from .record import case, untested
from .rung import Rung, home, until

pytestmark = [case(41), pytest.mark.own_network]

RELENTLESS = Path(__file__).with_name("relentless.py")
WATCH_S = 0.7
CUT_S = (
    6.0  # as seen by a thread of a loaded test; tests/system/host/test_rules.py holds the 100 ms
)


def unleash(m: Machine, to: str) -> None:
    """Starts it, and waits until it runs."""
    m.files.write(f"{home(m)}/relentless.py", RELENTLESS.read_bytes())
    m.exec("rm -f /dev/shm/rounds; nohup python3 ~/relentless.py " + to + " >/dev/null 2>&1 &")
    until(lambda: rounds(m) > 3)


def rounds(m: Machine) -> int:
    return int(m.exec("cat /dev/shm/rounds 2>/dev/null || echo 0").stdout or 0)


def tries_on(m: Machine) -> None:
    at = rounds(m)
    until(lambda: rounds(m) > at + 3)


def ports(internet: Internet, to: str, since: float) -> set[tuple[str, int]]:
    return {(each.said, each.port) for each in internet.seen("packet", to=to, since=since)}


EVERY = {("udp", 9999), ("udp", 6666), ("tcp", 4444), ("tcp", 5555)}


@pytest.fixture
def relentless(rung: Rung) -> Iterator[str]:
    """The attacker that it tries to reach."""
    to = rung.internet.attacker()
    rung.leash("open")
    unleash(rung.machine, to)
    yield to
    rung.machine.exec("pkill -f [r]elentless.py")


@pytest.mark.parametrize(
    "leashed",
    [("off",), ("allowlist", "allowed.test"), ("allowlist", "198.51.100.10")],
    ids=["off", "names", "networks"],
)
def test_tightening_cuts_what_lives(rung: Rung, relentless: str, leashed: tuple[str, ...]) -> None:
    internet = rung.internet
    since = internet.now()
    until(lambda: ports(internet, relentless, since) >= EVERY, 20)
    asked = internet.now()
    rung.leash(*leashed)
    answered = internet.now()
    tries_on(rung.machine)
    time.sleep(WATCH_S)
    late = {
        f"{each.said} {each.port} {each.more['head'].hex()}": f"{each.at - answered:.3f} s"
        for each in internet.seen("packet", to=relentless, since=answered)
    }
    assert not late, f"after the answer, which took {answered - asked:.3f} s"
    since = internet.now()
    rung.leash("open")
    until(lambda: ports(internet, relentless, since) >= EVERY, 20)


def test_one_port_is_cut_and_another_goes_on(rung: Rung, relentless: str) -> None:
    internet = rung.internet
    rung.leash("allowlist", f"{relentless}:6666/udp", f"{relentless}:5555/tcp")
    since = internet.now()
    until(lambda: ports(internet, relentless, since) == {("udp", 6666), ("tcp", 5555)}, 20)
    opened = {each.more["head"][:2] for each in internet.seen("packet", to=relentless, port=5555)}
    rung.leash("allowlist", f"{relentless}:5555/tcp")
    since = internet.now()
    time.sleep(WATCH_S)
    until(lambda: ("tcp", 5555) in ports(internet, relentless, since), 20)
    assert ports(internet, relentless, since) == {("tcp", 5555)}
    now = {
        each.more["head"][:2]
        for each in internet.seen("packet", to=relentless, port=5555, since=since)
    }
    assert len(now) == 1 and now <= opened, "the connection that stays allowed is the one it was"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_name_that_is_taken_away_is_cut(rung: Rung, scheme: str) -> None:
    internet = rung.internet
    rung.leash("allowlist", "allowed.test", "other.test")
    since = internet.now()
    port = {"http": 80, "https": 443}[scheme]
    with _streaming(rung, scheme):
        until(lambda: len(internet.seen("http", port=port, since=since)) == 2, 20)
        time.sleep(0.3)
        rung.leash("allowlist", "other.test")
        answered = internet.now()
        until(lambda: internet.seen("gone", port=port, said="allowed.test", since=since), 20)
        cut = internet.seen("gone", port=port, said="allowed.test", since=since)[0].at
        assert cut - answered < CUT_S
        time.sleep(0.3)
        assert not internet.seen("gone", port=port, said="other.test", since=since), (
            "what stays allowed goes on"
        )


@contextmanager
def _streaming(rung: Rung, scheme: str) -> Iterator[None]:
    for name in ("allowed.test", "other.test"):
        rung.machine.exec(
            f"nohup curl -sN --cacert ~/internet-ca.pem '{scheme}://{name}/slow?seconds=30'"
            " >/dev/null 2>&1 &"
        )
    yield
    rung.machine.exec("pkill curl")


@pytest.mark.parametrize("mode", ["off", "allowlist"])
def test_nothing_before_the_first_policy(rung: Rung, led: Daemon, mode: str) -> None:
    """A machine made with a policy, a fork of it, its sleep and its waking."""
    internet, to = rung.internet, rung.internet.attacker()
    policy = {"mode": mode, "allow": ["allowed.test"] if mode == "allowlist" else []}
    since = internet.now()
    with Machine.create(driver=rung.name, memory_mib=MEMORY_MIB, egress=policy) as m:
        unleash(m, to)
        child = m.fork()
        assert isinstance(child, Machine)
        with child:
            if not rung.keeps_memory:
                unleash(child, to)
            tries_on(child)
        for tier in ("frozen", "hibernated") if rung.keeps_memory else ("frozen", "stopped"):
            m.sleep(tier=tier)
            time.sleep(0.2)
            m.wake()
            if tier == "stopped":
                unleash(m, to)
            tries_on(m)
        time.sleep(WATCH_S)
    assert rung.reached(to) == []
    assert "canary.tunnel.test" not in rung.asked(since)


def test_a_policy_given_asleep_holds_at_waking(rung: Rung, relentless: str) -> None:
    internet = rung.internet
    for tier in ("frozen", "hibernated") if rung.keeps_memory else ("frozen",):
        rung.leash("open")
        since = internet.now()
        until(lambda since=since: ports(internet, relentless, since), 20)  # type: ignore[misc]
        rung.machine.sleep(tier=tier)
        time.sleep(0.3)
        since = internet.now()
        rung.leash("off")
        rung.machine.wake()
        tries_on(rung.machine)
        time.sleep(WATCH_S)
        assert ports(internet, relentless, since) == set(), tier


def test_a_snapshot_taken_in_the_open_starts_on_a_leash(rung: Rung, relentless: str) -> None:
    """Its processes are in the middle of speaking to somebody whom they may not reach any more."""
    internet = rung.internet
    snapshot = rung.machine.snapshot()
    try:
        rung.leash("off")
        time.sleep(0.2)
        since = internet.now()
        with Machine.create(snapshot=snapshot, egress="off") as m:
            if not rung.keeps_memory:
                unleash(m, relentless)
            tries_on(m)
            time.sleep(WATCH_S)
        assert ports(internet, relentless, since) == set()
    finally:
        snapshot.delete()


def test_a_daemon_that_starts_again_keeps_it(rung: Rung, led: Daemon, relentless: str) -> None:
    internet = rung.internet
    rung.leash("off")
    since = internet.now()
    led.restart(9)
    tries_on(rung.machine)
    time.sleep(WATCH_S)
    assert ports(internet, relentless, since) == set()
    rung.leash("open")
    since = internet.now()
    until(lambda: ports(internet, relentless, since) >= EVERY, 20)


@case("F2")
@untested("workspace", reason="no proxy is between it and the network")
def test_a_dead_proxy_fails_closed(rung: Rung, led: Daemon) -> None:
    """While nobody proves names nothing goes by one; then somebody does again."""
    internet = rung.internet
    rung.leash("allowlist", "allowed.test")
    get = {"do": "url", "url": "http://allowed.test/x", "wait": 20.0}
    assert rung.attempt(get)[0].ok
    with _streaming(rung, "https"):
        since = internet.now()
        os.kill(json.loads((led.run_dir / "egress.json").read_text())["pid"], signal.SIGKILL)
        other = {"do": "url", "url": "http://other.test/x", "wait": 2.0}
        until(lambda: rung.attempt(other, other, other, get)[-1].ok)
        assert internet.seen(said="other.test", since=since) == []
        assert {each.said for each in internet.seen("dns", since=since)} <= {"allowed.test"}
