"""Lists of tools on real machines: what waits outlives its daemon, and is run as it was asked for, once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from roost import Client, ForbiddenError, Machine, RoostError
from roost.client._sync._client import default_client

from .conftest import Daemon

pytestmark = pytest.mark.system
TOOLS = {"mode": "ask", "allow": [{"program": "cat", "args": ["/etc/*"]}]}


@pytest.fixture(scope="module", params=["gvisor", "runc"])
def m(request: pytest.FixtureRequest, daemon: Daemon) -> Iterator[Machine]:
    with Machine.create(
        driver=request.param, memory_mib=256, autosleep="never", tools=TOOLS
    ) as machine:
        yield machine


@pytest.fixture
def runner(daemon: Daemon) -> Iterator[Client]:
    """An agent's key: it uses machines, and approves of nothing."""
    made = default_client().create_key("agent", role="runner")
    with Client(daemon.url, made["key"]) as client:
        yield client
    default_client().revoke_key(made["key_id"])


def roost(*words: str) -> str:
    command = [sys.executable, "-m", "roost.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done
    return done.stdout + done.stderr


class Asked(threading.Thread):
    """A command that somebody waits for."""

    def __init__(self, run: Callable[[], str]) -> None:
        super().__init__(daemon=True)
        self.run_ = run
        self.said: str | RoostError = ""
        self.start()

    def run(self) -> None:
        try:
            self.said = self.run_()
        except RoostError as failure:
            self.said = failure

    def end(self) -> str | RoostError:
        self.join(60)
        assert not self.is_alive()
        return self.said


def waiting(m: Machine) -> str:
    deadline = time.monotonic() + 30
    while not (found := default_client().approvals(machine_id=m.id)):
        assert time.monotonic() < deadline, "nothing waits"
        time.sleep(0.05)
    return str(found[0]["approval_id"])


def test_asked_for_with_one_key_and_approved_of_with_another(m: Machine, runner: Client) -> None:
    mine = Machine.get(m.id, client=runner)
    assert mine.exec(["cat", "/etc/hostname"]).ok
    asked = Asked(lambda: mine.exec("cat > /root/note; id -u", stdin="kept", timeout=20).stdout)
    id = waiting(m)
    assert not m.files.exists("/root/note")
    for refused in (
        lambda: runner.approve(id),
        lambda: mine.set_tools("off"),
        lambda: runner.create_key("mine", role="tenant"),
        lambda: mine.fork(),
    ):
        with pytest.raises(ForbiddenError):
            refused()
    shown = roost("approvals", id)
    assert "cat > /root/note" in shown and "kept" in shown
    assert "approved" in roost("approve", id, "--note", "fine")
    assert asked.end() == "0\n"
    assert m.files.read("/root/note") == b"kept"
    denied = Asked(lambda: mine.exec("rm /root/note").stdout)
    roost("deny", waiting(m), "--note", "it is needed")
    said = denied.end()
    assert isinstance(said, ForbiddenError) and said.code == "APPROVAL_DENIED"
    assert "it is needed" in str(said) and m.files.exists("/root/note")
    for around in (mine.terminal, lambda: mine.run_code("1")):
        with pytest.raises(ForbiddenError) as caught:
            around()
        assert caught.value.code == "TOOL_DENIED"


def test_it_outlives_a_daemon_that_is_killed(m: Machine, daemon: Daemon) -> None:
    asked = Asked(
        lambda: "".join(c.text for c in m.exec_stream("echo once >> /root/n; cat /root/n"))
    )
    id = waiting(m)
    daemon.restart(signal.SIGKILL)
    assert waiting(m) == id
    roost("approve", id)
    assert asked.end() == "once\n"  # its stream was attached again
    assert m.files.read("/root/n") == b"once\n"
    with pytest.raises(RoostError):
        default_client().approve(id)


def test_asleep_it_is_woken_for_what_is_approved_of_alone(m: Machine) -> None:
    m.sleep()
    asked = Asked(lambda: m.exec(["uname"]).stdout)
    id = waiting(m)
    assert m.refresh().phase == "sleeping"
    roost("approve", id)
    assert asked.end() == "Linux\n"
    m.set_tools("deny")
    m.sleep()
    with pytest.raises(ForbiddenError) as caught:
        m.exec(["uname"])
    assert caught.value.code == "TOOL_DENIED" and m.refresh().phase == "sleeping"
    m.set_tools("off")
    assert m.exec(["uname"]).ok
