"""``sandbox.commands``."""

from __future__ import annotations

import time

from .boxes import box, fed, refused, until  # noqa: F401  (the fixture)
from .conftest import Sdk


def test_run(box: Sdk) -> None:  # noqa: F811
    box.run(
        "done = ~box.commands.run('echo out; echo err >&2; echo $A; pwd', envs={'A': '1'}, cwd='/tmp')"
    )
    assert box.value("(done.stdout, done.stderr, done.exit_code, done.error)") == [
        "out\n1\n/tmp\n", "err\n", 0, None,
    ]  # fmt: skip
    failed = refused(
        lambda: box.run("~box.commands.run('echo so; echo bad >&2; exit 3')"),
        "CommandExitException",
    )
    assert (failed.fields["exit_code"], failed.fields["stdout"]) == (3, "so\n")
    assert failed.fields["stderr"] == "bad\n"
    assert box.value("(~box.commands.run('id -un; pwd')).stdout") == "user\n/home/user\n"
    assert box.value("(~box.commands.run('id -un; pwd; echo $HOME', user='root')).stdout") == (
        "root\n/root\n/root\n"
    )
    assert box.value("(~box.commands.run('pwd', cwd=CWD)).stdout", CWD="~/../") == "/home\n"
    refused(
        lambda: box.run("~box.commands.run('true', user='nobody-here')"), "AuthenticationException"
    )
    refused(lambda: box.run("~box.commands.run('true', cwd='/none')"), "InvalidArgumentException")
    box.records("Sandbox.commands.run")


def test_output_that_is_large_and_not_text(box: Sdk) -> None:  # noqa: F811
    large = "yes 0123456789abcdef | head -c 5000000"
    assert box.value("len((~box.commands.run(LARGE)).stdout)", LARGE=large) == 5_000_000
    bytes_ = r"printf '\303\244\377'"
    assert box.value("(~box.commands.run(BYTES)).stdout", BYTES=bytes_) == "ä\ufffd"


def test_callbacks(box: Sdk) -> None:  # noqa: F811
    box.run("out, err, at = [], [], []")
    box.run(
        "~box.commands.run('for i in 1 2 3; do echo $i; sleep 1; done; echo e >&2',"
        " on_stdout=lambda s: (out.append(s), at.append(time.monotonic())), on_stderr=err.append)"
    )
    assert box.value("(''.join(out), ''.join(err))") == ["1\n2\n3\n", "e\n"]
    assert box.value("at[-1] - at[0]") > 0.4  # as it was said, not at the end
    box.records("Sandbox.commands.run(on_stdout, on_stderr)")


def test_timeout(box: Sdk) -> None:  # noqa: F811
    began = time.monotonic()
    refused(lambda: box.run("~box.commands.run('sleep 100', timeout=1)"), "TimeoutException")
    assert time.monotonic() - began < 40
    until(lambda: box.value("[each.args for each in ~box.commands.list()]") == [])
    box.records("Sandbox.commands.run(timeout)")


def test_background_list_and_stdin(box: Sdk) -> None:  # noqa: F811
    box.run(
        "handle = ~box.commands.run('cat; exit 4', background=True, stdin=True, envs={'A': '1'})"
    )
    listed = box.value(
        "[(e.pid == handle.pid, e.cmd, e.args, e.envs) for e in ~box.commands.list()]"
    )
    assert listed == [[True, "/bin/bash", ["-l", "-c", "cat; exit 4"], {"A": "1"}]]
    box.run("~box.commands.send_stdin(handle.pid, 'one\\n')")
    box.run("~handle.send_stdin('two\\n')")
    fed(box, "box.commands", "handle.pid", "three\n", "four\n")
    box.run("~box.commands.close_stdin(handle.pid)")
    failed = refused(lambda: box.run("~handle.wait()"), "CommandExitException")
    assert (failed.fields["exit_code"], failed.fields["stdout"]) == (4, "one\ntwo\nthree\nfour\n")
    refused(lambda: box.run("~box.commands.send_stdin(handle.pid, 'x')"), "NotFoundException")
    box.records(
        "Sandbox.commands.list", "Sandbox.commands.send_stdin", "Sandbox.commands.stream_input",
        "Sandbox.commands.close_stdin", "Sandbox.commands.run(background)", "CommandHandle.wait",
    )  # fmt: skip


def test_kill(box: Sdk) -> None:  # noqa: F811
    box.run("handle = ~box.commands.run('sleep 100', background=True)")
    assert box.value("~handle.kill()") is True
    failed = refused(lambda: box.run("~handle.wait()"), "CommandExitException")
    assert (failed.fields["exit_code"], failed.fields["error"]) == (-1, "signal: killed")
    assert box.value("~box.commands.kill(handle.pid)") is False
    box.records("Sandbox.commands.kill", "CommandHandle.kill")


def test_reconnect(box: Sdk) -> None:  # noqa: F811
    script = "for i in $(seq 100); do echo $i; sleep .1; done; exit 7"
    box.run("handle = ~box.commands.run(SCRIPT, background=True, timeout=0)", SCRIPT=script)
    box.run("~handle.disconnect()")
    box.run("again = ~box.commands.connect(handle.pid)")
    assert box.value("again.pid == handle.pid") is True
    failed = refused(lambda: box.run("~again.wait()"), "CommandExitException")
    assert failed.fields["exit_code"] == 7 and failed.fields["stdout"].endswith("99\n100\n")
    refused(lambda: box.run("~box.commands.connect(handle.pid)"), "NotFoundException")
    box.records("Sandbox.commands.connect", "CommandHandle.disconnect")


def test_what_it_started_goes_on(box: Sdk) -> None:  # noqa: F811
    """A server in the background of a command that ended."""
    box.run("~box.commands.run('(python3 -m http.server 8123 >/dev/null 2>&1 &) ; sleep .1')")
    ask = "curl -s -o /dev/null -w %{http_code} localhost:8123 || true"
    until(lambda: box.value("(~box.commands.run(ASK)).stdout", ASK=ask) == "200", 60)


def test_git(box: Sdk) -> None:  # noqa: F811
    """Nothing but commands."""
    box.run("~box.git.init('/tmp/repository')")
    box.run("~box.files.write('/tmp/repository/a', '1')")
    box.run("~box.git.configure_user('Ann', 'ann@example.org')")
    box.run("~box.git.add('/tmp/repository')")
    box.run("~box.git.commit('/tmp/repository', 'one')")
    assert box.value("(~box.git.status('/tmp/repository')).is_clean") is True
    box.records("Sandbox.git.init", "Sandbox.git.add", "Sandbox.git.commit", "Sandbox.git.status")
