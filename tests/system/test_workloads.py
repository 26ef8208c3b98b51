"""What people run in a machine, for real, on both container drivers."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pyte
import pytest

from roost import Machine, Terminal, TimeoutExpired
from tests.attack.record import case

from .conftest import Daemon

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def machine(daemon: Daemon, driver: str) -> Iterator[Machine]:
    with Machine.create(driver=driver, memory_mib=2048, labels={"test": "workloads"}) as m:
        yield m


def run(m: Machine, command: str, timeout: float = 240) -> str:
    result = m.exec(command, timeout=timeout)
    assert result.exit_code == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
    return result.stdout


def test_isolation_record_is_honest(machine: Machine, driver: str) -> None:
    isolation = machine.isolation
    assert isolation["level"] == 2
    assert isolation["driver"] == driver
    kernel = run(machine, "dmesg 2>/dev/null | head -5; cat /proc/version")
    assert ("gVisor" in kernel or "4.4.0" in kernel) == (driver == "gvisor")


def test_apt_installs_a_package(machine: Machine) -> None:
    run(
        machine,
        "apt-get update -q && apt-get install -y -q --no-install-recommends jq",
        timeout=280,
    )
    assert run(machine, """echo '{"a": [1, 2]}' | jq -c .a""").strip() == "[1,2]"


def test_pip_installs_into_a_venv(machine: Machine) -> None:
    run(machine, "python3 -m venv /workspace/v && /workspace/v/bin/pip -q install six==1.16.0")
    assert (
        run(machine, "/workspace/v/bin/python -c 'import six; print(six.__version__)'").strip()
        == "1.16.0"
    )


def test_git_init_and_commit(machine: Machine) -> None:
    run(
        machine,
        "rm -rf /workspace/r && git init -q /workspace/r && cd /workspace/r && echo a > a && git add a && "
        "git -c user.name=t -c user.email=t@example.invalid commit -qm first && git log --format=%s",
    )
    assert "first" in run(machine, "git -C /workspace/r log --format=%s")


def test_a_background_server_outlives_its_exec(machine: Machine) -> None:
    run(
        machine,
        "mkdir -p /workspace/www && echo hello > /workspace/www/i && cd /workspace/www && "
        "(python3 -m http.server 8099 --bind 127.0.0.1 >/tmp/www.log 2>&1 &)",
    )
    deadline = time.monotonic() + 20
    while True:
        result = machine.exec("curl -s http://127.0.0.1:8099/i")
        if result.stdout == "hello\n":
            break
        assert time.monotonic() < deadline, result
        time.sleep(0.2)


class Screen:
    """What a person would see: full-screen programs send only what differs."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.screen = pyte.Screen(80, 24)
        self.stream = pyte.Stream(self.screen)

    def wait_for(self, text: str, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while not any(text in line for line in self.screen.display):
            assert time.monotonic() < deadline, "\n".join(self.screen.display)
            self.stream.feed(self.terminal.read(timeout=1))


def test_a_full_screen_program_in_a_terminal(machine: Machine) -> None:
    machine.files.write("/workspace/text", "first line\n")
    with machine.terminal(cols=80, rows=24) as t:
        screen = Screen(t)
        t.send("nano /workspace/text\n")
        screen.wait_for("first line")
        t.send("typed here ")
        screen.wait_for("typed here first line")
        t.send("\x0f")  # write out,
        screen.wait_for("File Name to Write: /workspace/text")
        t.send("\r")  # to the same name
        screen.wait_for("[ Wrote 1 line ]")
        t.send("\x18")
        screen.wait_for(":~#")
        t.send("echo ba''ck; exit\n")
        t.read_until("back", timeout=30)
    assert machine.files.read("/workspace/text") == b"typed here first line\n"


@case(8)
def test_a_timeout_ends_everything_the_exec_started(machine: Machine) -> None:
    script = (
        "trap '' TERM; setsid sh -c \"trap '' TERM HUP; (setsid sleep 4321 &) ; sleep 4321\" & "
        "(setsid sh -c \"trap '' TERM; sleep 4321 & sleep 4321\" &) ; sleep 4321"
    )
    begun = time.monotonic()
    with pytest.raises(TimeoutExpired):
        machine.exec(script, timeout=2)
    assert time.monotonic() - begun < 40
    left = machine.exec("ps -eo pid,args | grep '[s]leep 4321'")
    assert left.stdout == ""


COMETS = "for (1..20) { next if fork; setsid; while (1) { exit if fork; setsid } } sleep"
TREE = "while (1) { setsid if defined($p = fork) && !$p }"


@case(1, 8)
@pytest.mark.parametrize("bomb", [COMETS, TREE], ids=["comets", "tree"])
def test_a_timeout_ends_a_fork_bomb_and_nothing_else(
    machine: Machine, driver: str, bomb: str
) -> None:
    if driver == "gvisor" and bomb == TREE:
        pytest.skip("too many processes end a machine of gVisor's")
    deaf = "$SIG{$_} = 'IGNORE' for qw(HUP INT TERM)"
    other = machine.executions.start("exec sleep 300")
    begun = time.monotonic()
    with pytest.raises(TimeoutExpired):
        machine.exec(["perl", "-MPOSIX=setsid", "-e", f"{deaf}; {bomb}"], timeout=2)
    assert time.monotonic() - begun < 40
    time.sleep(0.5)
    left = machine.exec("ps -eo stat,args | grep '[s]etsid -e' | grep -v ^Z")
    assert left.stdout == ""
    assert other.refresh().status == "running"
    other.kill()


@case(13, 15)
def test_no_way_to_the_hosts_devices_and_audit_log(machine: Machine, driver: str) -> None:
    if driver == "gvisor":
        pytest.skip("its own kernel answers")
    sockets = "import socket\nfor p in range(23):\n try: socket.socket(16, 3, p); print(p)\n except OSError: pass"
    assert machine.exec(["python3", "-c", sockets]).stdout.split() == ["0", "4"]
    tun = machine.exec(
        "mknod /dev/tun c 10 200 && cat </dev/tun; mknod /dev/mem c 1 1 && cat </dev/mem"
    )
    assert tun.stderr.count("not permitted") == 2, tun.stderr
    run(machine, "ip -o addr | grep eth0; ss -ltn")
    run(machine, "useradd -m audited && su audited -c 'id -un' && userdel -r audited")


def test_ordinary_user_and_sudo(machine: Machine, driver: str) -> None:
    assert machine.exec("id -un", user="user").stdout == "user\n"
    sudo = machine.exec("sudo id -u", user="user")
    if driver == "gvisor":  # its kernel ignores setuid bits in this release; SPECIFICATION says so
        assert "no new privileges" in sudo.stderr
    else:
        assert sudo.stdout == "0\n"
    assert machine.exec("cat /etc/shadow", user="user").exit_code != 0


def test_run_as_is_who_commands_are_unless_they_say(daemon: Daemon, driver: str) -> None:
    with Machine.create(driver=driver, run_as="user", memory_mib=256) as m:
        assert run(m, "id -un; pwd; echo $HOME").split() == ["user", "/home/user", "/home/user"]
        assert m.exec("id -un", user="root").stdout == "root\n"
        assert not m.exec("touch /etc/mine").ok
        child = m.fork()
        try:
            assert (child.run_as, run(child, "id -un")) == ("user", "user\n")
            child.update(run_as="")
            assert run(child, "id -un") == "root\n"
        finally:
            child.destroy()


def test_history_is_kept_at_once(machine: Machine) -> None:
    with machine.terminal() as t:
        t.send("echo remember-$((40+2))\n")
        t.read_until("remember-42", timeout=20)
        t.send("true\n")
        time.sleep(0.5)
    assert "echo remember-$((40+2))" in machine.files.read("/root/.bash_history").decode()
