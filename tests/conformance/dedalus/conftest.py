"""``dedalus-sdk`` in both versions, blocking and not, against the daemon of the system tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conformance.conftest import key_in_form
from tests.conformance.foreign import Worker
from tests.conformance.record import Outcome, record
from tests.system.conftest import Daemon

VERSIONS = ("0.4.0", "0.6.0")
CLIENT = "dedalus-sdk (PyPI)"
BEGIN = """
import json, time
import dedalus_sdk
from dedalus_sdk import AsyncDedalus, Dedalus

client = Dedalus(_strict_response_validation=True)
aclient = AsyncDedalus(_strict_response_validation=True)
SIZE = dict(vcpu=1, memory_mib=512, storage_gib=2)
"""


@dataclass
class Sdk:
    """Runs snippets in which ``~`` stands for ``await`` and ``EACH`` for ``for``, where the client is the one that is
    awaited; ``client`` is the one or the other. A shape that the client does not know is an error."""

    version: str
    awaited: bool
    worker: Worker

    def run(self, code: str, timeout: float = 120, **given: Any) -> None:
        self.worker.run(self._of(code), timeout, **given)

    def value(self, code: str, timeout: float = 120, **given: Any) -> Any:
        return self.worker.value(self._of(code), timeout, **given)

    def records(self, *methods: str, outcome: Outcome = "works", note: str = "") -> None:
        for method in methods:
            record(CLIENT, self.version, method, outcome, note)

    def finished(self, machine: str, *command: str, timeout: float = 60, **more: Any) -> Any:
        """An execution's output once it has ended."""
        self.run(
            """
ran = ~client.machines.executions.create(machine_id=MACHINE, command=COMMAND, **MORE)
while ran.status in ("wake_in_progress", "queued", "running"):
    time.sleep(0.05)
    ran = ~client.machines.executions.retrieve(machine_id=MACHINE, execution_id=ran.execution_id)
out = ~client.machines.executions.output(machine_id=MACHINE, execution_id=ran.execution_id)
""",
            timeout,
            MACHINE=machine,
            COMMAND=list(command),
            MORE=more,
        )
        return {**self.value("ran"), **self.value("out")}

    def _of(self, code: str) -> str:
        each = "async for" if self.awaited else "for"
        code = code.replace("~", "await " if self.awaited else "").replace(" EACH ", f" {each} ")
        return code.replace("client.", "aclient.") if self.awaited else code


@pytest.fixture(scope="session")
def at(daemon: Daemon) -> dict[str, str]:
    """What a user of it changes."""
    return {"DEDALUS_BASE_URL": daemon.url, "DEDALUS_API_KEY": key_in_form(daemon, "dedalus")}


Make = Callable[[str, Mapping[str, str]], Worker]


@pytest.fixture(scope="session")
def foreign(workers: Make, at: dict[str, str]) -> Callable[[str], Worker]:
    """The worker of a version."""
    made: dict[str, Worker] = {}

    def of(version: str) -> Worker:
        if version not in made:
            made[version] = workers(f"dedalus-{version}", at)
            made[version].run(BEGIN)
        return made[version]

    return of


@pytest.fixture(params=[(v, a) for v in VERSIONS for a in (False, True)], scope="module", ids=str)
def sdk(request: pytest.FixtureRequest, foreign: Callable[[str], Worker]) -> Sdk:
    version, awaited = request.param
    return Sdk(version, awaited, foreign(version))


@pytest.fixture(params=["gvisor", pytest.param("qemu", marks=pytest.mark.long)], scope="module")
def rung(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def machine(daemon: Daemon) -> Iterator[str]:
    """One on gVisor for whatever does not change it."""
    with daemon.http() as http:
        size = {"vcpu": 1, "memory_mib": 512, "storage_gib": 2}
        made = http.post("/v1/machines", json={"driver": "gvisor", **size}).raise_for_status()
        machine_id = made.json()["machine_id"]
        yield machine_id
        http.delete(f"/v1/machines/{machine_id}")
