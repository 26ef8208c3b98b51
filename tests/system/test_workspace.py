"""Rung 0: machines that are directories of the host, of a daemon of root's and of one that an ordinary user starts."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import site
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import roost
from roost import Client, Machine, RoostError
from roost.host import processes

from .conftest import Daemon

pytestmark = pytest.mark.system
NOBODY = pwd.getpwnam("nobody")
TIMEOUT = 60


def run(m: Machine, command: str) -> str:
    done = m.exec(command, timeout=TIMEOUT)
    assert done.ok, (command, done)
    return done.stdout.strip()


def home(m: Machine) -> Path:
    return Path(run(m, "echo $HOME"))


def refusal(work: Any, code: str = "UNSUPPORTED") -> RoostError:
    with pytest.raises(RoostError) as found:
        work()
    assert found.value.code == code, found.value
    return found.value


@pytest.fixture
def machine(daemon: Daemon) -> Iterator[Machine]:
    with Machine.create(isolation="workspace", autosleep="never", storage_gib=1) as m:
        yield m


def test_what_it_is_and_claims(machine: Machine, daemon: Daemon) -> None:
    assert (machine.isolation["level"], machine.isolation["name"]) == (0, "workspace")
    assert machine.isolation["claim"].startswith("isolated workspace")
    assert "sandbox" not in json.dumps(machine.isolation)
    with daemon.http() as http:
        host = http.get("/v1/host").json()
    assert host["default_driver"] != "workspace", "never by itself where there is better"
    rung = next(r for r in host["rungs"] if r["driver"] == "workspace")
    assert rung["available"] and rung["details"]["user"] == "nobody"


def test_it_is_never_root_and_the_daemons_things_are_closed_to_it(
    machine: Machine, daemon: Daemon
) -> None:
    assert run(machine, "id -u; grep -c 'CapEff.*0000000000000000' /proc/self/status") == (
        f"{NOBODY.pw_uid}\n1"
    )
    for path in (
        daemon.data_dir,
        daemon.data_dir / "key",
        daemon.data_dir / "pool/disks",
        daemon.run_dir,
    ):
        assert not machine.exec(f"ls {path}/ 2>/dev/null || cat {path} 2>/dev/null").ok, path
    assert not machine.exec("touch /etc/of-mine /usr/of-mine").ok
    assert "ROOST_" not in run(machine, "env | grep -v ROOST_WORKSPACE; true")


def test_files_programs_and_terminals_begin_in_its_directory(machine: Machine) -> None:
    place = home(machine)
    assert run(machine, "pwd") == str(place)
    machine.files.write("notes/today", "hello")
    assert machine.files.read_text("notes/today") == "hello"
    assert machine.files.read_text(str(place / "notes/today")) == "hello"
    assert run(machine, "cat notes/today") == "hello"
    run(machine, "ln -s /etc/passwd out; ln -s .. up; mkfifo fifo")
    for path in ("/etc/passwd", "../../roost.db", "out", "up/other", f"{place}/../x"):
        failure = refusal(lambda p=path: machine.files.read(p), "INVALID_PATH")
        assert "directory" in failure.message
    refusal(lambda: machine.files.read("fifo"), "FILE_KIND_REFUSED")
    assert sorted(each.name for each in machine.files.list(".")) == ["fifo", "notes", "out", "up"]
    with machine.terminal() as terminal:
        terminal.send("pwd\n")
        terminal.read_until(str(place))


def test_it_sleeps_forks_and_goes_back(machine: Machine) -> None:
    run(machine, "echo one > file; mkdir d; ln file d/same; sleep 993 &")
    machine.sleep()
    assert (machine.phase, machine.tier) == ("sleeping", "stopped")
    assert not marked(machine)
    assert (
        run(machine, "cat file d/same; pgrep -f 'sleep 99[3]' || echo ended") == "one\none\nended"
    )
    kept = machine.snapshot()
    run(machine, "echo two > file")
    with machine.fork() as child:
        assert run(child, "cat file") == "two" and home(child) != home(machine)
        run(child, "echo three > file; echo new > added")
        found = machine.diff(child)
        assert [(str(d.path), d.change) for d in found.items] == [
            ("/added", "added"),
            ("/d/same", "changed"),  # the same file
            ("/file", "changed"),
        ]
        machine.rollback(kept)
        assert run(machine, "cat file d/same") == "one\none"
        with Machine.create(snapshot=kept.id) as third:
            assert run(third, "cat file") == "one"
            assert third.isolation["level"] == 0
    kept.delete()


def marked(m: Machine) -> list[int]:
    """Processes that were started in its directory."""
    return [pid for pid in processes.everyone() if f"/homes/{m.id}".encode() in _environ(pid)]


def _environ(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""


def test_nothing_is_left_of_it(daemon: Daemon) -> None:
    with Machine.create(isolation="workspace", autosleep="never") as m:
        place = home(m)
        run(
            m,
            "setsid -f sleep 994; (setsid sh -c 'trap : TERM HUP; sleep 995; sleep 996' &); mkdir -p a/b; touch a/b/c; chmod 000 a",
        )
        assert marked(m)
    assert not marked(m) and not place.exists()
    assert not list((daemon.run_dir / "machines/workspace").glob("*"))


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_it_outlives_the_daemon(machine: Machine, daemon: Daemon, sig: signal.Signals) -> None:
    pid = run(machine, "sleep 997 >/dev/null 2>&1 & echo $!")
    daemon.restart(sig)
    assert run(machine, f"cat /proc/{pid}/comm") == "sleep"
    machine.refresh()
    assert machine.phase == "running"


def test_an_agent_that_is_killed_is_told(machine: Machine) -> None:
    """By its own programs, too: nothing keeps them from it."""
    with contextlib.suppress(RoostError):  # AGENT_LOST
        machine.exec("kill -9 $(ps -o ppid= -p $(ps -o ppid= -p $PPID))", timeout=10)
    agent = [p for p in processes.everyone() if f"/homes/{machine.id}".encode() in _line(p)]
    for pid in agent:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while machine.phase == "running" and time.monotonic() < deadline:
        time.sleep(0.1)
        machine.refresh()
    assert machine.phase == "failed"
    deadline = time.monotonic() + 20
    while marked(machine):  # what is left of it is ended after it is told
        assert time.monotonic() < deadline, marked(machine)
        time.sleep(0.1)
    machine.wake()
    assert run(machine, "echo again") == "again"


def _line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def test_a_timeout_ends_all_it_started(machine: Machine) -> None:
    with pytest.raises(RoostError) as ended:
        machine.exec("(setsid sleep 998 &); trap '' TERM; sleep 999", timeout=1)
    assert ended.value.code == "TIMEOUT"
    deadline = time.monotonic() + 10
    while (left := run(machine, "pgrep -f 'sleep 99[89]' || true")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def test_what_has_no_meaning_says_so(machine: Machine, tmp_path: Path) -> None:
    kept = machine.snapshot()
    for work in (
        lambda: Machine.create(isolation="workspace", template="python"),
        lambda: Machine.create(isolation="workspace", egress="off"),
        lambda: machine.ports.create(8000),
        lambda: machine.update(memory_mib=2048),
        lambda: machine.sleep(tier="frozen"),
        lambda: machine.sleep(tier="hibernated"),
        lambda: machine.set_egress("off"),
        lambda: machine.ports.listening(),
        lambda: kept.export(tmp_path / "exported"),
    ):
        failure = refusal(work)
        assert len(failure.message) > 30, failure


def test_limits_hold_for_each_process(machine: Machine) -> None:
    big = machine.exec("head -c 2G /dev/zero > big; stat -c %s big; rm big", timeout=TIMEOUT)
    assert big.stdout.strip() == str(1 << 30), "the machine's storage_gib is the largest file"
    assert "MemoryError" in machine.exec("python3 -c 'bytearray(2 << 30)'").stderr
    refusal(lambda: machine.files.write("big", b"x", offset=2 << 30), "FILE_TOO_LARGE")


# --- a daemon that nobody gave root ----------------------------------------------------------------


def python() -> str | None:
    """An interpreter that another user may run: this one, or the system's of the same version."""
    for path in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        same = f"import sys; raise SystemExit(sys.version_info[:2] != {sys.version_info[:2]})"
        with contextlib.suppress(OSError):
            if subprocess.run([path, "-c", same], user=NOBODY.pw_uid, cwd="/").returncode == 0:
                return path
    return None


