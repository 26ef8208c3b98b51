from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

import roost.client._sync._stream as stream_module
from roost import (
    AsyncClient,
    AsyncMachine,
    Client,
    CommandFailed,
    ExecTimeout,
    Machine,
    UnavailableError,
)

from .stub import BREAK, EXECUTION_ID, MACHINE_ID, Answer, Request, Stub, execution, machine, sse

EXECUTIONS = f"/v1/machines/{MACHINE_ID}/executions"
STREAM = f"{EXECUTIONS}/{EXECUTION_ID}/stream"


@pytest.fixture
def m(stub: Stub, client: Client) -> Machine:
    return Machine.get(MACHINE_ID, client=client)


def out(offset: int, data: bytes, stream: str = "stdout") -> bytes:
    return sse(stream, {"offset": offset, "data_b64": base64.b64encode(data).decode()})


def started() -> bytes:
    return sse("started", execution(status="running", exit_code=None))


def test_exec_is_one_request(stub: Stub, m: Machine) -> None:
    exact = base64.b64encode(b"\xff\x00").decode()
    stub.on(
        "POST",
        EXECUTIONS,
        lambda _: execution(stdout="hi\n", stderr="�\0", stderr_b64=exact, duration_ms=7),
    )
    before = len(stub.seen)
    result = m.exec("echo hi", cwd="/", env={"A": "b"}, user="user", stdin=b"\xff", timeout=1.5)
    assert len(stub.seen) == before + 1
    assert stub.seen[-1].query == {"wait": "true", "approval": "return"}
    assert stub.seen[-1].json == {
        "command": "echo hi",
        "cwd": "/",
        "env": {"A": "b"},
        "user": "user",
        "stdin_b64": "/w==",
        "timeout_ms": 1500,
    }
    assert (result.stdout, result.stdout_bytes, result.stderr_bytes) == ("hi\n", b"hi\n", b"\xff\0")
    assert (result.ok, result.exit_code, result.duration_ms) == (True, 0, 7)
    assert result.execution_id == EXECUTION_ID
    m.exec(["a", "b"])
    assert stub.seen[-1].json == {"command": ["a", "b"]}


def test_a_failure_is_a_result_unless_checked(stub: Stub, m: Machine) -> None:
    stub.on(
        "POST",
        EXECUTIONS,
        lambda _: execution(status="failed", exit_code=3, stdout="", stderr="it broke\n"),
    )
    assert m.exec("x").exit_code == 3
    with pytest.raises(CommandFailed, match="it broke") as caught:
        m.exec("x", check=True)
    assert caught.value.exit.exit_code == 3
    stub.on("POST", EXECUTIONS, lambda _: execution(status="failed", exit_code=None, signal=9))
    assert m.exec("x").exit_code == 137


def test_a_timeout_carries_what_was_written(stub: Stub, m: Machine) -> None:
    stub.on(
        "POST",
        EXECUTIONS,
        lambda _: execution(status="expired", exit_code=None, signal=9, stdout="part"),
    )
    with pytest.raises(ExecTimeout, match="within 2 s") as caught:
        m.exec("sleep 9", timeout=2)
    result: Any = caught.value.result
    assert result.stdout == "part"
    assert caught.value.code == "TIMEOUT"


def test_a_stream_survives_broken_connections(
    stub: Stub, m: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "sleep", lambda _: None)
    stub.on("POST", EXECUTIONS, lambda _: Answer(execution(status="running"), 201))
    plan: list[list[Any]] = [
        [started(), out(0, b"one "), b": ping\n\n", out(0, b"e1 ", "stderr"), BREAK],
        [out(0, b"one two "), BREAK],  # replays what was seen
        [sse("dropped", {"stream": "stdout", "bytes": 5}), out(13, "€".encode()[:1])],
        [out(14, "€".encode()[1:]), sse("exit", execution(status="failed", exit_code=4))],
    ]

    def serve(request: Request) -> Iterator[Any]:
        return iter(plan.pop(0))

    stub.on("GET", STREAM, serve)
    stub.on("POST", f"{EXECUTIONS}/stream", serve)
    stream = m.exec_stream("x")
    chunks = list(stream)
    got = b"".join(c.data for c in chunks if c.stream == "stdout")
    assert got == b"one two " + "€".encode()
    assert "".join(c.text for c in chunks if c.stream == "stdout") == "one two €"
    assert [c.dropped for c in chunks if c.dropped] == [5]
    assert [c.data for c in chunks if c.stream == "stderr"] == [b"e1 "]
    assert stream.exit_code == 4
    asked = stub.asked("GET", STREAM)
    assert [r.headers["last-event-id"] for r in asked] == ["4:3", "8:3", "14:3"]
    assert asked[0].query == {"stdout_offset": "4", "stderr_offset": "3"}


def test_a_streamed_command_is_never_started_twice(stub: Stub, m: Machine) -> None:
    stub.on("POST", f"{EXECUTIONS}/stream", lambda _: iter([started()]))
    stub.drop_next = 1
    with pytest.raises(UnavailableError):
        list(m.exec_stream("x"))
    assert len(stub.asked("POST", f"{EXECUTIONS}/stream")) == 1


