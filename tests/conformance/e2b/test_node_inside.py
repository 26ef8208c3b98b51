"""What is spoken inside a sandbox, by the client of npm."""

from __future__ import annotations

import httpx

from tests.conformance.foreign import NodeWorker

from .boxes import node_box, refused  # noqa: F401  (the fixture)
from .conftest import node_records


def test_commands(node_box: NodeWorker) -> None:  # noqa: F811
    run = node_box.run
    done = run(
        "const { stdout, stderr, exitCode } = await g.box.commands.run('echo o; echo e >&2; pwd'); return { stdout, stderr, exitCode }"
    )
    assert done == {"stdout": "o\n/home/user\n", "stderr": "e\n", "exitCode": 0}
    refused(lambda: run("await g.box.commands.run('exit 3')"), "CommandExitError")
    refused(lambda: run("await g.box.commands.run('sleep 9', { timeoutMs: 500 })"), "TimeoutError")
    refused(
        lambda: run("await g.box.commands.run('true', { user: 'nobody-here' })"),
        "AuthenticationError",
    )
    said = run(
        "const out = []; await g.box.commands.run('echo 1; sleep .3; echo 2', { onStdout: d => { out.push(d) } }); return out"
    )
    assert "".join(said) == "1\n2\n"
    fed = run(
        """const h = await g.box.commands.run('cat', { background: true, stdin: true });
        await g.box.commands.sendStdin(h.pid, 'a\\n');
        const listed = await g.box.commands.list();
        await g.box.commands.closeStdin(h.pid);
        return [listed.map(e => [e.pid === h.pid, e.args]), (await h.wait()).stdout]"""
    )
    assert fed == [[[True, ["-l", "-c", "cat"]]], "a\n"]
    killed = run(
        """const h = await g.box.commands.run('sleep 100', { background: true });
        const first = await h.kill();
        try { await h.wait() } catch (e) { return [first, e.exitCode, await g.box.commands.kill(h.pid)] }"""
    )
    assert killed == [True, -1, False]
    again = run(
        """const h = await g.box.commands.run('read x; echo late', { background: true, stdin: true, timeoutMs: 0 });
        await h.disconnect();
        const again = await g.box.commands.connect(h.pid);
        await g.box.commands.sendStdin(h.pid, '\\n');
        return (await again.wait()).stdout"""
    )
    assert again == "late\n"
    node_records(
        "sandbox.commands.run", "sandbox.commands.list", "sandbox.commands.sendStdin",
        "sandbox.commands.closeStdin", "sandbox.commands.kill", "sandbox.commands.connect",
    )  # fmt: skip


def test_pty(node_box: NodeWorker) -> None:  # noqa: F811
    shown = node_box.run(
        """let shown = '';
        const read = new TextDecoder();
        const p = await g.box.pty.create({ cols: 80, rows: 24, onData: d => { shown += read.decode(d) } });
        await g.box.pty.resize(p.pid, { cols: 101, rows: 33 });
        await g.box.pty.sendInput(p.pid, new TextEncoder().encode('stty size; exit\\n'));
        await p.wait();
        return shown"""
    )
    assert "33 101" in shown
    killed = node_box.run(
        """const p = await g.box.pty.create({ cols: 80, rows: 24, onData: () => {} });
        return [await g.box.pty.kill(p.pid), await g.box.pty.kill(p.pid)]"""
    )
    assert killed == [True, False]
    node_records(
        "sandbox.pty.create", "sandbox.pty.resize", "sandbox.pty.sendInput", "sandbox.pty.kill"
    )


def test_files(node_box: NodeWorker) -> None:  # noqa: F811
    run = node_box.run
    assert run("return (await g.box.files.write('n/ü.txt', 'hällo')).path") == "/home/user/n/ü.txt"
    assert run("return await g.box.files.read('n/ü.txt')") == "hällo"
    assert (
        run("return await (await g.box.files.read('n/ü.txt', { format: 'blob' })).text()")
        == "hällo"
    )
    assert (
        run(
            "await g.box.files.write('n/z', 'z'.repeat(300000), { gzip: true }); return (await g.box.files.read('n/z', { gzip: true })).length"
        )
        == 300_000
    )
    assert (
        run(
            "let n = 0; for await (const each of await g.box.files.read('n/z', { format: 'stream' })) n += each.length; return n"
        )
        == 300_000
    )
    assert run(
        "return (await g.box.files.write([{ path: 'n/1', data: '1' }, { path: 'n/2', data: new Blob(['2']) }])).map(e => e.name)"
    ) == ["1", "2"]
    assert run("return (await g.box.files.list('n')).map(e => [e.name, e.type, e.size])")[0] == [
        "1",
        "file",
        1,
    ]
    assert run("return [await g.box.files.makeDir('n/d'), await g.box.files.makeDir('n/d')]") == [
        True,
        False,
    ]
    assert run("return (await g.box.files.rename('n/1', 'n/3')).path") == "/home/user/n/3"
    assert run("return [await g.box.files.exists('n/1'), await g.box.files.exists('n/3')]") == [
        False,
        True,
    ]
    assert run(
        "const i = await g.box.files.getInfo('n/3'); return [i.size, i.owner, i.permissions]"
    ) == [1, "user", "-rw-r--r--"]
    refused(lambda: run("await g.box.files.read('none')"), "FileNotFoundError")
    refused(lambda: run("await g.box.files.list('none')"), "FileNotFoundError")
    seen = run(
        """const seen = [];
        const w = await g.box.files.watchDir('n', e => { seen.push([e.type, e.name]) });
        await g.box.files.write('n/watched', 'x');
        for (let i = 0; i < 50 && seen.length < 3; i++) await new Promise(r => setTimeout(r, 100));
        await w.stop();
        return seen"""
    )
    assert ["create", "watched"] in seen and ["write", "watched"] in seen
    assert run("await g.box.files.remove('n'); return await g.box.files.exists('n')") is False
    url = run(
        "await g.box.files.write('signed', 'content'); return await g.box.downloadUrl('signed', { useSignatureExpiration: 60 })"
    )
    assert httpx.get(url, trust_env=False).text == "content"
    up = run("return await g.box.uploadUrl('sent')")
    assert httpx.post(up, files={"file": b"sent"}, trust_env=False).status_code == 200
    assert run("return await g.box.files.read('sent')") == "sent"
    node_records(
        "sandbox.files.write", "sandbox.files.read", "sandbox.files.list", "sandbox.files.makeDir",
        "sandbox.files.rename", "sandbox.files.exists", "sandbox.files.getInfo", "sandbox.files.watchDir",
        "sandbox.files.remove", "sandbox.downloadUrl", "sandbox.uploadUrl",
    )  # fmt: skip
