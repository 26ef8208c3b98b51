"""Terminals, previews, SSH, usage, what is not served, and what each refusal is raised as."""

from __future__ import annotations

import base64
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from tests.conformance.foreign import Raised
from tests.system.conftest import Daemon

from .conftest import Sdk

TYPED = base64.b64encode(b"echo $((6*7)); stty size; exit\n").decode()


def raised(sdk: Sdk, code: str, **given: object) -> Raised:
    with pytest.raises(Raised) as failure:
        sdk.run(code, **given)
    return failure.value


def test_terminals(sdk: Sdk, machine: str) -> None:
    if sdk.version != "0.4.0":
        return
    sdk.run(
        """
t = ~client.machines.terminals.create(machine_id=MACHINE, width=90, height=20, shell="/bin/bash", cwd="/tmp")
again = ~client.machines.terminals.retrieve(machine_id=MACHINE, terminal_id=t.terminal_id)
listed = [each.terminal_id EACH each in client.machines.terminals.list(machine_id=MACHINE)]
""",
        MACHINE=machine,
    )
    assert sdk.value("(t.status, t.protocol, t.width, again.terminal_id == t.terminal_id)") == [
        "ready",
        "websocket",
        90,
        True,
    ]
    assert sdk.value("t.terminal_id in listed")
    if sdk.awaited:
        talk = """
said, last = b"", None
async with aclient.machines.terminals.connect(**WHICH, extra_headers=PROOF) as ws:
    await ws.send({"type": "resize", "width": 71, "height": 8})
    await ws.send({"type": "input", "data": TYPED})
    async for event in ws:
        last = event.type
        if last == "output":
            said += base64.b64decode(event.data)
        if last == "closed":
            break
"""
    else:
        talk = """
said, last = b"", None
with client.machines.terminals.connect(**WHICH, extra_headers=PROOF) as ws:
    ws.send({"type": "resize", "width": 71, "height": 8})
    ws.send({"type": "input", "data": TYPED})
    for event in ws:
        last = event.type
        if last == "output":
            said += base64.b64decode(event.data)
        if last == "closed":
            break
"""
    sdk.run(
        """
import base64
WHICH = dict(machine_id=MACHINE, terminal_id=t.terminal_id)
PROOF = {"Authorization": f"Bearer {client.api_key}"}
"""
    )
    # This version sends no key with the upgrade by itself, wherever it goes.
    with pytest.raises(Raised) as refused:
        sdk.worker.run(f"PROOF, GIVEN = {{}}, PROOF\n{talk}", TYPED=TYPED)
    assert refused.value.kind == "InvalidStatus" and "401" in refused.value.text
    sdk.worker.run(f"PROOF = GIVEN\n{talk}", 60)
    text = base64.b64decode(sdk.value("said")["bytes"])
    assert b"42\r\n" in text and b"8 71" in text and b"/tmp" in text
    assert sdk.value("last") == "closed"
    sdk.run(
        """
t = ~client.machines.terminals.create(machine_id=MACHINE, width=80, height=24)
gone = ~client.machines.terminals.delete(machine_id=MACHINE, terminal_id=t.terminal_id)
"""
    )
    assert sdk.value("gone.status") == "closed"
    of = ("create", "retrieve", "list", "delete")
    sdk.records(*(f"terminals.{each}" for each in of))
    sdk.records(
        "terminals.connect",
        note="with extra_headers={'Authorization': 'Bearer <key>'}: this version sends no key with a WebSocket itself",
    )


