"""The control plane, as the client of npm asks for it."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.conformance.foreign import NodeWorker, Raised
from tests.system.conftest import Daemon

from .conftest import node_records

COUNT = "bash -c 'i=0; while :; do i=$((i+1)); echo $i >/tmp/count.new; mv /tmp/count.new /tmp/count; sleep 0.05; done'"


def test_life_and_memory(node: NodeWorker, daemon: Daemon) -> None:
    id_ = node.run(
        """
g.box = await e2b.Sandbox.create({ ...g.opts, timeoutMs: 300_000, metadata: { node: "yes & no" }, envs: { A: "b" } });
return g.box.sandboxId;
"""
    )
    try:
        info = node.run(
            "const i = await g.box.getInfo(); return { ...i, ends: i.endAt - i.startedAt };"
        )
        assert (info["sandboxId"], info["state"], info["templateId"]) == (id_, "running", "base")
        assert info["metadata"] == {"node": "yes & no"} and 290_000 < info["ends"] < 310_000
        assert node.run("return await g.box.isRunning();") is True
        said = node.run("return (await g.box.commands.run('echo $A; whoami; pwd')).stdout;")
        assert said == "b\nuser\n/home/user\n"
        count = "return parseInt(await g[given.box].files.read('/tmp/count'));"
        grown = (
            "const read = async () => parseInt(await g[given.box].files.read('/tmp/count'));"
            "for (const end = Date.now() + 30000; (await read()) <= given.than && Date.now() < end; ) await g.sleep(100);"
            "return await read();"
        )
        node.run(
            "await g.box.commands.run(given.count, { background: true });"
            "for (const end = Date.now() + 60000; !(await g.box.files.exists('/tmp/count')) && Date.now() < end; ) await g.sleep(100);",
            count=COUNT,
        )
        paused = node.run("return [await g.box.pause(), await g.box.pause()];")
        assert paused == [True, False]
        listed = node.run(
            """
const pages = e2b.Sandbox.list({ query: { metadata: { node: "yes & no" }, state: ["paused"] }, limit: 1 });
const found = [];
while (pages.hasNext) found.push(...(await pages.nextItems()).map((each) => each.sandboxId));
return found;
"""
        )
        assert listed == [id_]
        assert node.run("return await g.box.isRunning();") is False
        node.run("g.box = await e2b.Sandbox.connect(given.id, { timeoutMs: 600_000 });", id=id_)
        first = node.run(count, box="box")
        assert node.run(grown, box="box", than=first) > first

        kept = node.run("return (await g.box.createSnapshot()).snapshotId;")
        node.run(
            "g.again = await e2b.Sandbox.create(given.kept, { timeoutMs: 60_000 });", kept=kept
        )
        later = node.run(count, box="again")
        assert node.run(grown, box="again", than=later) > later
        node.run("await g.again.kill();")
        assert node.run("return await e2b.Sandbox.deleteSnapshot(given.kept);", kept=kept) is True

        forks = node.run(
            "g.forks = await g.box.fork({ count: 2 }); return g.forks.map((each) => each.sandboxId);"
        )
        assert len({*forks, id_}) == 3
        node.run("for (const each of g.forks) await each.kill();")

        node.run("await g.box.setTimeout(900_000);")
        node.run(
            "await g.box.updateNetwork({ allowOut: ['api.example.com'], denyOut: ['0.0.0.0/0'] });"
        )
        network = node.run("return (await g.box.getInfo()).network;")
        assert network["allowOut"] == ["api.example.com"] and network["denyOut"] == ["0.0.0.0/0"]
        assert node.run("return (await g.box.getMetrics()).length;") >= 1

        host = node.run("return g.box.getHost(8300);")
        answer = httpx.get(daemon.url, headers={"host": host}, timeout=30, trust_env=False)
        assert answer.status_code == 502 and "port is not open" in answer.json()["message"]
    finally:
        killed = node.run(
            "return [await e2b.Sandbox.kill(given.id), await e2b.Sandbox.kill(given.id)];", id=id_
        )
    assert killed == [True, False]
    node_records(
        "Sandbox.create", "Sandbox.connect", "Sandbox.list", "Sandbox.kill", "Sandbox.pause", "Sandbox.getInfo",
        "Sandbox.isRunning", "Sandbox.setTimeout", "Sandbox.createSnapshot", "Sandbox.deleteSnapshot", "Sandbox.fork",
        "Sandbox.getMetrics", "Sandbox.getHost",
    )  # fmt: skip
    note = "single addresses cannot be denied: deny all, and allow"
    node_records("Sandbox.updateNetwork", outcome="differs", note=note)


def test_its_failures_are_its_own(node: NodeWorker) -> None:
    def raised(code: str) -> Raised:
        with pytest.raises(Raised) as found:
            node.run(code)
        return found.value

    wrong = raised("await e2b.Sandbox.create({ apiKey: 'e2b_' + '0'.repeat(64) });")
    assert "AuthenticationError" in wrong.kinds
    assert "SandboxNotFoundError" in raised("await e2b.Sandbox.connect('a'.repeat(26));").kinds
    assert "SandboxError" in raised("await e2b.Sandbox.create('no-such-template');").kinds
    assert (
        "Roost does not serve"
        in raised("await e2b.Sandbox.create({ network: { httpsPorts: [1] } });").text
    )
    node_records("errors: authentication, not found, not served")


def test_a_template_is_built(node: NodeWorker, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("note\n")
    built = node.run(
        """
const said = [];
const made = e2b.Template({ fileContextPath: given.here })
  .fromBaseImage()
  .copy("note.txt", "/home/user/")
  .setEnvs({ MADE: "by node" })
  .runCmd("echo $MADE > made");
const built = await e2b.Template.build(made, "conf-node:v1", {
  cpuCount: 1, memoryMB: 512, onBuildLogs: (entry) => said.push(entry.message),
});
return { built, said, there: await e2b.Template.exists("conf-node:v1") };
""",
        timeout=400,
        here=str(tmp_path),
    )
    assert built["there"] is True and built["built"]["templateId"] == "conf-node"
    assert any("made" in each for each in built["said"])
    read = node.run(
        """
const box = await e2b.Sandbox.create("conf-node:v1", { ...g.opts, timeoutMs: 60_000 });
try { return [await box.files.read("note.txt"), await box.files.read("made")]; } finally { await box.kill(); }
"""
    )
    assert read == ["note\n", "by node\n"]
    node_records("Template.build", "Template.exists")


def test_a_volume_keeps_files(node: NodeWorker) -> None:
    read = node.run(
        """
const volume = await e2b.Volume.create("conf-node");
try {
  await volume.writeFile("/a.txt", "kept");
  return [await volume.readFile("/a.txt"), (await volume.list("/")).map((each) => each.name)];
} finally { await e2b.Volume.destroy(volume.volumeId); }
"""
    )
    assert read[0] == "kept" and "a.txt" in read[1]
    note = "10 GiB each; one sandbox at a time mounts it"
    methods = (
        "Volume.create",
        "Volume.writeFile",
        "Volume.readFile",
        "Volume.list",
        "Volume.destroy",
    )
    node_records(*methods, outcome="differs", note=note)
