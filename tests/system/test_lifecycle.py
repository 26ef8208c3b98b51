"""Machines live through the daemon's own death, are made once per key, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from roost import Client, Machine, NotFoundError, RoostError
from tests.attack.record import case

from .conftest import Daemon, leftovers

pytestmark = pytest.mark.system


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_machines_outlive_the_daemon(daemon: Daemon, driver: str, sig: int) -> None:
    with Machine.create(driver=driver) as m:
        m.files.write("/workspace/kept", "kept")
        m.exec(
            '(python3 -c \'import time\nwhile 1: open("/tmp/n","a").write("x"); time.sleep(.05)\' >/dev/null 2>&1 &)'
        )
        deadline = time.monotonic() + 60
        while m.exec("test -s /tmp/n").exit_code != 0:
            assert time.monotonic() < deadline, "it does not write"
            time.sleep(0.1)
        background = m.start("echo before; sleep 4; echo after")
        before = len(m.files.read("/tmp/n"))
        daemon.restart(sig)
        m.refresh()
        assert m.phase == "running"
        deadline = time.monotonic() + 60
        while len(m.files.read("/tmp/n")) <= before:
            assert time.monotonic() < deadline, "its processes must have gone on"
            time.sleep(0.1)
        assert m.files.read("/workspace/kept") == b"kept"
        result = background.wait()
        assert (result.stdout, result.exit_code) == ("before\nafter\n", 0)


def test_sleep_keeps_the_disk_and_a_call_wakes(daemon: Daemon, driver: str) -> None:
    with Machine.create(driver=driver) as m:
        m.exec("echo persistent > /root/note; nohup sleep 5000 >/dev/null 2>&1 &")
        m.sleep(tier="stopped")
        assert m.phase == "sleeping"
        assert m.exec("cat /root/note; pgrep -x sleep || echo gone").stdout == "persistent\ngone\n"
        assert m.refresh().phase == "running"


def test_each_machine_has_an_identity_of_its_own_and_keeps_it(daemon: Daemon, driver: str) -> None:
    def identity(m: Machine) -> list[str]:
        return m.exec("cat /etc/machine-id; hostname; stat -c %a /etc/machine-id").stdout.split()

    with Machine.create(driver=driver) as one, Machine.create(driver=driver) as other:
        first, second = identity(one), identity(other)
        assert len(first[0]) == 32 and int(first[0], 16) and first[2] == "444"
        assert first[0] != second[0] and first[1] != second[1]
        one.sleep()
        assert identity(one) == first


def test_a_killed_machine_fails_with_a_reason_and_comes_back(daemon: Daemon, driver: str) -> None:
    with Machine.create(driver=driver) as m:
        m.files.write("/workspace/f", "on disk", sync=True)
        for pid in machine_pids(daemon, m.id):
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while m.refresh().phase != "failed":
            assert time.monotonic() < deadline, m.phase
            time.sleep(0.05)
        m.wake()
        assert m.files.read("/workspace/f") == b"on disk"


def machine_pids(daemon: Daemon, machine_id: str) -> list[int]:
    """The machine's main process: what the daemon would adopt."""
    import sqlite3

    with sqlite3.connect(daemon.data_dir / "roost.db") as db:
        (handle,) = db.execute("select handle from machines where id = ?", (machine_id,)).fetchone()
    import json

    return [int(json.loads(handle)["pid"])]


def test_one_machine_per_key_however_many_ask(daemon: Daemon) -> None:
    barrier = threading.Barrier(12)

    def ask(_: int) -> str:
        barrier.wait()
        return Machine.ensure("crowd", driver="runc").id

    with ThreadPoolExecutor(12) as pool:
        ids = set(pool.map(ask, range(12)))
    assert len(ids) == 1
    m = Machine.get(key="crowd")
    m.destroy()
    again = Machine.ensure("crowd", driver="runc")
    assert again.id not in ids
    again.destroy()


@case("F8")
def test_delete_while_it_is_being_made(daemon: Daemon, driver: str) -> None:
    with daemon.http() as http:
        for pause in (0.0, 0.03, 0.08, 0.15):
            made = http.post("/v1/machines?wait=false", json={"driver": driver})
            assert made.status_code == 202
            machine_id = made.json()["machine_id"]
            time.sleep(pause)
            gone = http.delete(f"/v1/machines/{machine_id}")
            assert gone.status_code == 200
            assert gone.json()["phase"] == "destroyed"
            assert not (daemon.data_dir / "pool" / "disks" / f"{machine_id}.ext4").exists()


def test_ttl_destroys(daemon: Daemon) -> None:
    m = Machine.create(driver="runc", ttl="2s")
    deadline = time.monotonic() + 60
    with pytest.raises(NotFoundError):
        while time.monotonic() < deadline:
            if m.refresh().phase == "destroyed":
                raise NotFoundError("destroyed")
            time.sleep(0.2)


