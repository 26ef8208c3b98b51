"""Machines of one user (rung 1), through the daemon: what they promise, and all that machines elsewhere do, too."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from roost import ExecTimeout, ForbiddenError, Machine, RoostError, Secret, Snapshot, Volume
from roost.secrets.process import INSTALLED
from tests.system.internet import RESOLVER, Internet

from .conftest import Daemon
from .test_secrets import last

pytestmark = pytest.mark.system
SMALL = {"driver": "user", "memory_mib": 256, "autosleep": "never"}


@pytest.fixture(scope="module")
def kept(daemon: Daemon) -> Iterator[Machine]:
    with Machine.create(**SMALL) as made:  # type: ignore[arg-type]
        yield made


def test_it_says_what_it_is_and_no_more(kept: Machine) -> None:
    said = kept.isolation
    assert (said["level"], said["name"], said["driver"]) == (1, "user", "user")
    assert said["claim"].startswith("isolated workspace")
    assert "sandbox" not in str(said).lower()


def test_what_runs_in_it_is_its_user_at_home(kept: Machine) -> None:
    assert kept.exec("id -un; pwd; echo $HOME").stdout.split() == [
        "user",
        "/home/user",
        "/home/user",
    ]
    with kept.terminal() as terminal:
        terminal.send("echo I am $(id -u)\n")
        terminal.read_until("I am 1000")
    for command in ("sudo -n true", "apt-get install -y tree", "mount -t tmpfs x /tmp", "su -c id"):
        assert not kept.exec(command).ok, command
    with pytest.raises(RoostError) as caught:
        kept.exec("id", user="root")
    assert "its own user only" in caught.value.message
    assert (
        kept.exec("python3 -m venv v && v/bin/python -c 'print(6*7)'", timeout=120).stdout == "42\n"
    )
    assert kept.exec("roost status").ok


def test_its_files_are_its_own_and_the_systems_are_read(kept: Machine) -> None:
    for path in ("/home/user/f", "/workspace/f", "/tmp/f"):
        kept.files.write(path, "mine")
        assert kept.files.read(path) == b"mine"
    assert b"Debian" in kept.files.read("/etc/os-release")
    for path in ("/etc/f", "/root/f", "/usr/bin/env", "/.roost/agent"):
        with pytest.raises(ForbiddenError):
            kept.files.write(path, "mine")
    with pytest.raises(RoostError):
        kept.files.read("/etc/shadow")


def test_it_sees_nobody_elses_processes_or_files(kept: Machine) -> None:
    with Machine.create(**SMALL) as other:  # type: ignore[arg-type]
        other.exec("nohup sleep 4711 >/dev/null 2>&1 & echo secret >/tmp/note")
        assert "4711" not in kept.exec("cat /proc/*/cmdline 2>/dev/null | tr '\\0' ' '").stdout
        assert not kept.exec("cat /tmp/note").ok
        assert (
            kept.exec("cat /proc/self/uid_map").stdout
            != other.exec("cat /proc/self/uid_map").stdout
        )


def test_a_port_is_shown_also_one_of_roots(daemon: Daemon, kept: Machine) -> None:
    kept.exec("mkdir -p /workspace/www")
    for port in (80, 8000):
        kept.exec(
            f"cd /workspace/www && (python3 -m http.server {port} >/dev/null 2>&1 &) && for i in $(seq 100); do "
            f"python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {port}))' 2>/dev/null && exit 0; "
            "sleep 0.1; done; exit 1",
            check=True,
            timeout=60,
        )
        with kept.http(port) as http:
            assert http.get("/").status_code == 200
    assert urlsplit(kept.url(80)).netloc


def test_its_egress_is_its_policys(kept: Machine) -> None:
    kept.set_egress("off")
    try:
        probe = "python3 -c 'import socket; socket.create_connection((\"192.0.2.7\", 443), 3)'"
        assert not kept.exec(probe, timeout=20).ok
        assert not kept.exec("getent hosts roost.test", timeout=20).ok
    finally:
        kept.set_egress("open")


def test_it_lives_through_sleep_the_daemons_death_and_in_its_forks(daemon: Daemon) -> None:
    with Machine.create(**SMALL) as m:  # type: ignore[arg-type]
        m.exec("echo one > note; sync; (sleep 4711 >/dev/null 2>&1 &)", check=True)
        daemon.restart(signal.SIGKILL)
        assert m.exec("cat note; pgrep -fx 'sleep 4711' | wc -l").stdout == "one\n1\n"
        m.sleep(tier="frozen")
        assert m.exec("cat note").stdout == "one\n"
        m.sleep(tier="stopped")
        assert m.exec("cat note; pgrep -x sleep || echo gone").stdout == "one\ngone\n"
        child = m.fork(name="child")
        assert isinstance(child, Machine)
        with child:
            child.exec("echo two >> note")
            assert child.exec("cat note; hostname").stdout == "one\ntwo\nchild\n"
            assert child.exec("cat /etc/machine-id").stdout != m.exec("cat /etc/machine-id").stdout
        made = m.snapshot("of-a-user")
        try:
            m.exec("echo lost > note")
            m.rollback(made)
            assert m.exec("cat note").stdout == "one\n"
            with Machine.create(snapshot="of-a-user", autosleep="never") as again:
                assert again.isolation["driver"] == "user"
                assert again.exec("cat note; id -u").stdout == "one\n1000\n"
        finally:
            Snapshot.get("of-a-user").delete()


@pytest.fixture
def volume(daemon: Daemon) -> Iterator[Volume]:
    made = Volume.create("of-a-user", size_gib=1)
    yield made
    for machine in Machine.list():
        if any(each["volume_id"] == made.id for each in machine.volumes):
            machine.destroy()
    made.delete()


def test_a_volume_is_written_here_and_read_there(volume: Volume) -> None:
    with Machine.create(**SMALL, volumes=["of-a-user:/home/user/data"]) as m:  # type: ignore[arg-type]
        m.exec("echo mine > data/note && mkdir data/d", check=True)
    runc = {**SMALL, "driver": "runc"}
    with Machine.create(**runc, volumes=["of-a-user:/data"]) as m:  # type: ignore[arg-type]
        assert m.exec("cat /data/note; stat -c %u /data/note").stdout == "mine\n1000\n"
        m.exec("echo theirs > /data/theirs; chmod 600 /data/theirs", check=True)
    with Machine.create(**SMALL, volumes=["of-a-user:/srv:ro"]) as m:  # type: ignore[arg-type]
        assert m.exec("cat /srv/note").stdout == "mine\n"
        assert not m.exec("cat /srv/theirs").ok
        assert not m.exec("echo x > /srv/x").ok


def test_what_it_takes_is_limited(kept: Machine) -> None:
    bomb = "python3 -c 'x = bytearray(600 << 20)'"
    assert not kept.exec(bomb, timeout=60).ok
    full = kept.exec("dd if=/dev/zero of=/tmp/big bs=1M count=2000", timeout=60)
    assert not full.ok
    kept.exec("rm -f /tmp/big")
    begun = time.monotonic()
    tree = "setsid sleep 300 & (setsid sh -c 'trap \"\" TERM; sleep 300' &) ; sleep 300"
    with pytest.raises(ExecTimeout):
        kept.exec(tree, timeout=1)
    assert time.monotonic() - begun < 40
    assert kept.exec("pgrep -x sleep || echo none").stdout == "none\n"


@pytest.mark.skipif(not INSTALLED.exists(), reason="scripts/test installs mitmproxy")
def test_a_secret_is_added_on_its_way_out(daemon: Daemon, internet: Internet) -> None:
    before = dict(daemon.env)
    daemon.env |= {"ROOST_DNS": RESOLVER, "ROOST_EGRESS_CA": str(internet.ca)}
    daemon.restart()
    try:
        secret = Secret("TOKEN", "canary-of-rung-one", ["allowed.test"], header="Authorization")
        with Machine.create(**SMALL, secrets=[secret]) as m:  # type: ignore[arg-type]
            m.exec("curl -sS https://allowed.test/user1 -o /dev/null").check()
            assert last(internet, "/user1")["authorization"] == "canary-of-rung-one"
    finally:
        daemon.env.clear()
        daemon.env.update(before)
        daemon.restart()
