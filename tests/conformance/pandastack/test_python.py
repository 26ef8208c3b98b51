"""Every method of the Python client that is in scope."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from tests.system.conftest import Daemon

from .conftest import COUNT, COUNTER, Sdk

SERVER = "nohup python3 -m http.server 8123 --bind 127.0.0.1 --directory /srv >/dev/null 2>&1 &"


def count(sdk: Sdk, name: str) -> int:
    """Of the counter that runs in the sandbox of that name in the worker."""
    return int(sdk.value(f"{name}.exec(COUNT, timeout_seconds=20, check=True).stdout", COUNT=COUNT))


def test_made_found_and_killed(sdk: Sdk) -> None:
    sdk.run("m = Sandbox.create(template='base', metadata={'user': '42'}, ttl_seconds=900)")
    assert sdk.value("(m.status, m.template, m.metadata)") == ["running", "base", {"user": "42"}]
    assert sdk.value("m.cpu >= 1 and m.memory_mb > 0 and m.boot_ms >= 0 and bool(m.created_at)")
    assert sdk.value("m.id in [each.id for each in Sandbox.list()]")
    assert sdk.value("Sandbox.get(m.id).metadata") == {"user": "42"}
    assert sdk.value("m.lifecycle()['ttl_seconds']") == 900
    assert sdk.value("m.set_ttl(1200)['ttl_seconds']") == 1200
    assert sdk.value("m.set_persistent(True)['persistent']") is True
    assert sdk.value("m.refresh().persistent") is True
    sdk.run("m.kill()")
    assert sdk.raises("Sandbox.get(m.id)").kind == "NotFoundError"
    assert sdk.raises("m.kill()").kind == "NotFoundError"
    assert not sdk.value("m.id in [each.id for each in client.sandboxes.list()]")
    sdk.run("with box() as w: said = w.exec('echo in').stdout")
    assert sdk.value("said") == "in\n"
    assert sdk.raises("client.sandboxes.get(w.id)").kind == "NotFoundError"
    sdk.records(
        "Sandbox.create", "Sandbox.list", "Sandbox.get", "Sandbox.kill", "Sandbox.lifecycle",
        "Sandbox.set_ttl", "Sandbox.set_persistent", "Sandbox.refresh", "Sandbox (context manager)",
        "client.sandboxes.create", "client.sandboxes.list", "client.sandboxes.get", "client.sandboxes.delete",
    )  # fmt: skip


def test_commands(sdk: Sdk, box: str) -> None:
    sdk.run("r = b.exec('echo out; echo err >&2; exit 3')")
    assert sdk.value("(r.stdout, r.stderr, r.exit_code)") == ["out\n", "err\n", 3]
    failed = sdk.raises("b.exec('echo no >&2; exit 4', check=True)")
    assert failed.kind == "CommandFailed"
    assert (failed.fields["exit_code"], failed.fields["stderr"]) == (4, "no\n")
    begun = time.monotonic()
    assert sdk.raises("b.exec('sleep 60', timeout_seconds=1)").kind == "SandboxTimeout"
    assert time.monotonic() - begun < 40
    assert sdk.value("b.commands.run('pwd').stdout") == "/root\n"
    assert sdk.value("b.exec('a=(1 2 3); echo ${#a[@]}').stdout") == "3\n"  # bash
    assert sdk.value("b.run_code('print(6 * 7)').stdout") == "42\n"
    assert sdk.value("b.run_code('echo $0', language='bash').exit_code") == 0
    sdk.run("""
heard, errors = [], []
code = b.exec_stream(r"printf '\\xe2\\x82'; sleep 0.3; printf '\\xac\\n'; echo e >&2; exit 5", heard.append, errors.append)
""")
    assert sdk.value("(''.join(heard), ''.join(errors), code)") == ["€\n", "e\n", 5]
    timed = sdk.raises("b.exec_stream('sleep 60', timeout_seconds=1)")
    assert timed.kind == "SandboxTimeout"
    sdk.records(
        "Sandbox.exec", "Sandbox.exec_stream", "Sandbox.commands.run", "Sandbox.run_code"
    )  # fmt: skip


def test_a_stream_whose_sandbox_ends_is_no_success(sdk: Sdk) -> None:
    sdk.run("""