def test_a_plain_socket_opens_stream_url(sdk: Sdk, machine: str) -> None:
    """As the service's own cookbook does from a browser: no header, bytes both ways."""
    if sdk.version != "0.4.0" or sdk.awaited:
        return
    sdk.run(
        """
from websockets.sync.client import connect
t = client.machines.terminals.create(machine_id=MACHINE, width=80, height=24)
text = b""
with connect(t.stream_url) as ws:
    ws.send(json.dumps({"cols": 66, "rows": 9}))
    ws.send(b"stty size; echo over-$((1+1))\\n")
    while b"over-2" not in text:
        text += ws.recv(timeout=20)
client.machines.terminals.delete(machine_id=MACHINE, terminal_id=t.terminal_id)
""",
        60,
        MACHINE=machine,
    )
    assert b"9 66" in base64.b64decode(sdk.value("text")["bytes"])
    failure = raised(
        sdk,
        """
with connect(t.stream_url[:-4] + "AAAA") as ws:
    pass
""",
    )
    assert failure.kind == "InvalidStatus" and "401" in failure.text
    sdk.records("stream_url, opened by a plain WebSocket")


def test_previews(sdk: Sdk, machine: str, daemon: Daemon) -> None:
    if sdk.version != "0.4.0":
        return
    port = 8100 + sdk.awaited
    serve = f"cd /etc && exec python3 -m http.server {port} >/dev/null 2>&1"
    sdk.run(
        """
serving = ~client.machines.executions.create(machine_id=MACHINE, command=["sh", "-c", SERVE])
p = ~client.machines.previews.create(machine_id=MACHINE, port=PORT, protocol="http", visibility="public")
again = ~client.machines.previews.retrieve(machine_id=MACHINE, preview_id=p.preview_id)
listed = [each.preview_id EACH each in client.machines.previews.list(machine_id=MACHINE)]
""",
        MACHINE=machine,
        SERVE=serve,
        PORT=port,
    )
    assert sdk.value("(p.status, p.port, p.visibility, again == p, listed == [p.preview_id])") == [
        "ready",
        port,
        "public",
        True,
        True,
    ]
    url = httpx.URL(sdk.value("p.url"))
    until = time.monotonic() + 20
    while True:
        head = {"host": f"{url.host}:{url.port}"}
        seen = httpx.get(f"{daemon.url}/hostname", headers=head, trust_env=False, timeout=10)
        if seen.status_code == 200 or time.monotonic() > until:
            break
        time.sleep(0.2)
    assert seen.status_code == 200 and seen.text.strip(), seen.text
    assert (
        raised(sdk, "~client.machines.previews.create(machine_id=MACHINE, port=PORT)").kind
        == "ConflictError"
    )
    sdk.run(
        """
gone = ~client.machines.previews.delete(machine_id=MACHINE, preview_id=p.preview_id)
~client.machines.executions.delete(machine_id=MACHINE, execution_id=serving.execution_id)
"""
    )
    assert sdk.value("gone.status") == "closed"
    sdk.records(
        "previews.create",
        outcome="differs",
        note="visibility org is private, which whoever has a key of the tenant may open; protocol https is not served",
    )
    sdk.records(*(f"previews.{each}" for each in ("retrieve", "list", "delete")))


@pytest.fixture(scope="module")
def ssh_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ssh") / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def test_ssh(sdk: Sdk, machine: str, daemon: Daemon, ssh_key: Path) -> None:
    with daemon.http() as http:
        if not http.get("/v1/ssh").json()["enabled"]:
            pytest.skip("the port of SSH is taken by another daemon: set ROOST_SSH_PORT")
    sdk.run(
        """
s = ~client.machines.ssh.create(machine_id=MACHINE, public_key=KEY)
again = ~client.machines.ssh.retrieve(machine_id=MACHINE, session_id=s.session_id)
listed = [each.session_id EACH each in client.machines.ssh.list(machine_id=MACHINE)]
""",
        MACHINE=machine,
        KEY=ssh_key.with_suffix(".pub").read_text(),
    )
    assert sdk.value("(s.status, again == s, listed == [s.session_id])") == ["ready", True, True]
    to = sdk.value("s.connection")
    options = ["UserKnownHostsFile=/dev/null", "StrictHostKeyChecking=no", "BatchMode=yes"]
    command = ["ssh", "-F", "none", "-i", str(ssh_key), "-p", str(to["port"])]
    for each in (*options, "IdentitiesOnly=yes", "IdentityAgent=none", "LogLevel=ERROR"):
        command += ["-o", each]
    where = f"{to['ssh_username']}@{to['endpoint']}"
    done = subprocess.run([*command, where, "echo in"], capture_output=True, timeout=60)
    assert done.stdout == b"in\n", done.stderr
    sdk.run("gone = ~client.machines.ssh.delete(machine_id=MACHINE, session_id=s.session_id)")
    assert sdk.value("gone.status") == "closed"
    assert subprocess.run([*command, where, "true"], capture_output=True, timeout=60).returncode
    assert (
        raised(
            sdk, "~client.machines.ssh.retrieve(machine_id=MACHINE, session_id=s.session_id)"
        ).kind
        == "NotFoundError"
    )
    sdk.records(
        "ssh.create",
        outcome="differs",
        note="the key opens every machine of the tenant until the session is deleted; no certificates, so the client "
        "signs with its own key and there is no host_trust",
    )
    sdk.records(*(f"ssh.{each}" for each in ("retrieve", "list", "delete")))


