"""The TypeScript client: what it does otherwise than the Python one, and the same core."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import COUNT, COUNTER, Node


@pytest.fixture(scope="module")
def box(node: Node) -> Iterator[str]:
    """The id of one for whatever does not change it; ``g.b`` in Node."""
    yield str(node.run("g.b = await g.box({metadata: {user: '42'}}); return g.b.id"))
    node.run("await g.b.kill()")


def count(node: Node, name: str) -> int:
    said = node.run(
        f"return (await g.{name}.exec(g.COUNT, {{timeoutSeconds: 20, check: true}})).stdout",
        COUNT=COUNT,
    )
    return int(said)


def test_made_found_and_killed(node: Node, box: str) -> None:
    # Their default template is a name that we have for base.
    assert node.run("g.m = await g.Sandbox.create({}, g.client); return g.m.template") == "base"
    assert node.run("return (await g.Sandbox.get(g.m.id, g.client)).status") == "running"
    assert node.run("return (await g.Sandbox.list(g.client)).map(x => x.id)").count(box) == 1
    assert node.run("return (await g.m.setTtl(1200)).ttl_seconds") == 1200
    assert node.run("return (await g.m.setPersistent(true)).persistent") is True
    assert node.run("return (await g.m.lifecycle()).ttl_seconds") == 1200
    node.run("await g.m.kill()")
    assert node.raises("await g.client.sandboxes.get(g.m.id)").kind == "NotFoundError"
    node.records(
        "Sandbox.create", "Sandbox.get", "Sandbox.list", "Sandbox.kill", "Sandbox.setTtl", "Sandbox.setPersistent",
        "Sandbox.lifecycle", "client.sandboxes.create", "client.sandboxes.get", "client.sandboxes.list",
        "client.sandboxes.delete",
    )  # fmt: skip


def test_commands(node: Node, box: str) -> None:
    said = node.run("return await g.b.exec('echo out; echo err >&2; exit 3')")
    assert (said["stdout"], said["stderr"], said["exitCode"]) == ("out\n", "err\n", 3)
    assert node.raises("await g.b.exec('exit 4', {check: true})").kind == "CommandError"
    assert node.raises("await g.b.exec('sleep 60', {timeoutSeconds: 1})").kind == "SandboxTimeout"
    assert node.run("return (await g.b.commands.run('pwd')).stdout") == "/root\n"
    assert node.run("return (await g.b.runCode('print(6*7)', 'python')).stdout") == "42\n"
    assert node.run("return (await g.b.runCode('echo $((6*7))', 'shell')).stdout") == "42\n"
    streamed = node.run(
        "const o = [], e = []; const code = await g.b.execStream('echo a; sleep 0.2; echo b; echo c >&2; exit 5',"
        " {onStdout: x => o.push(x), onStderr: x => e.push(x)}); return [o.join(''), e.join(''), code]"
    )
    assert streamed == ["a\nb\n", "c\n", 5]
    assert (
        node.raises("await g.b.execStream('sleep 60', {timeoutSeconds: 1})").kind
        == "SandboxTimeout"
    )
    node.records("Sandbox.exec", "Sandbox.execStream", "Sandbox.commands.run", "Sandbox.runCode")


def test_files(node: Node, box: str, tmp_path: Path) -> None:
    (tmp_path / "up").write_text("grüße")
    fs = "g.b.filesystem"
    node.run(f"await {fs}.upload(g.UP, '/work/deep/up')", UP=str(tmp_path / "up"))
    assert node.run(f"return await {fs}.read('/work/deep/up')") == "grüße"
    node.run(f"await {fs}.download('/work/deep/up', g.DOWN)", DOWN=str(tmp_path / "down"))
    assert (tmp_path / "down").read_text() == "grüße"
    node.run(f"await {fs}.write('/work/bytes', new Uint8Array([0, 255, 10]))")
    assert node.run("return (await g.b.exec('od -An -tu1 /work/bytes')).stdout").split() == [
        "0",
        "255",
        "10",
    ]
    listed = node.run(f"return (await {fs}.list('/work')).map(x => [x.name, x.is_dir])")
    assert listed == [["bytes", False], ["deep", True]]
    assert node.run(f"return (await {fs}.stat('/work/bytes')).size") == 3
    assert node.run(f"return [await {fs}.exists('/work'), await {fs}.exists('/none')]") == [
        True,
        False,
    ]
    walked = node.run(
        f"const o = []; for await (const {{dir, files}} of {fs}.walk('/work')) o.push([dir, files.length]); return o"
    )
    assert walked == [["/work", 1], ["/work/deep", 1]]
    assert node.raises(f"await {fs}.read('/none')").kind == "NotFoundError"
    node.records(*(f"Sandbox.filesystem.{each}" for each in (
        "read", "write", "upload", "download", "list", "stat", "exists", "walk"
    )))  # fmt: skip


def test_memory_goes_on(node: Node) -> None:
    """Its bodies of forks and pauses are empty text."""
    node.run("g.p = await g.box({persistent: true, metadata: {a: 'b'}})")
    try:
        node.run("await g.p.exec(g.COUNTER, {check: true})", COUNTER=COUNTER)
        last = count(node, "p")
        for down, up in (("pause", "resume"), ("hibernate", "wake")):
            node.run(f"await g.p.{down}(); await g.p.{up}()")
            now = count(node, "p")
            assert now > last
            last = now
        node.run("g.f = await g.p.fork()")
        assert node.run("return g.f.info.metadata.a") == "b"
        assert count(node, "f") > last
        snapshot = node.run("await g.f.kill(); g.s = await g.p.snapshot(); return g.s")
        assert snapshot["sandbox_id"] == node.run("return g.p.id")
        node.run("g.q = await g.box({fromSnapshot: g.s.id})")
        assert count(node, "q") > last
        node.run("await g.q.kill()")
        ids = node.run(
            "return (await g.client.snapshots.list({sandbox_id: g.p.id})).map(x => x.id)"
        )
        assert ids == [snapshot["id"]]
        assert node.run("return (await g.client.snapshots.get(g.s.id)).template") == "base"
        node.run("await g.client.snapshots.delete(g.s.id)")
    finally:
        node.run("await g.p.kill()")
    node.records(
        "Sandbox.pause", "Sandbox.resume", "Sandbox.hibernate", "Sandbox.wake", "Sandbox.fork", "Sandbox.snapshot",
        "client.snapshots.list", "client.snapshots.get", "client.snapshots.delete",
    )  # fmt: skip


def test_the_best_of_a_tree(node: Node) -> None:
    node.run("g.p = await g.box()")
    try:
        said = node.run(
            "const kids = await g.p.forkTree({count: 2}); const r = await kids[0].promote({cleanupSiblings: true});"
            "await kids[0].kill(); return [r.winner === kids[0].id, r.deleted[0] === kids[1].id, r.deleted.length]"
        )
        assert said == [True, True, 1]
        explored = node.run(
            "const r = await g.p.explore(['exit 1', 'mkdir -p /work; echo good >/work/x']);"
            "const o = await r.winner.exec('cat /work/x'); await r.winner.kill(); return [o.stdout, r.reaped.length]"
        )
        assert explored == ["good\n", 1]
    finally:
        node.run("await g.p.kill()")
    node.records("Sandbox.forkTree", "Sandbox.promote", "Sandbox.explore")


def test_ports_logs_and_who_asks(node: Node, box: str, at: dict[str, str]) -> None:
    node.run("g.client.previewHost = g.HOST", HOST=at["PANDASTACK_PREVIEW_HOST"])
    node.run("await g.b.exec('nohup python3 -m http.server 8124 >/dev/null 2>&1 &')")
    deadline = time.monotonic() + 60
    while "8124" not in (urls := node.run("return await g.b.previewUrls()")):
        assert time.monotonic() < deadline, urls
        time.sleep(0.2)
    assert urls["8124"] == f"https://8124-{box}.{at['PANDASTACK_PREVIEW_HOST']}"
    assert node.run("return g.b.previewUrl(8124, 'http')") == urls["8124"].replace("https", "http")
    lines = node.run("const o = []; for await (const l of g.b.logs()) o.push(l); return o")
    assert any("running" in line for line in lines)
    assert node.run("for await (const l of g.b.logs({follow: true})) return l")
    assert node.run("return (await g.client.me()).workspace")
    token = node.run("return await g.client.tokens.create('conformance')")
    assert token["token"].startswith("pds_")
    assert token["prefix"] in node.run("return (await g.client.tokens.list()).map(x => x.prefix)")
    node.run("await g.client.tokens.revoke(g.P)", P=token["prefix"])
    names = node.run("return (await g.client.templates.list()).map(x => x.name)")
    assert "base" in names
    assert node.run("return (await g.client.templates.get('base')).is_global") is True
    node.records(
        "Sandbox.previewUrl", "Sandbox.previewUrls", "client.me", "client.tokens.list", "client.tokens.create",
        "client.tokens.revoke", "client.templates.list", "client.templates.get",
    )  # fmt: skip
    node.records(
        "Sandbox.logs", outcome="differs", note="the sandbox's own life instead of its console"
    )


def test_a_build(node: Node) -> None:
    said = node.run(
        "const made = await g.client.templates.buildFromDockerfile({name: 'conformance-node',"
        " dockerfile: 'FROM base\\nCOPY a/b /b\\nRUN echo built', context: {'a/b': 'in it'}});"
        "const lines = []; for await (const l of g.client.templates.buildLogs(made.id)) lines.push(l);"
        "const done = await g.client.templates.waitForBuild(made.id, {intervalMs: 200});"
        "const all = await g.client.templates.builds();"
        "await g.client.templates.delete('conformance-node');"
        "return [done.status, lines.some(l => l.includes('RUN echo built')), all.some(x => x.id === made.id)]",
        timeout=240,
    )
    assert said == ["done", True, True]
    refused = node.raises(
        "await g.client.templates.build({name: 'x', rootfs: new Uint8Array([0])})"
    )
    assert refused.kind == "ServerError" and "does not serve" in refused.text
    node.records(*(f"client.templates.{each}" for each in (
        "buildFromDockerfile", "buildLogs", "waitForBuild", "builds", "buildStatus", "delete"
    )))  # fmt: skip
    node.records("client.templates.build", outcome="not served", note="build from a Dockerfile")


def test_volumes(node: Node) -> None:
    made = node.run(
        "return await g.client.volumes.create({name: 'conformance-node', size_mb: 1024})"
    )
    try:
        assert (made["name"], made["size_mb"]) == ("conformance-node", 1024)
        assert node.run("return await g.client.volumes.get('conformance-node')") == made
        assert made in node.run("return await g.client.volumes.list()")
        said = node.run(
            "const v = await g.box({volumes: [{name: 'conformance-node', readOnly: false}]});"
            "const o = await v.exec('echo kept >/mnt/conformance-node/f && cat /mnt/conformance-node/f');"
            "await v.kill(); return o.stdout"
        )
        assert said == "kept\n"
    finally:
        node.run("await g.client.volumes.delete('conformance-node')")
    node.records(*(f"client.volumes.{each}" for each in ("create", "get", "list", "delete")))


def test_errors(node: Node) -> None:
    wrong = "await new g.Client({apiKey: 'pds_' + '0'.repeat(64)}).me()"
    assert node.raises(wrong).kind == "AuthError"
    missing = node.raises("await g.client.sandboxes.get('z'.repeat(26))")
    assert (missing.kind, missing.fields["statusCode"]) == ("NotFoundError", 404)
    assert node.raises("await g.box({ttlSeconds: -1})").kind == "BadRequestError"
    for name in ("apps", "functions", "schedules", "databases"):
        refused = node.raises(f"await g.client.{name}.list()")
        assert (refused.kind, refused.fields["statusCode"]) == ("ServerError", 501)
        node.records(f"client.{name}", outcome="not served", note="sandboxes are what Roost has")
    node.records(
        "AuthError",
        "NotFoundError",
        "BadRequestError",
        "ServerError",
        "SandboxTimeout",
        "CommandError",
    )


def test_its_command_line(node: Node, box: str) -> None:
    assert box in node.command("sandbox", "list")
    assert "42" in node.command("sandbox", "exec", box, "--", "echo $((6*7))")
    # Piped in: what is typed comes before the end of it closes the connection.
    shown = node.command("sandbox", "ssh", box, typed="echo shell-$((6*7)); exit\n", timeout=30)
    assert "shell-42" in shown
    node.records("CLI sandbox list", "CLI sandbox exec", "CLI sandbox ssh")
