"""What is under way inside a sandbox that is paused, resumed or killed."""

from __future__ import annotations

from .boxes import box, refused, until  # noqa: F401  (the fixture)
from .conftest import Sdk

COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep .2; done"


def test_a_command_goes_on_after_a_pause(box: Sdk) -> None:  # noqa: F811
    box.run("handle = ~box.commands.run(COUNT, background=True, timeout=0)", COUNT=COUNT)
    box.run("~box.pause()")
    refused(lambda: box.run("~handle.wait()"), "TimeoutException")
    refused(lambda: box.run("~box.commands.list()"), "SandboxNotRunningException")
    refused(lambda: box.run("~box.files.read('/etc/hostname')"), "SandboxNotRunningException")
    assert box.value("~box.is_running()") is False
    box.run("~box.connect()")
    assert box.value("[each.pid == handle.pid for each in ~box.commands.list()]") == [True]
    box.run("again = ~box.commands.connect(handle.pid, timeout=0)")
    box.run("~box.commands.kill(handle.pid)")
    refused(lambda: box.run("~again.wait()"), "CommandExitException")
    box.records("Sandbox.commands.connect after a pause")


def test_a_paused_one_that_resumes_by_itself(box: Sdk) -> None:  # noqa: F811
    box.run(
        "auto = ~Sandbox.create(timeout=300, lifecycle={'on_timeout': 'pause', 'auto_resume': True}, **OPTS)"
    )
    try:
        box.run("~auto.files.write('/tmp/kept', '1')")
        box.run("~auto.pause()")
        assert box.value("~auto.is_running()") is False
        assert box.value("~auto.files.read('/tmp/kept')") == "1"
        assert box.value("~auto.is_running()") is True
    finally:
        box.run("~auto.kill()")


def test_processes_of_a_fork_are_its_own(box: Sdk) -> None:  # noqa: F811
    box.run("handle = ~box.commands.run('read x; exit $x', background=True, stdin=True, timeout=0)")
    box.run("child = (~box.fork())[0]")
    try:
        box.run("there = ~child.commands.connect(handle.pid, timeout=0)")
        box.run("~child.commands.send_stdin(handle.pid, '5\\n')")
        failed = refused(lambda: box.run("~there.wait()"), "CommandExitException")
        assert failed.fields["exit_code"] == 5
        assert box.value("[each.pid == handle.pid for each in ~box.commands.list()]") == [True]
        box.run("~box.commands.send_stdin(handle.pid, '6\\n')")
        failed = refused(lambda: box.run("~handle.wait()"), "CommandExitException")
        assert failed.fields["exit_code"] == 6
    finally:
        box.run("~child.kill()")


def test_killed(box: Sdk) -> None:  # noqa: F811
    box.run("doomed = ~Sandbox.create(timeout=300, **OPTS)")
    box.run("handle = ~doomed.commands.run('sleep 100', background=True, timeout=0)")
    box.run("~doomed.kill()")
    refused(lambda: box.run("~handle.wait()"), "SandboxNotRunningException")
