"""OpenSSH's client, scp, sftp and rsync against real machines; ``roost ssh`` and ``roost port-forward`` as people run them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.system.conftest import Daemon

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        not all(map(shutil.which, ("ssh", "scp", "sftp", "ssh-keygen"))),
        reason="needs OpenSSH's client",
    ),
]
SERVER = """
import socket
s = socket.create_server(("127.0.0.1", 8123))
print("ready", flush=True)
while True:
    c, _ = s.accept()
    data = b""
    while part := c.recv(65536):
        data += part
    c.sendall(data[::-1])
    c.close()
"""


@dataclass
class Door:
    daemon: Daemon
    directory: Path
    machine: str
    port: int
    key: str  # of ``roost ssh-key``

    def options(self, port: str) -> list[str]:
        settings = {
            "IdentityFile": str(self.directory / "id"),
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": str(self.directory / "known_hosts"),
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
        }
        pairs = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
        return ["-F", "none", port, str(self.port), *pairs]

    def ssh(
        self, *arguments: str, stdin: bytes = b"", user: str | None = None, timeout: float = 90
    ) -> subprocess.CompletedProcess[bytes]:
        where = f"{user or self.machine}@127.0.0.1"
        command = ["ssh", *self.options("-p"), where, *arguments]
        return subprocess.run(
            command, input=stdin, capture_output=True, timeout=timeout, check=False
        )

    def copy(self, program: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [program, *self.options("-P"), *arguments],
            capture_output=True,
            timeout=180,
            check=False,
        )


def roost(daemon: Daemon, *arguments: str, **kw: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "roost.cli", *arguments],
        env=daemon.env,
        capture_output=True,
        timeout=120,
        check=False,
        **kw,  # type: ignore[call-overload]
    )


@pytest.fixture(scope="module")
def identity(
    daemon: Daemon, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, str]]:
    directory = tmp_path_factory.mktemp("ssh")
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "tests", "-f", str(directory / "id")],
        check=True,
    )
    made = roost(daemon, "ssh-key", "add", str(directory / "id.pub"), "--json")
    assert made.returncode == 0, made
    yield directory, json.loads(made.stdout)["ssh_key_id"]
    for key in json.loads(roost(daemon, "ssh-key", "list", "--json").stdout)["items"]:
        roost(daemon, "ssh-key", "rm", key["ssh_key_id"])


@pytest.fixture(scope="module")
def door(daemon: Daemon, identity: tuple[Path, str], driver: str) -> Iterator[Door]:
    directory, key = identity
    with daemon.http() as http:
        found = http.get("/v1/ssh").json()
        if not found["enabled"]:
            pytest.skip("the port of SSH is taken by another daemon: set ROOST_SSH_PORT")
        known = f"[127.0.0.1]:{found['port']} {found['host_key']}\n"
        (directory / "known_hosts").write_text(known)
        made = http.post("/v1/machines", json={"driver": driver, "key": f"ssh-{driver}"})
        assert made.status_code == 201, made.text
        machine = made.json()["machine_id"]
        try:
            yield Door(daemon, directory, machine, found["port"], key)
        finally:
            http.delete(f"/v1/machines/{machine}")


def test_exit_codes_and_streams(door: Door) -> None:
    done = door.ssh("echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    assert door.ssh("no-such-command-here").returncode == 127
    assert door.ssh("kill -TERM $$").returncode == 255


def test_stdin_is_clean_both_ways(door: Door) -> None:
    data = os.urandom(8 << 20)
    done = door.ssh("cat", stdin=data)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()
    assert door.ssh("wc -c", stdin=data).stdout.strip() == str(len(data)).encode()


def test_shell_with_a_terminal(door: Door) -> None:
    done = door.ssh("-tt", stdin=b"tty; stty size; echo [$TERM]; exit 5\n")
    assert b"/dev/pts/" in done.stdout or b"/dev/tty" in done.stdout, done
    assert done.returncode == 5
    assert door.ssh(stdin=b"echo from-a-shell\n").stdout.endswith(b"from-a-shell\n")


def test_user_inside(door: Door) -> None:
    assert door.ssh("id -un; pwd", user=f"{door.machine}+user").stdout == b"user\n/home/user\n"
    assert door.ssh("id -un", user=f"ssh-{_driver(door)}").stdout == b"root\n"


def _driver(door: Door) -> str:
    with door.daemon.http() as http:
        return str(http.get(f"/v1/machines/{door.machine}").json()["isolation"]["driver"])


def test_a_killed_client_takes_its_command_along(door: Door) -> None:
    process = subprocess.Popen(
        ["ssh", *door.options("-p"), f"{door.machine}@127.0.0.1", "echo on; exec sleep 4711"],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    assert b"4711" in door.ssh("ps -e -o args").stdout
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while b"sleep 4711" in door.ssh("ps -e -o args").stdout:
        assert time.monotonic() < deadline
        time.sleep(0.3)


def test_scp_and_sftp(door: Door, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep" / "er").mkdir(parents=True)
    (tree / "big").write_bytes(os.urandom(5 << 20))
    (tree / "deep" / "er" / "name with spaces").write_text("x")
    assert door.copy("scp", "-r", str(tree), f"{door.machine}@127.0.0.1:/root/tree").returncode == 0
    done = door.copy("scp", "-r", f"{door.machine}@127.0.0.1:tree", str(tmp_path / "back"))
    assert done.returncode == 0, done
    assert (tmp_path / "back" / "big").read_bytes() == (tree / "big").read_bytes()
    assert (tmp_path / "back/deep/er/name with spaces").read_text() == "x"
    batch = tmp_path / "batch"
    batch.write_text(
        f"pwd\nls -l tree\nput {tree}/big tree/again\nsymlink again tree/link\nget tree/link {tmp_path}/got\nrm tree/again\n"
    )
    done = door.copy("sftp", "-b", str(batch), f"{door.machine}@127.0.0.1")
    assert done.returncode == 0, done
    assert b"/root" in done.stdout
    assert (tmp_path / "got").read_bytes() == (tree / "big").read_bytes()
    door.ssh("rm -r tree")


def test_rsync_twice(door: Door, tmp_path: Path) -> None:
    rsync = shutil.which("rsync")
    if rsync is None:
        pytest.skip("needs rsync")
    _bring(door, rsync)
    tree = tmp_path / "tree"
    tree.mkdir()
    for n in range(40):
        (tree / f"f{n}").write_bytes(os.urandom(50_000))
    shell = " ".join(["ssh", *door.options("-p")])

    def sync(*arguments: str) -> str:
        done = subprocess.run(
            [rsync, "-a", "--stats", "-e", shell, *arguments],
            capture_output=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done
        return done.stdout.decode()

    there = f"{door.machine}@127.0.0.1:/root/synced/"
    assert "Number of regular files transferred: 40" in sync(f"{tree}/", there)
    assert "Number of regular files transferred: 0" in sync(f"{tree}/", there)
    (tree / "f7").write_bytes(b"changed")
    assert "Number of regular files transferred: 1" in sync(f"{tree}/", there)
    sync(there, f"{tmp_path}/back/")
    assert (tmp_path / "back" / "f7").read_bytes() == b"changed"
    assert (tmp_path / "back" / "f8").read_bytes() == (tree / "f8").read_bytes()


def _bring(door: Door, rsync: str) -> None:
    """The host's rsync with its libraries, where the machine has none: no test needs a mirror."""
    if door.ssh("command -v rsync").returncode == 0:
        return
    said = subprocess.run(["ldd", rsync], capture_output=True, text=True, check=True).stdout
    libraries = [word for word in said.split() if word.startswith("/") and "/libc." not in word]
    files = [rsync, *(path for path in libraries if "ld-linux" not in path)]
    door.ssh("mkdir -p /opt/rsync")
    done = door.copy("scp", *files, f"{door.machine}@127.0.0.1:/opt/rsync/")
    assert done.returncode == 0, done
    script = b'#!/bin/sh\nLD_LIBRARY_PATH=/opt/rsync exec /opt/rsync/rsync "$@"\n'
    done = door.ssh(
        "cat > /usr/bin/rsync && chmod 755 /usr/bin/rsync && rsync --version", stdin=script
    )
    assert done.returncode == 0, done


