from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.client.stub import EXECUTION_ID, MACHINE_ID, Answer, Stub, execution, wire

Roost = Callable[..., int]
EXECUTIONS = f"/v1/machines/{MACHINE_ID}/executions"


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ({}, 0),
        ({"status": "failed", "exit_code": 7}, 7),
        ({"status": "failed", "exit_code": None, "signal": 15}, 143),
        ({"status": "cancelled", "exit_code": None, "signal": 9}, 137),
        ({"status": "expired", "exit_code": None, "signal": 9}, 124),
        ({"status": "failed", "exit_code": None, "reason": "agent lost"}, 1),
    ],
)
def test_exit_codes_pass_through(
    ends: Any, roost: Roost, capfdbinary: pytest.CaptureFixture[bytes], how: Any, code: int
) -> None:
    ends(("stdout", b"out \xff\x00\n"), ("stderr", b"err\n"), **how)
    assert roost("exec", "user-42", "--no-stdin", "--", "x", "-l") == code
    seen = capfdbinary.readouterr()
    assert seen.out == b"out \xff\x00\n", "a pipe gets the exact bytes"
    assert seen.err.startswith(b"err\n")


def test_options(ends: Any, stub: Stub, roost: Roost) -> None:
    ends()
    options = ["--cwd", "/w", "-e", "A=b=c", "--env", "E=", "-u", "user", "--timeout", "1.5"]
    assert roost("exec", MACHINE_ID, *options, "--no-stdin", "-c", "echo $A | wc") == 0
    assert stub.asked("POST", f"{EXECUTIONS}/stream")[0].json == {
        "command": "echo $A | wc",
        "cwd": "/w",
        "env": {"A": "b=c", "E": ""},
        "user": "user",
        "timeout_ms": 1500,
    }


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("m ls -la /", ["ls", "-la", "/"]),
        ("m -- ls -la", ["ls", "-la"]),
        ("-w /w m ls -w x -c y", ["ls", "-w", "x", "-c", "y"]),
        ("m -w /w ls -- -x", ["ls", "--", "-x"]),
        ("m --cwd=/w -- -odd", ["-odd"]),
        ("m ls --help", ["ls", "--help"]),
    ],
)
def test_options_end_where_the_command_begins(
    ends: Any, stub: Stub, roost: Roost, line: str, command: list[str]
) -> None:
    ends()
    assert roost("exec", "--no-stdin", *line.replace("m", "user-42", 1).split()) == 0
    sent = stub.asked("POST", f"{EXECUTIONS}/stream")[0].json
    assert sent["command"] == command
    assert ("cwd" in sent) == ("/w" in line)


def test_an_option_that_is_none_of_ours_is_said(
    roost: Roost, capsys: pytest.CaptureFixture[str]
) -> None:
    assert roost("exec", "user-42", "-la") == 2
    assert "-l" in capsys.readouterr().err


def test_json_is_all_there_is_on_stdout(
    ends: Any, roost: Roost, capfd: pytest.CaptureFixture[str]
) -> None:
    ends(("stdout", b"hi\n"), ("stderr", b"oh\n"), status="failed", exit_code=2)
    assert roost("exec", "user-42", "--json", "--no-stdin", "--", "x") == 2
    seen = capfd.readouterr()
    data = json.loads(seen.out)
    assert (data["stdout"], data["stderr"], data["exit_code"]) == ("hi\n", "oh\n", 2)
    assert data["execution_id"] == EXECUTION_ID
    assert seen.err == ""


def test_detach(ends: Any, stub: Stub, roost: Roost, capsys: pytest.CaptureFixture[str]) -> None:
    ends()
    assert roost("exec", "user-42", "-d", "--", "sleep", "9") == 0
    assert capsys.readouterr().out == f"{EXECUTION_ID}\n"
    assert not stub.asked("POST", ".*/stream")


def test_wrong_usage(stub: Stub, roost: Roost, capsys: pytest.CaptureFixture[str]) -> None:
    assert roost("exec", "user-42") == 2
    assert roost("exec", "user-42", "-c", "x", "--", "y") == 2
    assert roost("exec") == 2
    assert roost("exec", "user-42", "--env", "novalue", "--", "x") == 1
    assert stub.seen == []
    assert "NAME=VALUE" in capsys.readouterr().err


