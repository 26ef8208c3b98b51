"""``roost exec`` against a real machine: bytes, codes, signals."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from roost import Machine

from .conftest import Host

Roost = Callable[..., subprocess.CompletedProcess[bytes]]
pytestmark = pytest.mark.system
ROOST = [sys.executable, "-m", "roost.cli"]


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)],
)
def test_codes(roost: Roost, machine: Machine, script: str, code: int) -> None:
    assert roost("exec", machine.key, "-c", script).returncode == code


def test_streams_are_apart_and_exact(roost: Roost, machine: Machine) -> None:
    done = roost("exec", machine.id[:10], "--", "sh", "-c", "printf 'a\\377\\0b'; echo e >&2")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a\xff\0b", b"e\n")


def test_timeout(roost: Roost, machine: Machine) -> None:
    begun = time.monotonic()
    done = roost("exec", machine.key, "--timeout", "3", "-c", "echo first; sleep 77")
    assert (done.returncode, done.stdout) == (124, b"first\n")
    assert time.monotonic() - begun < 40
    assert machine.exec("pgrep -f 'sleep 7[7]'").exit_code == 1


def test_stdin(roost: Roost, machine: Machine) -> None:
    data = os.urandom(3 << 20)
    done = roost("exec", machine.key, "--", "cat", input=data)
    assert done.returncode == 0, done.stderr
    assert done.stdout == data


def test_a_lot_of_output_is_whole(roost: Roost, machine: Machine) -> None:
    done = roost("exec", machine.key, "--", "seq", "1", "600000")
    assert done.returncode == 0
    assert done.stdout == b"".join(b"%d\n" % i for i in range(1, 600001))


def test_options(roost: Roost, machine: Machine) -> None:
    done = roost(
        "exec", machine.key, "-w", "/tmp", "-e", "A=b c", "-u", "user", "-c", "pwd; echo $A; id -un"
    )
    assert done.stdout == b"/tmp\nb c\nuser\n"


def test_json(roost: Roost, machine: Machine) -> None:
    done = roost("exec", machine.key, "--json", "-c", "echo hi; exit 3")
    assert done.returncode == 3
    data = json.loads(done.stdout)
    assert (data["stdout"], data["exit_code"], data["machine_id"]) == ("hi\n", 3, machine.id)


def test_no_such_command(roost: Roost, machine: Machine) -> None:
    done = roost("exec", machine.key, "--", "no-such-command")
    assert done.returncode == 127
    assert b"COMMAND_NOT_FOUND" in done.stderr


def test_a_reader_that_leaves_ends_the_command(
    daemon: object, roost: Roost, machine: Machine
) -> None:
    line = [
        sys.executable,
        "-m",
        "roost.cli",
        "exec",
        machine.key,
        "--no-stdin",
        "--",
        "yes",
        "head-test",
    ]
    with subprocess.Popen(line, stdout=subprocess.PIPE) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == b"head-test\n"
        command.stdout.close()
        assert command.wait(30) == 141
    assert machine.exec("pgrep -f 'yes head-[t]est'").exit_code == 1


def test_detach(roost: Roost, machine: Machine) -> None:
    done = roost("exec", machine.key, "-d", "-c", "sleep 1; echo late")
    execution = machine.executions.get(done.stdout.decode().strip())
    assert execution.wait(timeout=20).stdout == "late\n"


def test_ctrl_c(daemon: Host, machine: Machine) -> None:
    script = "trap 'echo caught; exit 42' INT; echo ready; while :; do sleep 0.1; done"
    process = subprocess.Popen(
        [*ROOST, "exec", machine.id, "-c", script],
        env=daemon.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 42
    assert process.stdout.read() == b"caught\n"
    process.stdout.close()


def test_output_on_a_terminal_is_inert(daemon: Host, machine: Machine) -> None:
    script = "printf '\\033]0;owned\\007\\033[32mgreen\\033[0m\\033[6n'"
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*ROOST, "exec", machine.id, "--no-stdin", "-c", script],
        env=daemon.env,
        stdin=subprocess.DEVNULL,
        stdout=slave,
    )
    assert process.wait(30) == 0
    os.close(slave)
    seen = os.read(master, 4096)
    os.close(master)
    assert seen == b"^[]0;owned\x07\x1b[32mgreen\x1b[0m^[[6n"