import threading
e, begun = box(), threading.Event()
threading.Thread(target=lambda: begun.wait(60) and e.kill()).start()
""")
    cut = sdk.raises("e.exec_stream('echo begun; sleep 60', lambda _: begun.set())")
    assert cut.kind in ("ServerError", "ExecInterrupted")
    sdk.records(
        "ExecInterrupted",
        outcome="differs",
        note="a sandbox that ends under its command is told as ServerError: a stream without a word at its end would be"
        " a success to the TypeScript client",
    )


def test_files(sdk: Sdk, box: str, tmp_path: Path) -> None:
    data = bytes(range(256)) * 4000
    (tmp_path / "up").write_bytes(data)
    sdk.run("b.filesystem.upload(UP, '/work/deep/data')", UP=str(tmp_path / "up"))
    said = sdk.value("b.filesystem.read('/work/deep/data')")
    assert base64.b64decode(said["bytes"]) == data
    sdk.run("b.filesystem.download('/work/deep/data', DOWN)", DOWN=str(tmp_path / "down"))
    assert (tmp_path / "down").read_bytes() == data
    sdk.run("b.filesystem.write('/work/grüße.txt', 'hallo')")
    assert sdk.value("[(e.name, e.is_dir, e.size) for e in b.filesystem.listdir('/work')]") == [
        ["deep", True, sdk.value("b.filesystem.stat('/work/deep').size")],
        ["grüße.txt", False, 5],
    ]
    stat = sdk.value(
        "(lambda s: (s.name, s.path, s.is_dir, s.size, s.mode, s.mtime))(b.filesystem.stat('/work/grüße.txt'))"
    )
    assert stat[:4] == ["grüße.txt", "/work/grüße.txt", False, 5]
    assert stat[4].startswith("-rw") and abs(stat[5] - time.time()) < 300
    assert sdk.value("(b.filesystem.exists('/work/deep'), b.filesystem.exists('/none'))") == [
        True,
        False,
    ]
    walked = sdk.value(
        "[(d, [f.name for f in files]) for d, _, files in b.filesystem.walk('/work')]"
    )
    assert walked == [["/work", ["grüße.txt"]], ["/work/deep", ["data"]]]
    assert sdk.raises("b.filesystem.read('/none')").kind == "NotFoundError"
    assert sdk.raises("b.filesystem.read('relative')").kind == "BadRequestError"
    sdk.records(*(f"Sandbox.filesystem.{each}" for each in (
        "read", "write", "upload", "download", "listdir", "stat", "exists", "walk"
    )))  # fmt: skip


def test_memory_goes_on_through_pause_and_hibernation(sdk: Sdk) -> None:
    sdk.run("p = box(persistent=True)")
    try:
        sdk.run("p.exec(COUNTER, check=True)", COUNTER=COUNTER)
        last = count(sdk, "p")
        for down, status, up in (
            ("pause", "paused", "resume"),
            ("hibernate", "hibernated", "wake"),
        ):
            sdk.run(f"p.{down}()")
            assert sdk.value("p.refresh().status") == status
            sdk.run(f"p.{down}()")  # again: nothing happens
            sdk.run(f"p.{up}()")
            assert sdk.value("p.refresh().status") == "running"
            now = count(sdk, "p")
            assert now > last
            last = now
            sdk.run(f"p.{down}()")
            assert count(sdk, "p") > last  # a command wakes it
            last = count(sdk, "p")
    finally:
        sdk.run("p.kill()")
    sdk.records(*(f"Sandbox.{each}" for each in ("pause", "resume", "hibernate", "wake")))


def test_forks_and_snapshots_go_on_from_memory(sdk: Sdk) -> None:
    sdk.run("p = box(metadata={'a': 'b'})")
    try:
        sdk.run("p.exec(COUNTER, check=True)", COUNTER=COUNTER)
        before = count(sdk, "p")
        sdk.run("f = p.fork(metadata={'c': 'd'})")
        assert sdk.value("(f.metadata['c'], f.metadata['fork_parent_id'] == p.id)") == ["d", True]
        assert sdk.value("(f.template, f.status)") == ["base", "running"]
        assert count(sdk, "f") > before and count(sdk, "p") > before
        sdk.run("f.kill(); s = p.snapshot()")
        assert sdk.value(
            "[x['sandbox_id'] == p.id for x in client.snapshots.list() if x['id'] == s]"
        ) == [True]
        assert sdk.value("[x['id'] == s for x in client.snapshots.list(sandbox_id=p.id)]") == [True]
        assert sdk.value("client.snapshots.get(s)['template']") == "base"
        sdk.run("q = client.sandboxes.create(from_snapshot=s, ttl_seconds=900)")
        assert sdk.value("q.from_snapshot == s")
        assert count(sdk, "q") > before
        sdk.run("q.kill(); client.snapshots.delete(s)")
        assert sdk.raises("client.snapshots.get(s)").kind == "NotFoundError"
    finally:
        sdk.run("p.kill()")
    sdk.records(
        "Sandbox.fork", "client.sandboxes.fork", "Sandbox.snapshot", "Sandbox.create(from_snapshot=)",
        "client.snapshots.list", "client.snapshots.get", "client.snapshots.delete",
    )  # fmt: skip


def test_the_best_of_a_tree(sdk: Sdk) -> None:
    sdk.run("p = box()")
    try:
        sdk.run("p.exec('mkdir -p /work; echo base >/work/x', check=True); kids = p.fork_tree(3)")
        assert sdk.value("len({k.id for k in kids})") == 3
        assert sdk.value("len({k.metadata['fork_tree_id'] for k in kids})") == 1
        assert sdk.value("[k.exec('cat /work/x').stdout for k in kids]") == ["base\n"] * 3
        sdk.run("said = kids[1].promote(cleanup_siblings=True)")
        assert sdk.value(
            "said['winner'] == kids[1].id and set(said['deleted']) == {kids[0].id, kids[2].id}"
        )
        assert sdk.value("(said['failures'], kids[1].refresh().status)") == [{}, "running"]
        assert sdk.raises("kids[0].refresh()").kind == "NotFoundError"
        sdk.run("kids[1].kill()")
        assert sdk.raises("p.fork_tree(17)").kind == "BadRequestError"
        # Their own orchestration of it.
        sdk.run(
            """