def test_a_stream_gives_up_in_the_end(
    stub: Stub, m: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "RECONNECT_S", 0.1)
    stub.on("POST", f"{EXECUTIONS}/stream", lambda _: iter([started(), BREAK]))
    stub.on("GET", STREAM, lambda _: iter([BREAK]))
    with pytest.raises(UnavailableError):
        list(m.exec_stream("x"))


def test_a_stream_whose_time_ran_out(stub: Stub, m: Machine) -> None:
    expired = sse("exit", execution(status="expired", exit_code=None))
    stub.on("POST", f"{EXECUTIONS}/stream", lambda _: iter([started(), out(0, b"x"), expired]))
    stub.on("POST", EXECUTIONS, lambda _: Answer(execution(status="running"), 201))
    stream = m.exec_stream("x", timeout=1)
    with pytest.raises(ExecTimeout):
        list(stream)
    assert m.start("x").stream().__class__ is stream.__class__


def test_waiting_for_a_background_command(stub: Stub, m: Machine) -> None:
    states = [execution(status="running", exit_code=None)] * 2 + [execution()]
    stub.on("POST", EXECUTIONS, lambda _: Answer(execution(status="running"), 201))
    stub.on("GET", f"{EXECUTIONS}/{EXECUTION_ID}", lambda _: states.pop(0))
    stub.on(
        "GET",
        f"{EXECUTIONS}/{EXECUTION_ID}/output",
        lambda _: {"execution_id": EXECUTION_ID, "stdout": "o", "stderr": ""},
    )
    p = m.start("x")
    assert stub.seen[-1].query == {"wait": "false"}
    assert p.running
    assert p.wait().stdout == "o"
    assert p.exit_code == 0


def test_stdin_and_signals(stub: Stub, m: Machine) -> None:
    one = f"{EXECUTIONS}/{EXECUTION_ID}"
    stub.on("POST", EXECUTIONS, lambda _: Answer(execution(status="running"), 201))
    stub.on("POST", f"{one}/stdin", lambda r: {"written": len(r.body)})
    stub.on("POST", f"{one}/signal", lambda _: execution(status="running"))
    stub.on("DELETE", one, lambda _: execution(status="cancelled", exit_code=None, signal=9))
    p = m.start("cat", stdin_stream=True)
    assert stub.seen[-1].json["stdin_stream"] is True
    assert p.write_stdin("äb") == 3
    assert p.write_stdin(iter([b"a", b"bc"])) == 3
    assert stub.seen[-1].body == b"abc"
    p.close_stdin()
    assert stub.seen[-1].query == {"eof": "true"}
    p.signal("SIGINT")
    assert stub.seen[-1].json == {"signal": "SIGINT"}
    assert p.kill().exit_code == 137


def test_a_phase_is_not_told_of_before_the_wake(stub: Stub, client: Client) -> None:
    phase = ["sleeping"]
    stub.on("GET", f"/v1/machines/{MACHINE_ID}", lambda _: machine(phase=phase[0]))
    stub.on("POST", EXECUTIONS, lambda _: execution(stdout="", stderr="", status="succeeded"))
    m = Machine.get(MACHINE_ID, client=client)
    assert m.phase == "sleeping"
    phase[0] = "running"
    m.exec("x")
    assert m.phase == "running"
    asked = len(stub.seen)
    m.exec("x")
    assert len(stub.seen) == asked + 1


def test_created_machines_are_destroyed_and_ensured_ones_are_not(
    stub: Stub, client: Client
) -> None:
    stub.on("POST", "/v1/machines", lambda _: Answer(machine(), 201))
    stub.on("PUT", "/v1/machines/by-key/user-42", lambda _: machine())
    stub.on("DELETE", f"/v1/machines/{MACHINE_ID}", lambda _: machine(phase="destroyed"))
    with Machine.ensure("user-42", client=client):
        pass
    assert not stub.asked("DELETE", ".*")
    with pytest.raises(ZeroDivisionError), Machine.create(ttl="15m", client=client) as m:
        assert stub.seen[-1].json == {"template": "base", "ttl": "15m"}
        raise ZeroDivisionError
    assert m.phase == "destroyed"


async def test_the_async_half(stub: Stub) -> None:
    stub.on("POST", EXECUTIONS, lambda _: execution(stdout="a", stderr="", status="succeeded"))
    streamed = [started(), out(0, b"x"), sse("exit", execution())]
    stub.on("POST", f"{EXECUTIONS}/stream", lambda _: iter(streamed))
    async with AsyncClient() as client:
        m = await AsyncMachine.get(MACHINE_ID, client=client)
        assert (await m.exec("x")).stdout == "a"
        stream = m.exec_stream("x")
        assert [c.data async for c in stream] == [b"x"]
        assert stream.exit_code == 0


def test_what_runs_by_pid(stub: Stub, m: Machine) -> None:
    running = {**execution(status="running", exit_code=None), "pid": 42}
    stub.on(
        "GET",
        f"/v1/machines/{MACHINE_ID}/processes",
        lambda _: {"items": [running], "next_cursor": None},
    )
    found = m.executions.by_pid()
    assert [(pid, each.id, each.running) for pid, each in found.items()] == [
        (42, EXECUTION_ID, True)
    ]
