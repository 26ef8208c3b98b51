"""Secrets with real machines: what programs inside can do with them, and what can be found of them afterwards."""

from __future__ import annotations

import base64
import os
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost import Machine, Secret
from roost.secrets.process import BOUNDARY_UID, INSTALLED
from tests.system.conftest import Daemon
from tests.system.found import where
from tests.system.internet import RESOLVER, Internet

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not INSTALLED.exists(), reason="scripts/test installs mitmproxy"),
]
HOST = "allowed.test"
PYTHON = f"""
import json, os, urllib.request
asked = urllib.request.Request("https://{HOST}/p", headers={{"X-Key": os.environ["KEY"]}})
print(json.load(urllib.request.urlopen(asked, timeout=20))["path"])
"""


@pytest.fixture(scope="module")
def led(daemon: Daemon, internet: Internet) -> Iterator[Daemon]:
    before = dict(daemon.env)
    daemon.env |= {"ROOST_DNS": RESOLVER, "ROOST_EGRESS_CA": str(internet.ca)}
    daemon.restart()
    yield daemon
    daemon.env.clear()
    daemon.env.update(before)
    daemon.restart()


@pytest.fixture
def value() -> str:
    return f"canary-{secrets.token_hex(16)}"


@pytest.fixture
def machine(led: Daemon, driver: str, value: str) -> Iterator[Machine]:
    carried = [
        Secret("TOKEN", value, [HOST], header="Authorization", format="Bearer {value}"),
        Secret("KEY", f"{value}-key", [HOST, "*.wild.test:443"]),
    ]
    with Machine.create(driver=driver, memory_mib=256, autosleep="never", secrets=carried) as made:
        yield made


def last(internet: Internet, path: str) -> dict[str, str]:
    """Headers of the last request for that path."""
    found = [each for each in internet.seen("http") if each.more["path"] == path]
    return dict(found[-1].more["headers"]) if found else {}


def test_programs_use_what_they_never_see(machine: Machine, internet: Internet, value: str) -> None:
    said = machine.exec(f"curl -sS https://{HOST}/a -u me:$KEY -H 'Authorization: mine'").check()
    assert value not in said.stdout
    assert last(internet, "/a")["authorization"] == f"Bearer {value}"
    said = machine.exec("curl -sS https://x.wild.test/b -u me:$KEY").check()
    sent = last(internet, "/b")["authorization"].split()[1]
    assert base64.b64decode(sent).decode() == f"me:{value}-key"
    assert sent not in said.stdout
    assert machine.exec(["python3", "-c", PYTHON]).check().stdout == "/p\n"
    assert last(internet, "/p")["x-key"] == f"{value}-key"
    terminal = machine.exec("printenv KEY TOKEN NODE_EXTRA_CA_CERTS").stdout.split()
    assert terminal[0].startswith("roost-secret-key-")
    assert terminal[1:] == ["/etc/ssl/certs/ca-certificates.crt"]
    # What the distribution does with its authorities leaves ours in place.
    machine.exec(
        "update-ca-certificates >/dev/null 2>&1 && curl -sSo /dev/null https://allowed.test/c"
    ).check()
    assert last(internet, "/c")["authorization"] == f"Bearer {value}"


def test_nothing_of_it_lies_anywhere(
    machine: Machine, led: Daemon, internet: Internet, value: str
) -> None:
    machine.exec(f'curl -sS https://{HOST}/a -H "X-Key: $KEY" > /root/answer').check()
    assert "*" * len(value) in machine.exec("cat /root/answer").stdout
    machine.sleep()
    assert machine.created_at is not None
    since = machine.created_at.timestamp() - 5
    assert where(led, "*" * len(value), since)  # so the disk is looked into
    for what in (value, base64.b64encode(value.encode()).decode()[:40]):
        assert where(led, what, since) == []
    machine.wake()
    machine.exec(f"curl -sSo /dev/null https://{HOST}/after").check()
    assert last(internet, "/after")["authorization"] == f"Bearer {value}"


def test_forks(machine: Machine, internet: Internet, value: str) -> None:
    plain, heir = machine.fork(), machine.fork(inherit_secrets=True)
    assert isinstance(plain, Machine)
    assert isinstance(heir, Machine)
    with plain, heir:
        assert plain.secrets() == []
        plain.exec(f"curl -skSo /dev/null https://{HOST}/plain").check()
        assert "authorization" not in last(internet, "/plain")
        heir.exec(f"curl -sSo /dev/null https://{HOST}/heir").check()
        assert last(internet, "/heir")["authorization"] == f"Bearer {value}"
        heir.set_secret("TOKEN", "the-heirs-own-value")
        heir.exec(f"curl -sSo /dev/null https://{HOST}/heir2").check()
        machine.exec(f"curl -sSo /dev/null https://{HOST}/parent").check()
        assert last(internet, "/heir2")["authorization"] == "Bearer the-heirs-own-value"
        assert last(internet, "/parent")["authorization"] == f"Bearer {value}"


def test_when_its_process_dies(
    machine: Machine, led: Daemon, internet: Internet, value: str
) -> None:
    """Nothing goes around it, and a new one knows all; so after a restart of the daemon."""
    (pid,) = boundaries(led.pid)
    os.kill(pid, signal.SIGSTOP)
    machine.exec(f"curl -skm 3 https://{HOST}/stopped")
    os.kill(pid, signal.SIGKILL)
    assert last(internet, "/stopped") == {}
    back(machine)
    assert last(internet, "/back")["authorization"] == f"Bearer {value}"
    assert boundaries(led.pid) != [pid]
    led.restart()
    back(machine)
    machine.delete_secret("TOKEN")
    machine.delete_secret("KEY")
    machine.exec(f"curl -skSo /dev/null https://{HOST}/gone").check()
    assert "authorization" not in last(internet, "/gone")
    assert not machine.exec(["test", "-e", "/usr/local/share/ca-certificates/roost-machine.crt"]).ok


def back(machine: Machine) -> None:
    end = time.monotonic() + 30
    while not machine.exec(f"curl -sSm 5 -o /dev/null https://{HOST}/back", timeout=30).ok:
        assert time.monotonic() < end


def boundaries(daemon: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:
            continue
        if f"\nUid:\t{BOUNDARY_UID}\t" in text and f"\nPPid:\t{daemon}\n" in text:
            found.append(int(status.parent.name))
    return found
