"""``pandastack`` (PyPI) and ``@pandastack/sdk`` (npm) as they are, against the daemon of the system tests."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import key_in_form
from tests.conformance.foreign import NodeWorker, Raised, Worker, node_environment
from tests.conformance.record import Outcome, record
from tests.system.conftest import PORT, Daemon

HERE = Path(__file__).parent
PYTHON, PYTHON_VERSION = "pandastack (PyPI)", "0.10.0"
NODE, NODE_VERSION = "@pandastack/sdk (npm)", "0.9.0"
BEGIN = """
import os, time
import pandastack
from pandastack import Candidate, Client, Sandbox

client = Client(timeout=120)
pandastack.set_default_client(client)

def box(**more):
    return client.sandboxes.create(**{"template": "base", "ttl_seconds": 1800, **more})
"""
# Counts for as long as it lives: what it says goes up by itself only where its memory went on.
COUNTER = """
cat >/root/counter.py <<'END'
import os, time
n = 0
while True:
    n += 1
    with open("/root/next", "w") as file:
        file.write(str(n))
    os.replace("/root/next", "/root/n")
    time.sleep(0.05)
END
nohup python3 /root/counter.py >/dev/null 2>&1 &
echo $! >/root/pid
"""
# Where it has come to, once it was seen to count on.
COUNT = """
kill -0 $(cat /root/pid) || exit
until [ -e /root/n ]; do sleep 0.05; done
was=$(cat /root/n)
while [ "$(cat /root/n)" = "$was" ]; do sleep 0.05; done
cat /root/n
"""


@dataclass
class Sdk:
    """The Python client, which is blocking; ``client`` is it, ``box(...)`` makes a sandbox."""

    worker: Worker

    def run(self, code: str, timeout: float = 120, **given: Any) -> None:
        self.worker.run(code, timeout, **given)

    def value(self, code: str, timeout: float = 120, **given: Any) -> Any:
        return self.worker.value(code, timeout, **given)

    def raises(self, code: str, **given: Any) -> Raised:
        with pytest.raises(Raised) as caught:
            self.worker.run(code, **given)
        return caught.value

    def records(self, *methods: str, outcome: Outcome = "works", note: str = "") -> None:
        for method in methods:
            record(PYTHON, PYTHON_VERSION, method, outcome, note)


class Node(NodeWorker):
    """The TypeScript client: snippets in which ``g`` is what they share."""

    def raises(self, code: str, **given: Any) -> Raised:
        with pytest.raises(Raised) as caught:
            self.run(code, **given)
        return caught.value

    def command(self, *words: str, typed: str = "", timeout: float = 60) -> str:
        """What the package's command line says."""
        cli = self.place / "node_modules/@pandastack/sdk/dist/cli.js"
        done = subprocess.run(
            ["node", str(cli), *words],
            env=self.env, input=typed, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        return done.stdout + done.stderr

    def records(self, *methods: str, outcome: Outcome = "works", note: str = "") -> None:
        for method in methods:
            record(NODE, NODE_VERSION, method, outcome, note)


@pytest.fixture(scope="session")
def at(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a user of it changes."""
    return {
        "PANDASTACK_API": daemon.url,
        "PANDASTACK_API_KEY": key_in_form(daemon, "pandastack"),
        "PANDASTACK_PREVIEW_HOST": f"localhost:{PORT}",
        "HOME": str(tmp_path_factory.mktemp("home")),  # no configuration of somebody's
    }


@pytest.fixture(scope="session")
def sdk(workers: Callable[[str, Mapping[str, str]], Worker], at: dict[str, str]) -> Sdk:
    worker = workers("pandastack", at)
    worker.run(BEGIN)
    return Sdk(worker)


@pytest.fixture(scope="session")
def node(at: dict[str, str]) -> Iterator[Node]:
    made = Node(node_environment(HERE), at)
    try:
        made.run(
            "g.client = new g.Client({timeoutMs: 120000});"
            "g.box = (more) => g.client.sandboxes.create({template: 'base', ttlSeconds: 1800, ...more});"
        )
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def box(sdk: Sdk) -> Iterator[str]:
    """The id of one for whatever does not change it; ``b`` in the worker."""
    sdk.run("b = box()")
    yield str(sdk.value("b.id"))
    sdk.run("b.kill()")