def test_an_error_of_the_daemon(
    stub: Stub, roost: Roost, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.on(
        "POST",
        f"{EXECUTIONS}/stream",
        lambda _: Answer(wire("COMMAND_NOT_FOUND", "No \x1b[31mnope."), 422),
    )
    assert roost("exec", "user-42", "--no-stdin", "--", "nope") == 127
    seen = capsys.readouterr()
    assert seen.out == ""
    assert seen.err == "error: No ^[[31mnope. [COMMAND_NOT_FOUND]\n"


def held(stub: Stub, until: str) -> None:
    """The command's stream says that it started, and ends only when ``until`` was asked."""
    original = next(r for m, p, r in stub.routes if m == "POST" and p.match(f"{EXECUTIONS}/stream"))

    def stream(request: Any) -> Any:
        events = original(request)
        yield next(events)
        deadline = time.monotonic() + 10
        while not any(until in f"{r.path}?{r.query}" for r in stub.seen):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield from events

    stub.on("POST", f"{EXECUTIONS}/stream", stream)


@pytest.mark.parametrize(
    ("words", "hinted"),
    [
        (
            ["make test && ls"],
            "hint: a line for a shell goes behind -c: roost exec MACHINE -c 'make test && ls'\n",
        ),
        (["nope", "a b"], ""),
    ],
)
def test_a_line_for_a_shell_that_no_shell_was_given(
    stub: Stub, roost: Roost, capsys: pytest.CaptureFixture[str], words: list[str], hinted: str
) -> None:
    stub.on("POST", f"{EXECUTIONS}/stream", lambda _: Answer(wire("COMMAND_NOT_FOUND", "No."), 422))
    assert roost("exec", MACHINE_ID, "--no-stdin", "--", *words) == 127
    assert capsys.readouterr().err == f"error: No. [COMMAND_NOT_FOUND]\n{hinted}"


def test_stdin_goes_through_a_pipe(ends: Any, stub: Stub) -> None:
    ends(("stdout", b"done\n"))
    held(stub, "eof")
    stub.on("POST", f"{EXECUTIONS}/{EXECUTION_ID}/stdin", lambda r: {"written": len(r.body)})
    out = subprocess.run(
        [sys.executable, "-m", "roost.cli", "exec", "user-42", "--", "cat"],
        input=b"typed\n",
        capture_output=True,
        env=os.environ.copy(),
        timeout=30,
        check=False,
    )
    assert (out.returncode, out.stdout, out.stderr) == (0, b"done\n", b"")
    (stdin,) = stub.asked("POST", ".*/stdin")
    assert (stdin.body, stdin.query) == (b"typed\n", {"eof": "true"})
    assert stub.asked("POST", f"{EXECUTIONS}/stream")[0].json["stdin_stream"] is True


def test_much_stdin_is_one_request(ends: Any, stub: Stub) -> None:
    ends()
    held(stub, "eof")
    stub.on("POST", f"{EXECUTIONS}/{EXECUTION_ID}/stdin", lambda r: {"written": len(r.body)})
    out = subprocess.run(
        [sys.executable, "-m", "roost.cli", "exec", "user-42", "wc", "-c"],
        input=bytes(3 << 20),
        env=os.environ.copy(),
        timeout=30,
        check=False,
    )
    assert out.returncode == 0
    assert [len(r.body) for r in stub.asked("POST", ".*/stdin")] == [3 << 20]


def test_ctrl_c_goes_to_the_command(ends: Any, stub: Stub) -> None:
    ends(status="failed", exit_code=None, signal=2)
    held(stub, "/signal")
    stub.on(
        "POST",
        f"{EXECUTIONS}/{EXECUTION_ID}/signal",
        lambda _: execution(status="running"),
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "roost.cli", "exec", "user-42", "--no-stdin", "--", "sleep", "9"],
        env=os.environ.copy(),
    )
    deadline = time.monotonic() + 10
    while not stub.asked("POST", ".*/stream"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(2)  # until it has read that the command started
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert stub.asked("POST", ".*/signal")[0].json == {"signal": "SIGINT"}