@case("F1")
def test_daemon_killed_in_the_middle_of_creates(daemon: Daemon, driver: str) -> None:
    """Whatever step it was at: afterwards each machine runs or is gone, and nothing of the gone ones is left."""

    def create(i: int) -> None:
        with daemon.http(timeout=20) as http:
            try:
                http.post("/v1/machines", json={"driver": driver, "labels": {"round": str(i)}})
            except httpx.HTTPError:
                pass

    for delay in (0.05, 0.15, 0.3):
        threads = [threading.Thread(target=create, args=(i,)) for i in range(3)]
        for t in threads:
            t.start()
        time.sleep(delay)
        daemon.restart(signal.SIGKILL)
        for t in threads:
            t.join()
        with daemon.http() as http:
            for item in http.get("/v1/machines").json()["items"]:
                assert item["phase"] in (
                    "running",
                    "failed",
                    "accepted",
                    "starting",
                    "destroying",
                ), item
    daemon.delete_machines()
    deadline = time.monotonic() + 60
    while left := leftovers(daemon):
        assert time.monotonic() < deadline, left
        time.sleep(0.3)


@case(44)
def test_bad_input_is_typed_and_loses_nothing(daemon: Daemon) -> None:
    cases: list[tuple[dict[str, object], str]] = [
        ({"template": "no-such"}, "TEMPLATE_NOT_FOUND"),
        ({"driver": "no-such"}, "RUNG_UNAVAILABLE"),
        ({"memory_mib": 1 << 30}, "VALIDATION_FAILED"),
        ({"vcpu": 0}, "VALIDATION_FAILED"),
        ({"storage_gib": -1}, "VALIDATION_FAILED"),
        ({"name": "../x"}, "VALIDATION_FAILED"),
        ({"key": "-rf"}, "VALIDATION_FAILED"),
        ({"key": "k" * 65536}, "VALIDATION_FAILED"),
        ({"env": {"A=B": "c"}}, "VALIDATION_FAILED"),
        ({"surprise": 1}, "VALIDATION_FAILED"),
        ({"ttl": "soon"}, "VALIDATION_FAILED"),
    ]
    with daemon.http() as http:
        count = len(http.get("/v1/machines").json()["items"])
        for body, code in cases:
            answer = http.post("/v1/machines", json=body)
            assert (answer.json()["error_code"], 400 <= answer.status_code < 500) == (code, True), (
                body,
                answer.text,
            )
            assert answer.json()["message"]
        answer = http.post(
            "/v1/machines", content=b"{no json", headers={"content-type": "application/json"}
        )
        assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_BODY")
        assert len(http.get("/v1/machines").json()["items"]) == count


def test_disk_full_inside_is_typed(daemon: Daemon) -> None:
    with Machine.create(driver="runc", storage_gib=1) as m:
        m.files.write("/workspace/small", "whole")
        with pytest.raises(RoostError) as caught:
            m.files.write("/workspace/big", iter([b"x" * (1 << 20)] * 1500))
        assert caught.value.code == "MACHINE_DISK_FULL"
        assert m.files.read("/workspace/small") == b"whole"
        assert not m.files.exists("/workspace/big")


def test_second_daemon_and_taken_port(daemon: Daemon) -> None:
    import subprocess
    import sys

    second = subprocess.run(
        [sys.executable, "-m", "roost.daemon"],
        env={**daemon.env, "ROOST_PORT": "17999"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert second.returncode != 0
    assert "DATA_DIR_IN_USE" in second.stderr
    assert str(daemon.pid) in second.stderr
    other = Path("/var/lib/roost-test-other")
    taken = subprocess.run(
        [sys.executable, "-m", "roost.daemon"],
        env={**daemon.env, "ROOST_DATA_DIR": str(other), "ROOST_RUN_DIR": "/run/roost-test-other"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert taken.returncode != 0
    assert "PORT_IN_USE" in taken.stderr
    assert not (other / "roost.db").exists(), "nothing may be made before the port is ours"


def test_revoked_key_is_refused_at_once(daemon: Daemon) -> None:
    made = Client().request("POST", "/v1/keys", json={"name": "short-lived"}).json()
    other = Client(api_key=made["key"])
    assert other.request("GET", "/v1/machines").status_code == 200
    foreign = Client(api_key="e2b_" + made["key"].split("_", 1)[1])
    assert foreign.request("GET", "/v2/sandboxes").status_code == 200, (
        "the same secret, another prefix: another API"
    )
    Client().request("DELETE", f"/v1/keys/{made['key_id']}")
    with pytest.raises(RoostError) as caught:
        other.request("GET", "/v1/machines")
    assert caught.value.code == "AUTH_INVALID"
