"""``roost shell`` on a true pseudo-terminal, its screen read by pyte."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pyte
import pytest

from roost import Machine

from .conftest import Host

pytestmark = pytest.mark.system


class Session:
    """A user before ``roost shell``."""

    def __init__(self, env: dict[str, str], *argv: str, cols: int = 80, rows: int = 24) -> None:
        self.master, self.slave = pty.openpty()
        self.screen = pyte.Screen(cols, rows)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.size(cols, rows)
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "roost.cli", "shell", *argv],
            env={**env, "TERM": "xterm-256color"},
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
        )

    def size(self, cols: int, rows: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
        self.screen.resize(rows, cols)

    def prompt(self) -> None:
        """gVisor's terminal loses what is typed before the shell has set it up."""
        self.until("#")

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def until(self, text: str, timeout: float = 30.0) -> str:
        """The screen once it shows ``text``."""
        deadline = time.monotonic() + timeout
        while True:
            shown = "\n".join([*(line.rstrip() for line in self.screen.display), ""])
            if text in shown:
                return shown
            ready, _, _ = select.select([self.master], [], [], 0.2)
            if ready:
                data = os.read(self.master, 65536)
                self.raw += data
                self.stream.feed(data)
            assert time.monotonic() < deadline, f"{text!r} did not come:\n{shown}"

    def end(self, timeout: float = 20.0) -> int:
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "it did not end"
            if select.select([self.master], [], [], 0.05)[0]:
                data = os.read(self.master, 65536)
                self.raw += data
                self.stream.feed(data)
        while select.select([self.master], [], [], 0)[0]:  # its last words
            data = os.read(self.master, 65536)
            self.raw += data
            self.stream.feed(data)
        code = self.process.returncode
        assert termios.tcgetattr(self.slave) == self.before, "the terminal was not restored"
        os.close(self.master)
        os.close(self.slave)
        return code


def test_a_whole_session(daemon: Host, machine: Machine) -> None:
    s = Session(daemon.env, machine.key or "", cols=100, rows=30)
    s.prompt()
    s.type("stty size\n")
    s.until("30 100")
    s.type("tty; echo $TERM\n")
    shown = s.until("xterm-256color")
    assert "/dev/pts/" in shown
    s.size(120, 40)
    s.process.send_signal(signal.SIGWINCH)
    deadline = time.monotonic() + 60
    while True:
        s.type("stty size\n")
        try:
            s.until("40 120", timeout=3)
            break
        except AssertionError:
            assert time.monotonic() < deadline
    s.type("echo ünïcode €\n")
    s.until("ünïcode €\n")
    s.type("echo asleep; sleep 600\n")
    s.until("asleep\n")
    time.sleep(0.5)
    s.type("\x03")
    s.type("echo after=$?\n")
    s.until("after=130")
    s.type("exit 7\n")
    assert s.end() == 7


def test_full_screen_program(daemon: Host, machine: Machine) -> None:
    machine.files.write("/root/page", "".join(f"line {i}\n" for i in range(200)))
    s = Session(daemon.env, machine.id, "--", "sh", "-c", "less /root/page || vi /root/page")
    s.until("line 20")
    s.type("q")
    time.sleep(0.3)
    s.type(":q!\n") if s.process.poll() is None else None
    assert s.end() == 0


def test_detach_list_and_come_back(daemon: Host, machine: Machine) -> None:
    s = Session(daemon.env, machine.id)
    s.prompt()
    s.type("marker=kept; echo first-screen\n")
    s.until("first-screen\n")
    s.type("\r")
    time.sleep(0.3)
    s.type("~.")
    assert s.end() == 0
    ready = [t for t in machine.terminals.list() if not t.closed]
    assert ready
    terminal = ready[0].id
    assert terminal.encode() in s.raw, "it says how to come back"
    again = Session(daemon.env, machine.id, "--terminal", terminal)
    again.until("first-screen")
    again.type("echo still=$marker\n")
    again.until("still=kept")
    again.type("exit\n")
    assert again.end() == 0


def test_killed_by_a_signal_it_leaves_the_terminal_whole(daemon: Host, machine: Machine) -> None:
    s = Session(daemon.env, machine.id)
    s.prompt()
    s.type("echo here\n")
    s.until("here\n")
    s.process.send_signal(signal.SIGTERM)
    assert s.end() == 143


def test_a_script_on_stdin(daemon: Host, machine: Machine) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "roost.cli", "shell", machine.id],
        env=daemon.env,
        input=b"echo from-$((40+2)); exit 3\n",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert b"from-42" in done.stdout