@dataclass
class Users:
    env: dict[str, str]
    python: str

    def roost(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.python, "-m", "roost.cli", *argv],
            env=self.env,
            user=NOBODY.pw_uid,
            group=NOBODY.pw_gid,
            extra_groups=[],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture(scope="module")
def users(daemon: Daemon) -> Iterator[Users]:
    found = python()
    if found is None:
        pytest.skip("there is no Python here that another user may run")
    place = Path(tempfile.mkdtemp(prefix="roost-user-", dir="/var/tmp"))
    os.chown(place, NOBODY.pw_uid, NOBODY.pw_gid)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    source = str(Path(roost.__file__).parents[1])
    made = Users(
        {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join([source, *site.getsitepackages()]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(place),
            "XDG_RUNTIME_DIR": str(place),
            "ROOST_PORT": port,
            "ROOST_SSH_PORT": "0",
        },
        found,
    )
    try:
        yield made
    finally:
        purged = made.roost("down", "--purge", "--yes")
        left = [p for p in processes.everyone() if str(place).encode() in _line(p) + _environ(p)]
        shutil.rmtree(place, ignore_errors=True)
        assert purged.returncode == 0, purged.stderr
        assert not left


def test_an_ordinary_user_has_a_daemon_of_rung_0(users: Users) -> None:
    looked = users.roost("doctor", "--json")
    assert looked.returncode == 0, looked.stderr
    up = users.roost("up")
    assert up.returncode == 0, up.stdout + up.stderr
    assert "isolated workspace" in up.stdout and "template" not in up.stdout
    data = Path(users.env["HOME"], ".local/share/roost")
    assert (data.stat().st_mode & 0o777, data.stat().st_uid) == (0o700, NOBODY.pw_uid)
    for said in (looked, users.roost("doctor", "--json")):
        host = json.loads(said.stdout)
        rungs = {r["driver"]: r for r in host["rungs"]}
        assert host["default_driver"] == "workspace" and rungs["workspace"]["available"]
        for name in ("qemu", "gvisor", "runc", "user"):
            assert not rungs[name]["available"] and "needs root" in rungs[name]["reason"]
            assert rungs[name]["remedy"] == "sudo roost up"
    assert "needs root" in users.roost("create", "--isolation", "container").stderr


def test_its_machines_work_by_command_line_and_sdk(users: Users) -> None:
    assert users.roost("up", "--no-machine").returncode == 0
    said = users.roost("exec", "first", "sh", "-c", "echo kept > file; id -un")
    assert said.stdout == "nobody\n", said.stderr
    data = Path(users.env["HOME"], ".local/share/roost")
    key = (data / "key").read_text().strip()
    with Client(f"http://127.0.0.1:{users.env['ROOST_PORT']}", api_key=key) as client:
        first = Machine.get(key="first", client=client)
        assert first.files.read_text("file") == "kept\n"
        assert first.isolation["level"] == 0
    assert users.roost("fork", "first").returncode == 0
    assert users.roost("sleep", "first").returncode == 0
    assert users.roost("exec", "first", "cat", "file").stdout == "kept\n"
    assert users.roost("down").returncode == 0
    assert users.roost("up", "--no-machine").returncode == 0
    assert users.roost("exec", "first", "cat", "file").stdout == "kept\n"
    assert users.roost("cp", "first:./file", str(data / "copied")).returncode == 0
    assert (data / "copied").read_text() == "kept\n"
    failed = users.roost("template", "build", "base")
    assert failed.returncode and "root" in failed.stderr, failed.stderr
