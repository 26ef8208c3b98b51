"""Clients of both versions, blocking and asynchronous, each in a worker of its own version's environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.conformance.conftest import key_in_form
from tests.conformance.foreign import Raised, Worker
from tests.conformance.record import Outcome, record
from tests.system.conftest import PORT, Daemon

# Counts in memory, and the way to read it: a file that is just being written is empty.
COUNTER = "i=0; while true; do i=$((i+1)); echo $i > /run/counter; sleep 0.05; done"
READ = 'for i in $(seq 30); do c=$(cat /run/counter) && test -n "$c" && break; sleep 0.02; done; echo $c'
# Of a word and a port, at which it is served once this has ended.
SERVE = (
    "mkdir -p /srv/{0} && echo {0} > /srv/{0}/index.html && cd /srv/{0} && nohup python3 -m http.server {1} >/dev/null 2>&1 & "
    "for i in $(seq 300); do curl -fso /dev/null localhost:{1}/ && exit 0; sleep .2; done; exit 1"
)

V1, V2 = "0.1.9", "0.2.19"
KINDS = ("sync", "async")
URL = f"http://127.0.0.1:{PORT}"
_MADE = {
    (V1, "sync"): "from boxd import *\nfrom boxd import Compute\nboxd = Compute({})",
    (V1, "async"): "from boxd.aio import *\nfrom boxd.aio import Compute\nboxd = Compute({})",
    (V2, "sync"): "from boxd import *\nfrom boxd import Boxd\nboxd = Boxd({})",
    (V2, "async"): "from boxd import *\nfrom boxd import AsyncBoxd\nboxd = AsyncBoxd({})",
}


class Client:
    """One version, one kind. ``value`` and ``run`` are the worker's, where ``boxd`` is the client; what is awaitable is
    awaited."""

    def __init__(self, worker: Worker, version: str, kind: str) -> None:
        self.worker, self.version, self.kind = worker, version, kind

    def value(self, code: str, timeout: float = 120, **given: Any) -> Any:
        return self.worker.value(code, timeout, **given)

    def run(self, code: str, timeout: float = 120, **given: Any) -> None:
        self.worker.run(code, timeout, **given)

    def raises(self, code: str, kind: str, **given: Any) -> Raised:
        with pytest.raises(Raised) as caught:
            self.value(code, **given)
        assert kind in caught.value.kinds, caught.value
        return caught.value

    def found(self, method: str, outcome: Outcome = "works", note: str = "") -> None:
        record("boxd (PyPI)", self.version, method, outcome, note)

    def not_served(self, method: str, code: str, why: str, **given: Any) -> None:
        said = self.raises(code, "BoxdError", **given)
        assert said.fields["grpc_code"] == 12, said
        assert said.text.startswith("Roost does not serve"), said
        self.found(method, "not served", why)


@pytest.fixture(scope="session")
def client(
    daemon: Daemon, workers: Callable[..., Worker]
) -> Callable[[str, str, str | None], Client]:
    """Of a version and kind; its key as its users write it, exchanged on the one port."""
    made: dict[tuple[str, str, str], Client] = {}

    def make(version: str, kind: str = "sync", key: str | None = None) -> Client:
        key = key or key_in_form(daemon, "boxd")
        if (version, kind, key) not in made:
            env = {"BOXD_NO_UPDATE_NOTICE": "1", "BOXD_API_KEY": key, "BOXD_API_URL": URL}
            if version == V1:
                env["BOXD_EXCHANGE_URL"] = f"{URL}/api/v1/auth/token"
            worker = workers(f"boxd-{version}", env)
            worker.run(_MADE[version, kind].format(""))
            made[version, kind, key] = Client(worker, version, kind)
        return made[version, kind, key]

    return make


@pytest.fixture(scope="session")
def golden(daemon: Daemon) -> Iterator[str]:
    """The name of a machine that no test changes much."""
    with daemon.http() as http:
        made = http.post(
            "/v1/machines",
            json={"key": "boxd-golden", "name": "boxd-golden", "autosleep": None},
        )
        made.raise_for_status()
        yield "boxd-golden"
        http.delete(f"/v1/machines/{made.json()['machine_id']}")


def opened(domain: str, path: str = "/") -> httpx.Response:
    """What a browser gets at a route."""
    host = domain.partition(":")[0]
    return httpx.get(f"{URL}{path}", headers={"host": host}, trust_env=False, timeout=30)
