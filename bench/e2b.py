"""What is spoken inside a sandbox over the native calls that do the same: in turns, on one machine, each over a
connection that is kept, as its clients keep it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import urlsplit

from bench.report import Report, ms, paired
from roost import Machine
from roost.client._config import resolve

Ask = Callable[[], float]  # a call, in ms
BOUND_MS = 1.0


class _Connection:
    def __init__(self, **headers: str) -> None:
        at = urlsplit(resolve().url)
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self._http = http.client.HTTPConnection(at.hostname or "", at.port, timeout=60)

    def call(
        self, method: str, path: str, body: bytes | None = None, more: Mapping[str, str] = {}
    ) -> bytes:
        self._http.request(method, path, body, {**self._headers, **more})
        answer = self._http.getresponse()
        said = answer.read()
        assert answer.status < 300, (path, answer.status, said[:300])
        return said

    def asking(self, method: str, path: str, body: bytes | None = None, **more: str) -> Ask:
        named = {name.replace("_", "-"): value for name, value in more.items()}
        return lambda: ms(lambda: self.call(method, path, body, named))


def pairs(machine_id: str) -> Iterator[tuple[str, Ask, Ask]]:
    key = resolve().api_key
    native = _Connection(authorization=f"Bearer {key}")
    control = _Connection(x_api_key=f"e2b_{key.rpartition('_')[2]}")
    said = control.call("POST", f"/v2/sandboxes/{machine_id}/connect", b'{"timeout":3600}')
    box = _Connection(
        E2b_Sandbox_Id=machine_id,
        X_Access_Token=json.loads(said)["envdAccessToken"],
        authorization="Basic cm9vdDo=",
    )
    url = f"/v1/machines/{machine_id}"
    start = json.dumps({"process": {"cmd": "/bin/true"}, "stdin": False}).encode()
    yield (
        "commands.run",
        box.asking(
            "POST",
            "/process.Process/Start",
            b"\0" + len(start).to_bytes(4, "big") + start,
            content_type="application/connect+json",
            connect_timeout_ms="60000",
        ),
        native.asking("POST", f"{url}/executions", b'{"command":["/bin/true"]}'),
    )
    yield (
        "files.read",
        box.asking("GET", "/files?path=/etc/hostname"),
        native.asking("GET", f"{url}/files?path=/etc/hostname"),
    )
    yield (
        "files.get_info",
        box.asking(
            "POST",
            "/filesystem.Filesystem/Stat",
            b'{"path":"/etc/hostname"}',
            content_type="application/json",
        ),
        native.asking("GET", f"{url}/files/stat?path=/etc/hostname"),
    )


def run(report: Report, n: int) -> None:
    with Machine.create(driver="gvisor") as machine:
        for what, ours, native in pairs(machine.id):
            mine, theirs = paired(max(n, 200), ours, native)
            more = [a - b for a, b in zip(mine, theirs, strict=False)]
            report.add(f"e2b, {what}: over the native call", "ms", more, bound=BOUND_MS)
            report.add("  the native call", "ms", theirs)
