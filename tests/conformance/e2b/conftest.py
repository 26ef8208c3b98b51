"""E2B's clients against the daemon of the system tests: ``e2b`` of PyPI, blocking and not, and of npm.

All of it on one plain-http port, as E2B_API_URL and E2B_SANDBOX_URL say; ``test_domain`` is by host and TLS.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import key_in_form
from tests.conformance.foreign import NodeWorker, Worker, node_environment
from tests.conformance.record import Outcome, record
from tests.system.conftest import Daemon

PYTHON, NODE = "e2b (PyPI)", "e2b (npm)"
VERSIONS = {PYTHON: "2.63.0", NODE: "2.51.0"}
LEAST_NODE = (20, 18)
BEGIN = """
import json, os, time
import e2b
from e2b import AsyncSandbox, AsyncTemplate, AsyncVolume, Sandbox, SandboxQuery, SandboxState, Template, Volume

OPTS = {"headers": {"X-Roost-Driver": os.environ["RUNG"]}}
"""
Make = Callable[[str, Mapping[str, str]], Worker]


@dataclass
class Sdk:
    """Runs snippets in which ``~`` stands for ``await`` where the client is the one that is awaited; then the classes
    are its own, too."""

    awaited: bool
    worker: Worker

    def run(self, code: str, timeout: float = 120, **given: Any) -> None:
        self.worker.run(self._of(code), timeout, **given)

    def value(self, code: str, timeout: float = 120, **given: Any) -> Any:
        return self.worker.value(self._of(code), timeout, **given)

    def records(self, *methods: str, outcome: Outcome = "works", note: str = "") -> None:
        for method in methods:
            record(PYTHON, VERSIONS[PYTHON], self._of(method).strip(), outcome, note)

    def _of(self, code: str) -> str:
        if not self.awaited:
            return code.replace("~", "")
        for name in ("Sandbox.", "Template.", "Volume."):
            code = code.replace(name, f"Async{name}")
        return code.replace("~", "await ").replace(
            "    for each in listed", "    async for each in listed"
        )


@pytest.fixture(scope="session")
def at(daemon: Daemon) -> dict[str, str]:
    """What a user of it changes."""
    return {
        "E2B_API_URL": daemon.url,
        "E2B_SANDBOX_URL": daemon.url,
        "E2B_VOLUME_API_URL": daemon.url,
        "E2B_API_KEY": key_in_form(daemon, "e2b"),
        "RUNG": "gvisor",
    }


@pytest.fixture(scope="session")
def foreign(workers: Make, at: dict[str, str]) -> Worker:
    made = workers("e2b", at)
    made.run(BEGIN)
    return made


@pytest.fixture(params=[False, True], scope="module", ids=["sync", "async"])
def sdk(request: pytest.FixtureRequest, foreign: Worker) -> Sdk:
    return Sdk(request.param, foreign)


@pytest.fixture(params=["gvisor", pytest.param("qemu", marks=pytest.mark.long)], scope="module")
def rung(request: pytest.FixtureRequest, foreign: Worker) -> str:
    foreign.run("OPTS = {'headers': {'X-Roost-Driver': RUNG}}", RUNG=request.param)
    return str(request.param)


def node_place() -> Path:
    """The packages of ``package-lock.json``, installed beside the Python ones; skips where Node.js is too old."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("Node.js is not installed")
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    version = tuple(int(each) for each in said.strip().lstrip("v").split(".")[:2])
    if version < LEAST_NODE:
        note = (
            f"not tried: it wants Node.js {LEAST_NODE[0]}.{LEAST_NODE[1]}, there is {said.strip()}"
        )
        record(NODE, VERSIONS[NODE], "all", "differs", note)
        pytest.skip(note)
    return node_environment(Path(__file__).parent)


@pytest.fixture(scope="session")
def node(at: dict[str, str]) -> Iterator[NodeWorker]:
    made = NodeWorker(node_place(), at)
    try:
        yield made
    finally:
        made.close()


def node_records(*methods: str, outcome: Outcome = "works", note: str = "") -> None:
    for method in methods:
        record(NODE, VERSIONS[NODE], method, outcome, note)