@contextlib.contextmanager
def served(door: Door) -> Iterator[None]:
    door.ssh("cat > /root/server.py", stdin=SERVER.encode())
    process = subprocess.Popen(
        ["ssh", *door.options("-p"), f"{door.machine}@127.0.0.1", "python3 -u /root/server.py"],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    try:
        yield
    finally:
        process.kill()
        process.wait()


def ask(port: int, data: bytes) -> bytes:
    deadline = time.monotonic() + 20
    while True:
        try:
            sock = socket.create_connection(("127.0.0.1", port), timeout=30)
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    with sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        back = b""
        while part := sock.recv(65536):
            back += part
    return back


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def test_forwards(door: Door) -> None:
    local = free_port()
    data = os.urandom(300_000)
    with served(door):
        forward = subprocess.Popen(
            [
                "ssh",
                *door.options("-p"),
                "-N",
                "-L",
                f"{local}:127.0.0.1:8123",
                f"{door.machine}@127.0.0.1",
            ]
        )
        try:
            assert ask(local, data) == data[::-1]
        finally:
            forward.terminate()
            forward.wait()
        process = subprocess.Popen(
            [sys.executable, "-m", "roost.cli", "port-forward", door.machine, "0:8123", "--json"],
            env=door.daemon.env,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        text = ""
        while not text.endswith("\n}\n"):
            text += process.stdout.readline().decode()
        port = json.loads(text)["forwards"][0]["port"]
        assert ask(port, data) == data[::-1]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    refused = door.ssh("-W", "169.254.169.254:80")
    assert refused.returncode != 0
    assert b"prohibited" in refused.stderr


def test_wrong_key_and_missing_machine(door: Door, tmp_path: Path) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True
    )
    options = [
        o.replace(str(door.directory / "id"), str(tmp_path / "other")) for o in door.options("-p")
    ]
    wrong = subprocess.run(
        ["ssh", *options, f"{door.machine}@127.0.0.1", "true"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    missing = door.ssh("true", user="no-such-machine")
    assert (wrong.returncode, missing.returncode) == (255, 255)
    assert wrong.stderr.replace(door.machine.encode(), b"") == missing.stderr.replace(
        b"no-such-machine", b""
    )


def test_a_sleeping_machine_wakes(door: Door) -> None:
    with door.daemon.http() as http:
        assert http.post(f"/v1/machines/{door.machine}/sleep").status_code == 200
        assert door.ssh("echo awake").stdout == b"awake\n"
        assert http.get(f"/v1/machines/{door.machine}").json()["phase"] == "running"


def test_roost_ssh(door: Door) -> None:
    done = roost(door.daemon, "ssh", door.machine, "echo", "in; exit 6")
    assert (done.returncode, done.stdout) == (6, b"in\n"), done
    done = roost(door.daemon, "ssh", f"ssh-{_driver(door)}", "--user", "user", "id", "-un")
    assert done.stdout == b"user\n", done
    assert b"Host *.roost" in roost(door.daemon, "ssh", "--config").stdout


def test_config_for_other_programs(door: Door, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_bytes(roost(door.daemon, "ssh", "--config").stdout)
    done = subprocess.run(
        ["ssh", "-F", str(config), "-i", str(door.directory / "id"), "-o", "BatchMode=yes",
         f"ssh-{_driver(door)}.roost", "echo by-config"],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == b"by-config\n", done


def test_a_removed_key_is_refused_and_its_sessions_end(
    door: Door, identity: tuple[Path, str], tmp_path: Path
) -> None:
    process = subprocess.Popen(
        ["ssh", *door.options("-p"), f"{door.machine}@127.0.0.1", "echo on; sleep 60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    with door.daemon.http() as http:
        public = (door.directory / "id.pub").read_text().strip()
        (key,) = [k for k in http.get("/v1/ssh-keys").json()["items"] if k["public_key"] in public]
        assert http.delete(f"/v1/ssh-keys/{key['ssh_key_id']}").status_code == 204
        try:
            assert process.wait(60) == 255
            assert door.ssh("true").returncode == 255
        finally:
            http.post("/v1/ssh-keys", json={"public_key": public})


def test_everything_is_in_the_audit_log(door: Door) -> None:
    door.ssh("true")
    deadline = time.monotonic() + 60
    seen: set[str] = set()
    with door.daemon.http() as http:
        while not {"ssh_connect", "ssh_exec"} <= seen:
            assert time.monotonic() < deadline
            entries = _audit(http, {"machine_id": door.machine, "limit": 100})
            seen = {entry["action"] for entry in entries}


def _audit(http: httpx.Client, params: Mapping[str, object]) -> list[dict[str, str]]:
    items: list[dict[str, str]] = http.get("/v1/audit", params=dict(params)).json()["items"]  # type: ignore[arg-type]
    return items
