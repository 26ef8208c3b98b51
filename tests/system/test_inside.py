"""What a machine asks of its daemon, on each rung: by the helper inside, as any user, over sleep, forks and restarts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from roost import ExecResult, Machine

from .conftest import Daemon

pytestmark = pytest.mark.system

RAW = """
import json, socket
s = socket.socket(socket.AF_UNIX); s.connect("/run/roost/socket")
s.sendall(b"GET /v1/status HTTP/1.1\\r\\nhost: roost\\r\\n\\r\\n")
said = b""
while piece := s.recv(65536): said += piece
print(json.loads(said.partition(b"\\r\\n\\r\\n")[2])["machine_id"])
"""


def roost(m: Machine, command: str, code: int = 0, **options: Any) -> str:
    done: ExecResult = m.exec(f"roost {command}", timeout=60, **options)
    assert done.exit_code == code, (command, done)
    return done.stdout.strip() if code == 0 else done.stderr.strip()


def until(what: Callable[[], object], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.1)


@pytest.fixture(scope="module", params=["gvisor", "runc", "qemu"])
def m(request: pytest.FixtureRequest, daemon: Daemon) -> Iterator[Machine]:
    if request.param == "qemu":
        request.getfixturevalue("guests")
    with Machine.create(
        driver=request.param, memory_mib=256, autosleep="never", name="asks"
    ) as machine:
        yield machine


def test_a_machine_knows_itself(m: Machine) -> None:
    assert roost(m, "status --json") and json.loads(roost(m, "--json status"))["machine_id"] == m.id
    assert m.id in roost(m, "status") and "look at itself" in roost(m, "status")
    used = json.loads(roost(m, "usage --json"))
    assert used["now"]["memory_bytes"] > 0 and used["total"]["days"] == 30
    assert "no end" in roost(m, "budget")
    # Every user's, also without the helper, and by no network.
    assert m.exec(["python3", "-c", RAW], user="nobody", check=True).stdout.strip() == m.id
    assert roost(m, "status", user="nobody")
    # Its name on the path is no way into the agent.
    assert m.exec("cp /usr/local/bin/roost /tmp/r && cp /bin/true /usr/local/bin/roost && roost").ok
    assert m.exec("cp /tmp/r /usr/local/bin/roost").ok and m.id in roost(m, "status")
    for command, said in (("expose 8000", "may not expose"), ("fork", "may not fork")):
        assert said in roost(m, command, code=4)
    assert "may not sleep" in roost(m, "sleep", code=4)
    assert "no command" in roost(m, "snore", code=2)
    assert json.loads(roost(m, "--json sleep", code=4))["error_code"] == "FORBIDDEN"


def test_it_shows_a_port(m: Machine, daemon: Daemon) -> None:
    m.update(allow_inside=["expose"])
    m.exec("mkdir -p /srv/w && echo from-inside > /srv/w/x && cd /srv/w && "
           "(nohup python3 -m http.server 8123 >/dev/null 2>&1 &)", check=True)  # fmt: skip
    url = roost(m, "expose 8123")
    assert url.startswith(f"http://8123-{m.id}.")
    assert m.ports.get(8123)["url"] == url
    host = url.removeprefix("http://")
    headers = {"host": host, "authorization": f"Bearer {daemon.key}"}

    def served() -> bool:
        said = httpx.get(f"{daemon.url}/x", headers=headers, trust_env=False)
        return said.text == "from-inside\n"

    until(served)
    anybody = httpx.get(f"{daemon.url}/x", headers={"host": host}, trust_env=False)
    assert anybody.status_code == 401
    assert "may not publish" in roost(m, "expose 8123 --public", code=4)
    assert url in roost(m, "ports")
    roost(m, "unexpose 8123")
    assert m.ports.list() == []
    with daemon.http() as http:
        found = http.get("/v1/audit", params={"machine_id": m.id, "limit": 100}).json()["items"]
    mine = [e for e in found if e["key_id"] == m.id]
    assert {"inside_expose", "inside_unexpose"} <= {e["action"] for e in mine}
    assert all(e["role"] == "machine" for e in mine)


def test_it_forks_itself_and_each_knows_which_it_is(m: Machine) -> None:
    m.update(allow_inside=["fork"])
    driver = m.isolation["driver"]
    m.exec("(roost fork > /root/forked; echo $? >> /root/forked; roost --json status >> /root/forked)"
           " </dev/null >/dev/null 2>&1 &", check=True)  # fmt: skip
    until(lambda: m.exec("grep -q machine_id /root/forked").exit_code == 0)
    said = m.exec("cat /root/forked").stdout.split("\n")
    child = Machine.get(said[0])
    try:
        assert said[1] == "0" and json.loads(said[2])["machine_id"] == m.id
        # A request made in the copy is the copy's.
        assert json.loads(roost(child, "--json status"))["machine_id"] == child.id
        assert m.refresh().inside == {"allow": ["fork"], "forks": 8, "forked": 1}
        assert child.inside["allow"] == []
        assert "may not fork" in roost(child, "fork", code=4)
        if driver != "runc":  # the program that asked goes on in the copy, too
            until(lambda: child.exec("grep -q machine_id /root/forked").exit_code == 0)
            told = child.exec("cat /root/forked").stdout.split("\n")
            assert told[:2] == ["child", "0"]
            assert json.loads(told[2])["machine_id"] == child.id
    finally:
        child.destroy()


def test_it_sleeps_and_asks_again_when_it_wakes(m: Machine) -> None:
    m.update(allow_inside=["sleep"])
    tiers = ["frozen", "hibernated"] if m.to_json()["memory_kept"] else ["frozen"]
    for tier in tiers:
        assert "in a moment" in roost(m, f"sleep --tier {tier}")
        until(lambda: m.refresh().phase == "sleeping")
        assert m.tier == tier
        assert json.loads(roost(m, "--json status"))["machine_id"] == m.id  # woken by the exec
    assert m.refresh().phase == "running"


def test_an_open_stream_keeps_nobody_awake(m: Machine) -> None:
    m.update(autosleep=2)
    try:
        until(lambda: m.refresh().tier == "frozen", 30)
        assert m.id in roost(m, "status")
    finally:
        m.update(autosleep="never")


def test_another_daemon_answers_it(m: Machine, daemon: Daemon) -> None:
    m.exec("(sleep 1; while ! roost --json status > /root/after 2>/dev/null; do sleep 0.2; done)"
           " </dev/null >/dev/null 2>&1 &", check=True)  # fmt: skip
    daemon.stop()
    time.sleep(1.5)
    daemon.start()
    until(lambda: m.exec("test -s /root/after").exit_code == 0)
    assert json.loads(m.exec("cat /root/after").stdout)["machine_id"] == m.id
