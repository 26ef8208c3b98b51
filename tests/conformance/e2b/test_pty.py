"""``sandbox.pty``."""

from __future__ import annotations

from .boxes import box, fed, refused, until  # noqa: F401  (the fixture)
from .conftest import Sdk

OPEN = """
shown = b""
def on_data(data):
    global shown
    shown += data
"""


def opened(box: Sdk, **more: object) -> None:  # noqa: F811
    box.worker.run(OPEN)
    if box.awaited:
        box.run("pty = ~box.pty.create(PtySize(rows=24, cols=80), on_data, **MORE)", MORE=more)
    else:
        box.run("pty = box.pty.create(PtySize(rows=24, cols=80), **MORE)", MORE=more)


def ended(box: Sdk) -> None:  # noqa: F811
    box.run("~pty.wait()" if box.awaited else "pty.wait(on_pty=on_data)")


def test_a_shell(box: Sdk) -> None:  # noqa: F811
    opened(box, cwd="/tmp", envs={"A": "1"})
    assert box.value("[each.pid == pty.pid for each in ~box.commands.list()]") == [True]
    box.run("~box.pty.resize(pty.pid, PtySize(rows=33, cols=101))")
    box.run("~box.pty.send_stdin(pty.pid, b'stty size; id -un; pwd; echo $A $TERM; exit 5\\n')")
    failed = refused(lambda: ended(box), "CommandExitException")
    assert failed.fields["exit_code"] == 5
    for text in ("33 101", "user", "/tmp", "1 xterm-256color"):
        assert box.value("TEXT.encode() + b'\\r\\n' in shown", TEXT=text), (
            text,
            box.value("shown"),
        )
    box.records("Sandbox.pty.create", "Sandbox.pty.send_stdin", "Sandbox.pty.resize")


def test_left_and_found_again(box: Sdk) -> None:  # noqa: F811
    opened(box, timeout=0)
    box.run("~pty.disconnect()")
    box.run("~box.pty.send_stdin(pty.pid, b'X=kept\\n')")
    if box.awaited:
        box.run("pty = ~box.pty.connect(pty.pid, on_data)")
    else:
        box.run("pty = box.pty.connect(pty.pid)")
    box.run("~box.pty.send_stdin(pty.pid, b'echo is-$X; exit\\n')")
    ended(box)
    assert box.value("b'is-kept' in shown") is True
    box.records("Sandbox.pty.connect")


def test_a_stream_of_input(box: Sdk) -> None:  # noqa: F811
    opened(box)
    fed(box, "box.pty", "pty.pid", "echo a-$((1+", "1))\n", "exit\n")
    ended(box)
    assert box.value("b'a-2' in shown") is True
    box.records("Sandbox.pty.stream_input")


def test_killed(box: Sdk) -> None:  # noqa: F811
    opened(box)
    assert box.value("~box.pty.kill(pty.pid)") is True
    failed = refused(lambda: ended(box), "CommandExitException")
    assert failed.fields["error"] == "signal: killed"
    assert box.value("~box.pty.kill(pty.pid)") is False
    until(lambda: box.value("pty.pid in [each.pid for each in ~box.commands.list()]") is False)
    refused(lambda: box.run("~box.pty.send_stdin(pty.pid, b'x')"), "NotFoundException")
    refused(
        lambda: box.run("~box.pty.resize(pty.pid, PtySize(rows=2, cols=2))"), "NotFoundException"
    )
    box.records("Sandbox.pty.kill")


def test_ended_at_its_timeout(box: Sdk) -> None:  # noqa: F811
    opened(box, timeout=1)
    refused(lambda: ended(box), "TimeoutException")
    until(lambda: box.value("pty.pid in [each.pid for each in ~box.commands.list()]") is False)
    box.records("Sandbox.pty.create(timeout)")