r = p.explore(
    ["echo slow >/work/x; exit 1", "echo good >/work/x; echo PASS", Candidate.call("fn", lambda sb: sb.exec("true"))],
    score_fn=lambda sb, o: 1.0 if "PASS" in o.stdout_tail else 0.5,
)
"""
        )
        assert sdk.value("r.winner.exec('cat /work/x').stdout") == "good\n"
        assert sdk.value("(len(r.reaped), r.reap_failures, r.errors)") == [2, {}, []]
        assert "/work/x" in sdk.value("r.winner_outcome.files_changed")
        left = sdk.value(
            "[each.id for each in Sandbox.list() if each.metadata.get('fork_parent_id') == p.id]"
        )
        assert left == [sdk.value("r.winner.id")]
        sdk.run("r.winner.kill()")
    finally:
        sdk.run("p.kill()")
    sdk.records(
        "Sandbox.fork_tree", "Sandbox.promote", "Sandbox.explore",
        "client.sandboxes.fork_tree", "client.sandboxes.promote",
    )  # fmt: skip


def test_ports_and_previews(sdk: Sdk, box: str, daemon: Daemon, at: dict[str, str]) -> None:
    sdk.run("b.exec('mkdir -p /srv; echo served >/srv/f'); b.exec(SERVER)", SERVER=SERVER)
    deadline = time.monotonic() + 60
    while "8123" not in (urls := sdk.value("b.preview_urls()")):
        assert time.monotonic() < deadline, urls
        time.sleep(0.2)
    url = urls["8123"]
    assert url == sdk.value("b.preview_url(8123)")
    host = url.removeprefix("https://")
    assert host == f"8123-{box}.{at['PANDASTACK_PREVIEW_HOST']}"
    with httpx.Client(base_url=daemon.url, trust_env=False, timeout=30) as http:
        # By the host alone, as the id is the credential; and by the path with the key.
        assert http.get("/f", headers={"host": host}).text == "served\n"
        assert http.get("/f", headers={"host": f"9-{box}.localhost"}).status_code == 502
        key = {"authorization": f"Bearer {at['PANDASTACK_API_KEY']}"}
        path = f"/v1/sandboxes/{box}/proxy/8123/f"
        assert http.get(path, headers=key).text == "served\n"
        assert http.get(path).status_code == 401
        closed = http.get(f"/v1/sandboxes/{box}/proxy/9/", headers=key)
        assert closed.status_code == 502 and list(closed.json()) == ["error"]
        ports = http.get(f"/v1/sandboxes/{box}/ports", headers=key).json()
        assert [p["addresses"] for p in ports if p["port"] == 8123] == [["127.0.0.1"]]
        assert 7111 not in [p["port"] for p in ports]
    sdk.records("Sandbox.preview_url", "Sandbox.preview_urls")


def test_shells_and_many_commands_by_websocket(
    box: str, daemon: Daemon, at: dict[str, str], sdk: Sdk
) -> None:
    """No method of this client: what is written down of its protocol."""
    base = daemon.url.replace("http", "ws") + f"/v1/sandboxes/{box}"
    key = {"Authorization": f"Bearer {at['PANDASTACK_API_KEY']}"}
    for way, resize in (
        ("exec/pty", {"resize": {"rows": 33, "cols": 101}}),
        ("ssh", {"type": "resize", "rows": 33, "cols": 101}),
    ):
        with connect(f"{base}/{way}?rows=20&cols=70", additional_headers=key, proxy=None) as ws:
            ws.send(json.dumps(resize))
            ws.send(b"sleep 0.2; stty size; exit 7\n")
            shown, said = b"", None
            for message in ws:
                if isinstance(message, bytes):
                    shown += message
                else:
                    said = json.loads(message)
            assert b"33 101" in shown and said == {"exit": 7}
    with connect(f"{base}/exec/ws", additional_headers=key, proxy=None) as ws:
        ws.send(json.dumps({"id": "1", "cmd": "echo one; exit 2"}))
        ws.send(json.dumps({"id": "2", "cmd": "sleep 60", "timeout_seconds": 60}))
        found = [json.loads(ws.recv(20)), json.loads(ws.recv(20))]
        assert found == [{"id": "1", "stream": "stdout", "data": "one\n"}, {"id": "1", "exit": 2}]
        ws.send(json.dumps({"id": "2", "cancel": True}))
        assert json.loads(ws.recv(20)) == {"id": "2", "exit": 137}
    sdk.records("WebSocket /exec/pty", "WebSocket /ssh", "WebSocket /exec/ws")


def test_logs(sdk: Sdk, box: str) -> None:
    assert any("running" in line for line in sdk.value("list(b.logs())"))
    assert sdk.value("next(b.logs(follow=True))")
    sdk.records(
        "Sandbox.logs",
        outcome="differs",
        note="what the template starts says, and the sandbox's own life, instead of its console",
    )


def test_who_asks(sdk: Sdk) -> None:
    assert sdk.value("client.me()['workspace']")
    sdk.run("t = client.tokens.create('conformance', expires_in_days=1)")
    assert sdk.value("t.token.startswith('pds_') and t.name == 'conformance'")
    assert sdk.value("t.prefix in [each.prefix for each in client.tokens.list()]")
    assert sdk.value("bool(Client(api_key=t.token).me())")
    sdk.run("client.tokens.revoke(t.prefix)")
    assert sdk.raises("Client(api_key=t.token).me()").kind == "AuthError"
    sdk.records("client.me", "client.tokens.list", "client.tokens.create", "client.tokens.revoke")


def test_templates(sdk: Sdk, daemon: Daemon) -> None:
    assert "base" in sdk.value("[t.name for t in client.templates.list()]")
    assert sdk.value("(lambda t: (t.name, t.is_global))(client.templates.get('base'))") == [
        "base",
        True,
    ]
    assert sdk.raises("client.templates.get('no-such')").kind == "NotFoundError"
    sdk.run(
        """
