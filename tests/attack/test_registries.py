"""A machine that may reach the package registries and nothing else still installs packages. Which they are is the
host's configuration: its mirrors may be others than the world's.
"""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest

from roost import Machine
from tests.system.conftest import Daemon
from tests.system.internet import Internet

from .rung import prepare

pytestmark = pytest.mark.own_network

PACKAGE = "six"
PATIENCE_S = 280
EMULATED_S = 900  # the same on an emulated processor


def entry(url: str) -> str:
    """Of an allowlist."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


def of_apt(machine: Machine) -> set[str]:
    """What the machine's own sources name, which are those its template was built from."""
    text = machine.exec("cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null").stdout
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return {entry(url) for line in lines for url in re.findall(r"https?://\S+", line)}


def of_pip() -> set[str]:
    """The index that the host's pip is set to, and where that keeps its files."""
    said = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    set_to = re.search(r"index-url='([^']+)'", said)
    if set_to is None:
        from pip._internal.models.index import PyPI

        index = PyPI.simple_url
    else:
        index = set_to[1]
    page = f"{index.rstrip('/')}/{PACKAGE}/"
    with urllib.request.urlopen(page, timeout=60) as answer:
        files = re.findall(r'href="([^"]+)"', answer.read().decode())
    return {entry(index), *(entry(urljoin(page, each)) for each in files)}


PATIENT = pytest.mark.timeout(2 * PATIENCE_S + 300)
EMULATED = [pytest.mark.long, pytest.mark.timeout(2 * EMULATED_S + 300)]


@pytest.fixture(
    params=[
        pytest.param("gvisor", marks=PATIENT),
        pytest.param("runc", marks=PATIENT),
        pytest.param("qemu", marks=EMULATED),
    ]
)
def machine(led: Daemon, internet: Internet, request: pytest.FixtureRequest) -> Iterator[Machine]:
    if request.param == "qemu":
        request.getfixturevalue("guests")
    with Machine.create(driver=request.param, autosleep="never", egress="off") as m:
        prepare(m, internet)
        yield m


def test_packages_are_installed_and_nothing_else_is_reached(
    machine: Machine, internet: Internet
) -> None:
    refused = machine.exec("apt-get update -q -o Acquire::Retries=0 -o Acquire::http::Timeout=5")
    assert not refused.ok or "Failed to fetch" in refused.stdout + refused.stderr
    names = of_apt(machine) | of_pip()
    assert Path("/etc/apt").exists() and names
    machine.set_egress("allowlist", allow=sorted(names))
    patience = EMULATED_S if machine.isolation["driver"] == "qemu" else PATIENCE_S
    since = internet.now()
    done = machine.exec(
        "apt-get update -q && apt-get install -y -q --no-install-recommends jq", timeout=patience
    )
    assert done.ok, (names, done.stdout[-2000:], done.stderr[-2000:], machine.egress().refused)
    assert machine.exec("echo '[1]' | jq -c .").stdout == "[1]\n"
    done = machine.exec(
        f"python3 -m venv /workspace/v && /workspace/v/bin/pip -q install {PACKAGE}",
        timeout=patience,
    )
    assert done.ok, (names, done.stdout[-2000:], done.stderr[-2000:], machine.egress().refused)
    assert machine.exec(f"/workspace/v/bin/python -c 'import {PACKAGE}'").ok
    asked = {each.said for each in internet.seen("dns", since=since)}
    assert asked <= {name.partition(":")[0] for name in names}
    assert not machine.exec("curl -sm 5 https://allowed.test --cacert ~/internet-ca.pem").ok
    assert internet.seen("http", since=since) == []
