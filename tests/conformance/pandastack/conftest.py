"""``pandastack`` (PyPI) and ``@pandastack/sdk`` (npm) as they are, against the daemon of the system tests."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import key_in_form
from tests.conformance.foreign import REPO, Raised, Worker
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
COUNT = (
    "kill -0 $(cat /root/pid) && until [ -e /root/n ]; do sleep 0.05; done; sleep 0.2; cat /root/n"
)


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


class Node:
    """The TypeScript client: snippets in which ``g`` is what they share."""

    def __init__(self, place: Path, env: Mapping[str, str]) -> None:
        self.place = place
        self.env = {**clean(), **env}
        self._process = subprocess.Popen(
            ["node", str(place / "worker.mjs")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.env,
            cwd=place,
            text=True,
        )

    def run(self, code: str, timeout: float = 120, **given: Any) -> Any:
        """What it returns. Raises ``Raised``, TimeoutError."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"run": code, "given": given}) + "\n")
        self._process.stdin.flush()
        watch = threading.Timer(timeout, self._process.kill)
        watch.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watch.cancel()
        if not line:
            raise TimeoutError(f"Node ended, or did not answer in {timeout:g} s")
        said = json.loads(line)
        if "raised" in said:
            raise Raised(said["raised"])
        return said["value"]

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

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def clean() -> dict[str, str]:
    """Without what would lead the client elsewhere."""
    return {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("ROOST_", "PANDASTACK_", "NODE_")) and "proxy" not in k.lower()
    }


def node_environment() -> Path:
    """Where the npm packages of the lock file are, installed when missing or when that file changed."""
    if shutil.which("npm") is None:
        pytest.skip("needs Node.js and npm (scripts/test installs them)")
    lock = (HERE / "package-lock.json").read_bytes()
    place = REPO / ".venv-conformance" / "node-pandastack"
    stamp, want = place / ".roost", hashlib.sha256(lock).hexdigest()
    if not (stamp.exists() and stamp.read_text() == want):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, place / name)
        command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        subprocess.run(command, cwd=place, check=True, timeout=300, stdout=subprocess.DEVNULL)
        stamp.write_text(want)
    shutil.copy(HERE / "worker.mjs", place / "worker.mjs")
    return place


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
    made = Node(node_environment(), at)
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