import pathlib, tempfile
context = pathlib.Path(tempfile.mkdtemp())
(context / "app").mkdir()
(context / "app" / "hello").write_bytes(b"hello\\0")
made = client.templates.build_from_dockerfile(
    "conformance", "FROM base\\nCOPY app /app\\nRUN echo built >/built\\n", context_dir=str(context), memory_mb=512
)
lines = list(client.templates.build_logs(made.id))
done = client.templates.wait_for_build(made.id, poll_interval=0.2, timeout_seconds=200)
""",
        timeout=240,
    )
    assert sdk.value("(done.name, done.status)") == ["conformance", "done"]
    assert any("RUN echo built" in line for line in sdk.value("lines"))
    assert sdk.value("made.id in [each.id for each in client.templates.builds()]")
    sdk.run("n = box(template='conformance')")
    try:
        assert sdk.value("n.exec('cat /built; wc -c </app/hello').stdout") == "built\n6\n"
        assert sdk.value("(n.template, n.memory_mb)") == ["conformance", 512]
        assert (
            sdk.raises("client.templates.delete('conformance')").kind == "BadRequestError"
        )  # in use
    finally:
        sdk.run("n.kill()")
    sdk.run("bad = client.templates.build_from_dockerfile('broken', 'FROM base\\nRUN exit 3\\n')")
    failed = sdk.raises("client.templates.wait_for_build(bad.id, poll_interval=0.2)")
    assert failed.kind == "TemplateBuildError"
    assert (
        sdk.raises("client.templates.build_from_dockerfile('x', 'NONSENSE')").kind
        == "BadRequestError"
    )
    assert sdk.raises("client.templates.delete('base')").kind == "BadRequestError"
    sdk.records(*(f"client.templates.{each}" for each in (
        "list", "get", "delete", "builds", "get_build", "build_from_dockerfile", "build_logs", "wait_for_build"
    )))  # fmt: skip
    sdk.run("""