def test_usage(sdk: Sdk, machine: str) -> None:
    if sdk.version != "0.4.0":
        return
    sdk.run(
        """
used = ~client.usage.retrieve()
compute = ~client.usage.machine_compute(machine_id=MACHINE, granularity="day")
storage = ~client.usage.machine_storage(machine_id=MACHINE)
""",
        MACHINE=machine,
    )
    assert sdk.value("used.provisioned_storage_gib") >= 2
    assert sdk.value("used.billed_memory_mib_seconds") > 0
    (row,) = sdk.value("compute.rows")
    assert (row["machine_id"], row["requested_memory_mib"]) == (machine, 512)
    assert row["cpu_millicore_seconds"] >= 1000 * row["awake_seconds"] > 0
    assert sdk.value("compute.granularity") == "day"
    assert all(each["machine_id"] == machine for each in sdk.value("storage.rows"))
    sdk.records(
        "usage.retrieve", outcome="differs", note="nothing is billed: what was used is told"
    )
    sdk.records("usage.machine_compute", outcome="differs", note="rows of days, never of hours")
    sdk.records("usage.machine_storage", outcome="differs", note="rows of days")


ABSENT = {
    "0.4.0": {
        "artifacts.list": "[each EACH each in client.machines.artifacts.list(machine_id=MACHINE)]",
        "artifacts.retrieve": "~client.machines.artifacts.retrieve(machine_id=MACHINE, artifact_id='a')",
        "artifacts.delete": "~client.machines.artifacts.delete(machine_id=MACHINE, artifact_id='a')",
    },
    "0.6.0": {
        "executions.logs.retrieve": "~client.machines.executions.logs.retrieve(machine_id=MACHINE, execution_id='e')",
        "executions.logs.create_token": "~client.machines.executions.logs.create_token(machine_id=MACHINE, execution_id='e')",
        "executions.logs.reauthorize": "~client.machines.executions.logs.reauthorize(machine_id=MACHINE, execution_id='e')",
        "autoresizing.retrieve": "~client.machines.autoresizing.retrieve(machine_id=MACHINE)",
        "autoresizing.update": "~client.machines.autoresizing.update(machine_id=MACHINE, enabled=True)",
        "organization.autoresizing.retrieve": "~client.organization.autoresizing.retrieve()",
        "organization.autoresizing.update": "~client.organization.autoresizing.update(enabled=True)",
    },
}


def test_what_is_not_served_says_so_at_once(sdk: Sdk, machine: str) -> None:
    for method, code in ABSENT[sdk.version].items():
        begun = time.monotonic()
        failure = raised(sdk, code, MACHINE=machine)
        assert failure.kind == "InternalServerError", (method, failure)
        body = failure.fields["body"]
        assert (failure.fields["status_code"], body["error_code"]) == (501, "UNSUPPORTED")
        assert body["retryable"] is False and time.monotonic() - begun < 0.45, method
        sdk.records(method, outcome="not served", note=body["message"])


