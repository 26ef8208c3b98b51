"""What a dialect costs a call over the native API: the same thing asked of both in turns, on one machine, each over a
connection that is kept; what is reported is by how much each pair differs.

A dialect adds a function to ``DIALECTS`` that gives its pairs.
"""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from bench import boxd
from bench.report import Report, ms, paired
from roost import Machine
from roost.client._config import resolve

Ask = Callable[[], float]  # a call, in ms
Pair = tuple[str, Ask, Ask]  # what is asked, of the dialect, of the native API
BOUND_MS = 1.0


class Api:
    """One connection, as an SDK keeps it, under a form of the key."""

    def __init__(self, prefix: str | None = None) -> None:
        config = resolve()
        secret = config.api_key.rpartition("_")
        self._headers = {"authorization": f"Bearer {prefix or secret[0]}_{secret[2]}"}
        at = urlsplit(config.url)
        self._connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=60)

    def call(self, method: str, path: str, body: Any = None) -> None:
        data = None if body is None else json.dumps(body)
        self._connection.request(method, path, data, self._headers)
        answer = self._connection.getresponse()
        said = answer.read()
        assert answer.status < 300, (path, answer.status, said[:300])

    def asking(self, method: str, path: str, body: Any = None) -> Ask:
        return lambda: ms(lambda: self.call(method, path, body))

    def close(self) -> None:
        self._connection.close()


def dedalus(machine_id: str) -> Iterator[Pair]:
    url = f"/v1/machines/{machine_id}"
    with contextlib.closing(Api("dsk")) as theirs, contextlib.closing(Api()) as native:
        yield "retrieve", theirs.asking("GET", url), native.asking("GET", url)
        command = {"command": ["/bin/true"]}
        yield (
            "execution",
            theirs.asking("POST", f"{url}/executions", command),
            native.asking("POST", f"{url}/executions?wait=false", command),
        )


def pandastack(machine_id: str) -> Iterator[Pair]:
    box, machine = f"/v1/sandboxes/{machine_id}", f"/v1/machines/{machine_id}"
    with contextlib.closing(Api("pds")) as theirs, contextlib.closing(Api()) as native:
        yield "get", theirs.asking("GET", box), native.asking("GET", machine)
        command = {"command": ["/bin/bash", "-c", "true"]}
        yield (
            "exec",
            theirs.asking("POST", f"{box}/exec", {"cmd": "true"}),
            native.asking("POST", f"{machine}/executions", command),
        )


DIALECTS: dict[str, Callable[[str], Iterator[Pair]]] = {
    "dedalus": dedalus,
    "pandastack": pandastack,
    "boxd": boxd.pairs,
}


def run(report: Report, n: int) -> None:
    with Machine.create(driver="gvisor") as machine:
        for name, pairs in DIALECTS.items():
            for what, ours, native in pairs(machine.id):
                mine, theirs = paired(max(n, 200), ours, native)
                more = [a - b for a, b in zip(mine, theirs, strict=False)]
                report.add(f"{name}, {what}: over the native call", "ms", more, bound=BOUND_MS)
                report.add("  the native call", "ms", theirs)