made = client.templates.register("conformance-image", "base", memory_mb=512)
done = client.templates.wait_for_build(made.id, poll_interval=0.2)
""")
    assert sdk.value("client.templates.get('conformance-image').memory_mb") == 512
    sdk.run("client.templates.delete('conformance-image')")
    sdk.records("client.templates.register")
    refused = sdk.raises(
        "(context / 'r.tar').write_bytes(b'x'); client.templates.build('x', rootfs_tar=str(context / 'r.tar'))"
    )
    assert refused.kind == "ServerError" and "does not serve" in refused.text
    sdk.records(
        "client.templates.build", outcome="not served", note="archives of root file systems: build from a Dockerfile"
    )  # fmt: skip
    with daemon.http() as http:  # a machine in its first hour after its end still has its template
        http.delete("/v1/templates/conformance")


def test_code_sessions(sdk: Sdk, templates: Callable[[str], str]) -> None:
    templates("code-interpreter")
    sdk.run("c = Sandbox.create(ttl_seconds=900)", timeout=240)  # their default template
    try:
        sdk.run("ctx = c.create_code_context(); ctx.run_code('x = 41')", timeout=120)
        assert sdk.value("ctx.run_code('x + 1').text") == "42"
        sdk.run("r = ctx.run_code('import sys; print(1); print(2, file=sys.stderr); 1/0')")
        assert sdk.value("(r.stdout, r.stderr, 'ZeroDivisionError' in r.error, r.exit_code != 0)") == [
            "1\n", "2\n", True, True,
        ]  # fmt: skip
        plot = "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()"
        png = sdk.value("ctx.run_code(PLOT).png", PLOT=plot)
        assert base64.b64decode(png).startswith(b"\x89PNG")
        slow = sdk.raises("ctx.run_code('import time; time.sleep(60)', timeout_seconds=1)")
        assert slow.kind == "SandboxTimeout"
        assert sdk.value("ctx.run_code('x').text") == "41"
        sdk.run("ctx.close()")
        with_other = "with c.create_code_context() as o: gone = o.run_code('x').error"
        sdk.run(with_other)
        assert "NameError" in sdk.value("gone")
    finally:
        sdk.run("c.kill()")
    sdk.records("Sandbox.create_code_context", "CodeContext.run_code", "CodeContext.close")


def test_volumes(sdk: Sdk) -> None:
    sdk.run("v = client.volumes.create('conformance', 1024)")
    try:
        assert sdk.value("(v['name'], v['size_mb'])") == ["conformance", 1024]
        assert sdk.value("'conformance' in [each['name'] for each in client.volumes.list()]")
        assert sdk.value("client.volumes.get('conformance') == v")
        sdk.run("p = box(volumes=[{'name': 'conformance'}])")
        sdk.run("p.exec('echo kept >/mnt/conformance/file && sync', check=True)")
        assert sdk.raises("client.volumes.delete('conformance')").kind == "BadRequestError"
        assert sdk.raises("box(volumes=[{'name': 'conformance'}])").kind == "BadRequestError"
        sdk.run("p.kill()")
        sdk.run("p = box(volumes=[{'name': 'conformance', 'read_only': True}])")
        sdk.run("q = box(volumes=[{'name': 'conformance', 'readOnly': True}])")
        for name in "pq":
            assert sdk.value(f"{name}.exec('cat /mnt/conformance/file').stdout") == "kept\n"
            assert sdk.value(f"{name}.exec('touch /mnt/conformance/x').exit_code") != 0
        sdk.run("p.kill(); q.kill()")
        assert sdk.raises("box(volumes=[{'name': 'none'}])").kind == "NotFoundError"
    finally:
        sdk.run("client.volumes.delete('conformance')")
    assert sdk.raises("client.volumes.get('conformance')").kind == "NotFoundError"
    sdk.records(
        "client.volumes.create",
        outcome="differs",
        note="whole GiB; a sandbox has it under /mnt/{name}, and boots rather than going on from a snapshot's memory",
    )
    sdk.records(
        "client.volumes.list", "client.volumes.get", "client.volumes.delete", "Sandbox.create(volumes=)"
    )  # fmt: skip


def test_what_is_not_served(sdk: Sdk) -> None:
    for call in ("apps.list", "functions.list", "schedules.list", "databases.list"):
        refused = sdk.raises(f"client.{call}()")
        assert refused.kind == "ServerError" and "does not serve" in refused.text
        name = call.partition(".")[0]
        sdk.records(f"client.{name}", outcome="not served", note="sandboxes are what Roost has")


def test_bad_input(sdk: Sdk, box: str, daemon: Daemon) -> None:
    wrong = "Client(api_key=KEY).sandboxes.list()"
    for key in ("pds_" + "0" * 64, "nonsense"):
        assert sdk.raises(wrong, KEY=key).kind == "AuthError"
    for call in (
        "exec('true')",
        "filesystem.read('/x')",
        "pause()",
        "fork()",
        "lifecycle()",
        "snapshot()",
    ):
        assert (
            sdk.raises(f"Sandbox.from_dict({{'id': 'z' * 26}}, client).{call}").kind
            == "NotFoundError"
        )
    assert sdk.raises("box(template='no-such-template')").kind == "NotFoundError"
    assert sdk.raises("box(template='NOT A NAME')").kind == "BadRequestError"
    assert sdk.raises("box(metadata={'': 'x'})").kind == "BadRequestError"
    assert sdk.raises("box(ttl_seconds=-1)").kind == "BadRequestError"
    assert sdk.raises("client.sandboxes.create(from_snapshot='z' * 26)").kind == "NotFoundError"
    assert sdk.raises("b.exec('x' * 5_000_000)").kind == "BadRequestError"
    unreachable = sdk.raises("Client(api_url='http://127.0.0.1:9').me()")
    assert unreachable.kind == "ConnectionError"
    # A quota is no refusal that is worth sending again: it is raised at once.
    with daemon.http() as http:
        tenant = http.post("/v1/tenants", json={"name": "conformance-pds"}).json()
        try:
            http.patch(f"/v1/tenants/{tenant['tenant_id']}", json={"quotas": {"machines": 1}})
            made = http.post("/v1/keys", json={"name": "k", "tenant": tenant["tenant_id"]}).json()
            key = "pds_" + made["key"].rpartition("_")[2]
            sdk.run(
                "other = Client(api_key=KEY); one = other.sandboxes.create(template='base')",
                KEY=key,
            )
            begun = time.monotonic()
            full = sdk.raises("other.sandboxes.create(template='base')")
            assert full.kind == "BadRequestError" and time.monotonic() - begun < 40
            foreign = sdk.raises("other.sandboxes.get(b.id)")
            assert foreign.kind == "NotFoundError"
            sdk.run("one.kill()")
            # One to ask less often is: the client waits as long as it is told, and sends it again.
            at = f"/v1/tenants/{tenant['tenant_id']}"
            http.patch(at, json={"quotas": {"requests_per_second": 0.2, "request_burst": 1}})
            sdk.run(
                """