def test_each_refusal_is_its_own_exception(sdk: Sdk, machine: str, daemon: Daemon) -> None:
    def check(code: str, kind: str, status: int, error_code: str, **given: object) -> None:
        begun = time.monotonic()
        failure = raised(sdk, code, MACHINE=machine, **given)
        assert (failure.kind, failure.fields.get("status_code")) == (kind, status), failure
        assert failure.fields["body"]["error_code"] == error_code
        assert time.monotonic() - begun < 0.45, f"{error_code} was tried again"

    one = "~client.machines.retrieve(machine_id={})"
    check(
        "~client.with_options(api_key='dsk_' + '0' * 64).machines.retrieve(machine_id=MACHINE)",
        "AuthenticationError", 401, "AUTH_INVALID",
    )  # fmt: skip
    check(one.format("'no-such-machine'"), "NotFoundError", 404, "MACHINE_NOT_FOUND")
    check(
        "~client.machines.executions.retrieve(machine_id=MACHINE, execution_id='none')",
        "NotFoundError", 404, "EXECUTION_NOT_FOUND",
    )  # fmt: skip
    check(
        "~client.machines.update(machine_id=MACHINE, autosleep='soon')",
        "UnprocessableEntityError", 422, "VALIDATION_FAILED",
    )  # fmt: skip
    check(
        "~client.machines.update(machine_id=MACHINE, autosleep='1h', extra_headers={'If-Match': '\"99999\"'})",
        "APIStatusError", 412, "REVISION_MISMATCH",
    )  # fmt: skip
    key = f"test-{sdk.version}-{sdk.awaited}-{time.time()}"
    sdk.run(
        "~client.machines.wake(machine_id=MACHINE, idempotency_key=KEY)", KEY=key, MACHINE=machine
    )
    check(
        "~client.machines.sleep(machine_id=MACHINE, idempotency_key=KEY)",
        "ConflictError", 409, "IDEMPOTENCY_KEY_REUSED",
    )  # fmt: skip
    with daemon.http() as http:
        label = f"small-{sdk.version.replace('.', '')}-{int(sdk.awaited)}"
        asked = {"name": label, "quotas": {"machines": 0}}
        tenant = http.post("/v1/tenants", json=asked).raise_for_status().json()
        made = http.post("/v1/keys", json={"name": "k", "tenant": label}).raise_for_status().json()
        key = f"dsk_{made['key'].rpartition('_')[2]}"
        try:
            check(
                "~client.with_options(api_key=KEY).machines.create(**SIZE, extra_body=dict(driver='gvisor'))",
                "RateLimitError", 429, "QUOTA_EXCEEDED", KEY=key,
            )  # fmt: skip
            check(
                "~client.with_options(api_key=KEY).machines.retrieve(machine_id=MACHINE)",
                "NotFoundError", 404, "MACHINE_NOT_FOUND", KEY=key,
            )  # fmt: skip
        finally:
            http.delete(f"/v1/tenants/{tenant['tenant_id']}")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        failure = raised(
            sdk,
            "~client.with_options(base_url=URL, timeout=0.3, max_retries=0).machines.retrieve(machine_id=MACHINE)",
            URL=f"http://127.0.0.1:{silent.getsockname()[1]}",
        )
    assert failure.kind == "APITimeoutError"
    sdk.records("exceptions: authentication, not found, conflict, validation, quota, timeout")


def test_x_api_key(sdk: Sdk, machine: str, at: dict[str, str]) -> None:
    name = "AsyncDedalus" if sdk.awaited else "Dedalus"
    sdk.worker.run(
        f"import os; key = os.environ.pop('DEDALUS_API_KEY')\n"
        f"plain = {name}(x_api_key=key); os.environ['DEDALUS_API_KEY'] = key"
    )
    found = sdk.worker.value(
        f"({'await ' if sdk.awaited else ''}plain.machines.retrieve(machine_id=MACHINE)).machine_id",
        MACHINE=machine,
    )
    assert found == machine