tries = []
patient = Client(api_key=KEY, on_create_retry=tries.append)
patient.me()
two = patient.sandboxes.create(template="base")
"""
            )
            status, wait_s = sdk.value("(tries[0].status_code, tries[0].retry_after_seconds)")
            assert status == 429 and 1 <= wait_s <= 5
            http.patch(at, json={"quotas": {"requests_per_second": 1000, "request_burst": 1000}})
            sdk.run("two.kill()")
        finally:
            http.delete(f"/v1/tenants/{tenant['tenant_id']}")
    sdk.records(
        "AuthError",
        "NotFoundError",
        "BadRequestError",
        "ServerError",
        "SandboxTimeout",
        "CommandFailed",
        "on_create_retry",
    )


@pytest.mark.long
def test_core_on_a_microvm(sdk: Sdk, daemon: Daemon) -> None:
    """Made natively, for their API knows no rungs."""
    with daemon.http(timeout=600) as http:
        made = http.post("/v1/machines", json={"driver": "qemu"}).raise_for_status().json()
    sdk.run("p = Sandbox.get(ID)", ID=made["machine_id"])
    try:
        sdk.run("p.exec(COUNTER, check=True)", COUNTER=COUNTER, timeout=240)
        counts = [count(sdk, "p")]
        for down, up in (("pause", "resume"), ("hibernate", "wake")):
            sdk.run(f"p.{down}(); p.{up}()", timeout=240)
            counts.append(count(sdk, "p"))
        assert counts[0] < counts[1] < counts[2]
        sdk.run("f = p.fork()", timeout=240)
        assert count(sdk, "f") > counts[2]
        assert (
            sdk.value("[x['port'] for x in client._request('GET', f'/sandboxes/{f.id}/ports')]")
            == []
        )
        sdk.run("f.kill()")
    finally:
        sdk.run("p.kill()")
