"""Executions through the whole serving side, against a real agent."""

from __future__ import annotations

import asyncio
import base64
import ctypes
import dataclasses
import json
import os
import signal
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from roost import ids
from roost.agent.client import AgentClient
from roost.agent.v1 import agent_pb2 as pb
from roost.clock import SystemClock
from roost.engine.roster import Running
from roost.errors import CapacityError, error
from roost.services.bakes import NOBODY
from roost.services.executions import Executions, StartExecution
from roost.store.cursor import Cursors
from roost.store.executions import ExecutionRow
from tests.unit.agent.process import TOKEN
from tests.unit.api.kit import OTHER, TENANT, Served, events, until

_PTRACE_ATTACH, _WALL = 16, 0x40000000  # sys/ptrace.h, linux/wait.h


async def run(served: Served, mid: str, **body: object) -> dict:
    answer = await served.http.post(f"/v1/machines/{mid}/executions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_waits_and_keeps_output(served: Served) -> None:
    mid = served.machine()
    done = await run(served, mid, command="echo out; echo err >&2; exit 3")
    assert (done["status"], done["exit_code"]) == ("failed", 3)
    assert (done["stdout"], done["stderr"]) == ("out\n", "err\n")
    assert done["stdout_bytes"] == 4 and not done["stdout_truncated"]
    base = f"/v1/machines/{mid}/executions"
    again = (await served.http.get(f"{base}/{done['execution_id']}")).json()
    assert again == {k: v for k, v in done.items() if k not in ("stdout", "stderr")}
    output = (await served.http.get(f"{base}/{done['execution_id']}/output")).json()
    assert output["stdout"] == "out\n"


async def test_environment_user_stdin_and_bytes(served: Served) -> None:
    mid = served.machine()
    done = await run(
        served, mid, command='printf "$A$FROM_TEMPLATE"; pwd; cat', env={"A": "a"},
        cwd="/tmp", stdin_b64=base64.b64encode(b"\xff\x00x").decode(),
    )  # fmt: skip
    assert base64.b64decode(done["stdout_b64"]) == b"a1/tmp\n\xff\x00x"
    assert "\ufffd" in done["stdout"]


async def test_missing_command_leaves_a_row(served: Served) -> None:
    mid = served.machine()
    answer = await served.http.post(
        f"/v1/machines/{mid}/executions", json={"command": ["no-such-thing"]}
    )
    assert answer.status_code == 422 and answer.json()["error_code"] == "COMMAND_NOT_FOUND"
    eid = answer.json()["details"]["execution_id"]
    row = (await served.http.get(f"/v1/machines/{mid}/executions/{eid}")).json()
    assert (row["status"], row["exit_code"]) == ("failed", 127)


async def test_timeout_is_expired(served: Served) -> None:
    done = await run(served, served.machine(), command="sleep 60", timeout_ms=100)
    assert (done["status"], done["reason"]) == ("expired", "timeout")


async def test_what_its_agent_cannot_end_the_host_ends(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("roost.services.overdue.FORCE_S", 0.2)
    mid = served.machine()

    async def hold_supervisor(parent: Path) -> int:
        """As a debugger does: from a mere stop its agent would wake it."""
        await until(lambda: parent.exists() and parent.read_text().endswith("\n"))
        pid = int(parent.read_text())
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.ptrace(_PTRACE_ATTACH, pid, None, None):
            raise OSError(ctypes.get_errno(), "it cannot be held")
        os.waitpid(pid, _WALL)
        return pid

    base = f"/v1/machines/{mid}/executions"
    body = {"command": f"echo $PPID >{tmp_path}/one; sleep 60", "timeout_ms": 3000}
    started = await served.http.post(base, params={"wait": "false"}, json=body)
    one = f"{base}/{started.json()['execution_id']}"
    pid = await hold_supervisor(tmp_path / "one")

    async with asyncio.timeout(30):
        while (await served.http.get(one)).json()["status"] == "running":
            await asyncio.sleep(0.05)
    os.waitpid(pid, _WALL)
    done = (await served.http.get(one)).json()
    assert (done["status"], done["reason"]) == ("expired", "timeout")
    assert len(served.machines.ended_trees) == 1
    body = {"command": f"echo $PPID >{tmp_path}/two; sleep 60"}
    started = await served.http.post(base, params={"wait": "false"}, json=body)
    pid = await hold_supervisor(tmp_path / "two")
    cancelled = await served.http.delete(f"{base}/{started.json()['execution_id']}")
    os.waitpid(pid, _WALL)
    assert cancelled.json()["status"] == "cancelled"
    assert len(served.machines.ended_trees) == 2


async def test_started_followed_and_cancelled(served: Served) -> None:
    mid = served.machine()
    base = f"/v1/machines/{mid}/executions"
    started = await served.http.post(base, params={"wait": "false"}, json={"command": "sleep 60"})
    assert started.status_code == 201 and started.json()["status"] == "running"
    eid = started.json()["execution_id"]
    assert (await served.http.get(base, params={"status": "running"})).json()["items"]
    gone = (await served.http.delete(f"{base}/{eid}")).json()
    assert gone["status"] == "cancelled"
    assert (await served.http.delete(f"{base}/{eid}")).json() == gone
    late = await served.http.post(f"{base}/{eid}/signal", json={"signal": 15})
    assert late.status_code == 409


async def test_stdin_and_signal(served: Served) -> None:
    mid = served.machine()
    base = f"/v1/machines/{mid}/executions"
    body = {"command": "cat", "stdin_stream": True}
    eid = (await served.http.post(base, params={"wait": "false"}, json=body)).json()["execution_id"]
    wrote = await served.http.post(f"{base}/{eid}/stdin", content=b"hello ")
    assert wrote.json() == {"written": 6}
    await served.http.post(f"{base}/{eid}/stdin", params={"eof": "true"}, content=b"there")
    await until(lambda: served.executions.running == 0)
    assert (await served.http.get(f"{base}/{eid}/output")).json()["stdout"] == "hello there"

    body = {"command": "trap 'echo got; exit 5' TERM; echo ready; while :; do sleep 0.05; done"}
    async with served.http.stream("POST", f"{base}/stream", json=body) as answer:
        seen = []
        async for name, data in events(answer.aiter_lines()):
            seen.append(name)
            if name == "stdout" and base64.b64decode(data["data_b64"]) == b"ready\n":
                await served.http.post(f"{base}/{eid}/signal", json={"signal": "SIGTERM"})
            elif name == "started":
                eid = data["execution_id"]
            elif name == "exit":
                assert data["exit_code"] == 5
    assert seen[0] == "started" and seen[-1] == "exit"


async def test_stream_replays_and_resumes(served: Served) -> None:
    mid = served.machine()
    base = f"/v1/machines/{mid}/executions"
    done = await run(served, mid, command="printf 0123456789")

    async def text(**kw: object) -> bytes:
        out = b""
        async with served.http.stream(
            "GET", f"{base}/{done['execution_id']}/stream", **kw
        ) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            async for name, data in events(answer.aiter_lines()):
                if name == "stdout":
                    out += base64.b64decode(data["data_b64"])
        return out

    assert await text() == b"0123456789"
    assert await text(params={"stdout_offset": 4}) == b"456789"
    assert await text(headers={"last-event-id": "8:0"}) == b"89"
    assert await text(params={"stdout_offset": 99}) == b""


async def test_long_output_keeps_both_ends(served: Served) -> None:
    mid = served.machine()
    command = "printf BEGIN; head -c 5000000 /dev/zero | tr '\\0' x; printf END"
    done = await run(served, mid, command=command)
    assert done["stdout_bytes"] == 5_000_008 and done["stdout_truncated"]
    assert done["stdout"].startswith("BEGIN") and done["stdout"].endswith("xEND")
    assert len(done["stdout"]) == 2 * 512 * 1024
    lost = 0
    url = f"/v1/machines/{mid}/executions/{done['execution_id']}/stream"
    async with served.http.stream("GET", url) as answer:
        total = 0
        async for name, data in events(answer.aiter_lines()):
            if name == "dropped":
                lost += data["bytes"]
            elif name == "stdout":
                total += len(base64.b64decode(data["data_b64"]))
    assert total + lost == 5_000_008 and lost > 0


async def test_websocket(served: Served) -> None:
    mid = served.machine()
    base = f"/v1/machines/{mid}/executions"
    body = {"command": "cat; exit 4", "stdin_stream": True}
    eid = (await served.http.post(base, params={"wait": "false"}, json=body)).json()["execution_id"]
    url = f"ws://127.0.0.1:{served.port}{base}/{eid}/stream"
    async with connect(url, subprotocols=[f"roost.key.{served.key}"]) as ws:
        await ws.send(json.dumps({"type": "stdin", "data": base64.b64encode(b"ping").decode()}))
        first = json.loads(await ws.recv())
        assert first == {"type": "stdout", "offset": 0, "data": base64.b64encode(b"ping").decode()}
        await ws.send("not json")
        assert json.loads(await ws.recv())["error_code"] == "INVALID_BODY"
        await ws.send(json.dumps({"type": "stdin_eof"}))
        last = json.loads(await ws.recv())
        assert last["type"] == "exit" and last["execution"]["exit_code"] == 4
        await ws.wait_closed()
        assert ws.close_code == 1000


async def test_a_socket_tells_not_how_full_the_host_is(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a stream of events, to any but an admin."""

    async def full(*_: object, **__: object) -> int:
        raise CapacityError("4711 of 4712 MiB", details={"machines": 4713})

    mid = served.machine()
    base = f"/v1/machines/{mid}/executions"
    body = {"command": "cat", "stdin_stream": True}
    eid = (await served.http.post(base, params={"wait": "false"}, json=body)).json()["execution_id"]
    monkeypatch.setattr(served.executions, "write_stdin", full)
    url = f"ws://127.0.0.1:{served.port}{base}/{eid}/stream"
    async with connect(url, subprotocols=[f"roost.key.{served.key}"]) as ws:
        await ws.send(json.dumps({"type": "stdin_eof"}))
        said = await ws.recv()
    assert json.loads(said)["error_code"] == "CAPACITY_EXCEEDED" and "471" not in str(said)

    async def states(*_: object) -> AsyncGenerator[object, None]:
        async def nothing() -> AsyncGenerator[object, None]:
            await full()
            yield

        return nothing()

    monkeypatch.setattr(served.machines, "states", states)
    async with served.client(served.admin) as admin:
        for http, known in ((served.http, False), (admin, True)):
            said = (await http.get(f"/v1/machines/{mid}/status/stream")).text
            assert "CAPACITY_EXCEEDED" in said and ("471" in said) == known


async def test_another_tenants_execution_is_missing(served: Served) -> None:
    mid = served.machine(OTHER)
    answer = await served.http.post(f"/v1/machines/{mid}/executions", json={"command": "id"})
    nowhere = await served.http.post(f"/v1/machines/{'a' * 26}/executions", json={"command": "id"})
    for one in (answer, nowhere):
        assert one.status_code == 404 and one.json()["error_code"] == "MACHINE_NOT_FOUND"


class HangsUp:
    """The first command that is asked for is hung up on, as by a capture: with ``sent`` once it runs."""

    def __init__(self, served: Served, monkeypatch: pytest.MonkeyPatch, sent: bool = False) -> None:
        self.served, self.patch, self.sent = served, monkeypatch, sent
        self.meanwhile: Callable[[], object] = self.over
        self.calls = {name: getattr(AgentClient, name) for name in ("run", "start")}
        for name in self.calls:
            monkeypatch.setattr(AgentClient, name, lambda c, request: self.hang_up(c, request))

    async def hang_up(self, client: AgentClient, request: pb.StartRequest) -> pb.Execution:
        for name, call in self.calls.items():
            self.patch.setattr(AgentClient, name, call)
        if self.sent:
            await self.calls["start"](client, request)
        [machine_id] = self.served.machines.machines
        self.served.agents.drop(machine_id)
        await until(lambda: client.hung_up)
        self.meanwhile()
        raise error("AGENT_LOST", "The connection was closed.")

    def over(self) -> None:
        """The capture: its agent can be asked again."""
        [machine_id] = self.served.machines.machines
        assert self.served.machines.target is not None
        self.served.agents.get(machine_id, self.served.machines.target, TOKEN)


@pytest.mark.parametrize("sent", [False, True])
@pytest.mark.parametrize("way", ["wait", "start", "stream"])
async def test_what_a_capture_hangs_up_on_as_it_is_asked_for_runs_once(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str, sent: bool
) -> None:
    mid = served.machine()
    HangsUp(served, monkeypatch, sent)
    base = f"/v1/machines/{mid}/executions"
    body = {"command": f"echo ran >> {tmp_path}/log; sleep 0.2; echo done"}
    if way == "wait":
        done = await run(served, mid, **body)
        assert (done["status"], done["stdout"]) == ("succeeded", "done\n")
    elif way == "start":
        started = await served.http.post(base, params={"wait": "false"}, json=body)
        assert started.status_code == 201, started.text
        await until(lambda: served.executions.running == 0)
        done = (await served.http.get(f"{base}/{started.json()['execution_id']}/output")).json()
        assert done["stdout"] == "done\n"
    else:
        async with served.http.stream("POST", f"{base}/stream", json=body) as answer:
            told = [event async for event in events(answer.aiter_lines())]
        printed = [base64.b64decode(data["data_b64"]) for name, data in told if name == "stdout"]
        assert b"".join(printed) == b"done\n" and told[-1][1]["exit_code"] == 0
    assert (tmp_path / "log").read_text() == "ran\n"
    rows = (await served.http.get(base)).json()["items"]
    assert [row["status"] for row in rows] == ["succeeded"]
    await until(lambda: served.executions.running == 0)


async def test_one_that_is_still_being_launched_is_waited_for(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The agent has its id and no record yet; then another capture hangs up."""
    mid = served.machine()
    hangs_up = HangsUp(served, monkeypatch)
    start, said = hangs_up.calls["start"], ["exists", "lost", "exists"]

    async def asked_again(client: AgentClient, request: pb.StartRequest) -> pb.Execution:
        if not said:
            execution: pb.Execution = await start(client, request)
            return execution
        if said.pop(0) == "exists":
            raise error("ALREADY_EXISTS", "it is launched")
        return await hangs_up.hang_up(client, request)

    hangs_up.calls["start"] = asked_again
    done = await run(served, mid, command=f"echo ran >> {tmp_path}/log")
    assert done["status"] == "succeeded" and not said
    assert (tmp_path / "log").read_text() == "ran\n"


async def test_what_is_refused_when_it_is_asked_for_again_says_why(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    mid = served.machine()
    HangsUp(served, monkeypatch)
    base = f"/v1/machines/{mid}/executions"
    answer = await served.http.post(base, json={"command": ["no-such-thing"]})
    assert answer.status_code == 422 and answer.json()["error_code"] == "COMMAND_NOT_FOUND"
    row = (await served.http.get(f"{base}/{answer.json()['details']['execution_id']}")).json()
    assert (row["status"], row["exit_code"]) == ("failed", 127)
    assert served.executions.running == 0


@pytest.mark.parametrize("why", ["another boot", "an agent that drops what it starts", "it ran"])
async def test_what_may_have_run_is_not_asked_for_again(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, why: str
) -> None:
    mid = served.machine()
    hangs_up = HangsUp(served, monkeypatch)
    if why == "another boot":
        machine = served.machines.machines[mid]
        hangs_up.meanwhile = lambda: (
            served.machines.change(machine, generation=machine.generation + 1),
            hangs_up.over(),
        )
    elif why == "it ran":
        monkeypatch.setattr("roost.services.executions.YOUNG_S", 0.0)
    else:
        monkeypatch.setattr("roost.services.executions.STARTS_TO_THE_END", 1000)
    base = f"/v1/machines/{mid}/executions"
    answer = await served.http.post(base, json={"command": f"echo ran >> {tmp_path}/log"})
    assert answer.status_code == 502 and answer.json()["error_code"] == "AGENT_LOST"
    row = (await served.http.get(f"{base}/{answer.json()['details']['execution_id']}")).json()
    assert (row["status"], row["reason"]) in (("failed", "lost"), ("failed", "machine_stopped"))
    assert not (tmp_path / "log").exists() and served.executions.running == 0


@pytest.mark.parametrize("phase", ["sleeping", "failed"])
async def test_a_command_that_ends_its_machine_does_not_wake_it(
    served: Served, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """It powered it off: what was connected is closed first, then it is known why."""
    mid = served.machine()
    hangs_up, held = HangsUp(served, monkeypatch), asyncio.Event()
    hangs_up.meanwhile = held.set
    base = f"/v1/machines/{mid}/executions"
    ending = asyncio.create_task(served.http.post(base, json={"command": "poweroff"}))
    await held.wait()
    await asyncio.sleep(0.1)
    machine = served.machines.machines[mid]
    served.machines.change(machine, phase=phase, tier="stopped")
    assert (await ending).status_code == 502
    assert served.machines.machines[mid].phase == phase
    await until(lambda: served.executions.running == 0)


async def test_what_was_hung_up_on_can_be_cancelled_and_has_all_its_time(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    mid = served.machine()
    hangs_up, held = HangsUp(served, monkeypatch), asyncio.Event()
    hangs_up.meanwhile = held.set
    base = f"/v1/machines/{mid}/executions"
    body = {"command": "sleep 300", "timeout_ms": 300_000}
    starting = asyncio.create_task(served.http.post(base, params={"wait": "false"}, json=body))
    await held.wait()
    [row] = (await served.http.get(base)).json()["items"]
    ending = asyncio.create_task(served.http.delete(f"{base}/{row['execution_id']}"))
    await asyncio.sleep(0.2)
    assert not ending.done()
    hangs_up.over()
    assert (await starting).status_code == 201
    cancelled = (await ending).json()
    assert cancelled["status"] == "cancelled"
    assert cancelled["created_at"] > row["created_at"]


async def test_a_stopped_machine_fails_what_ran(served: Served, tmp_path: Path) -> None:
    mid = served.machine()
    base = f"/v1/machines/{mid}/executions"
    started = await served.http.post(base, params={"wait": "false"}, json={"command": "sleep 60"})
    eid = started.json()["execution_id"]
    waiting = asyncio.create_task(
        served.http.post(base, json={"command": f"touch {tmp_path}/on; sleep 61"})
    )
    await until((tmp_path / "on").exists)
    await served.http.post(f"/v1/machines/{mid}/sleep")
    answer = await waiting
    assert answer.status_code == 502 and answer.json()["error_code"] == "AGENT_LOST"
    assert not answer.json()["retryable"]
    await until(lambda: served.executions.running == 0)
    for each in (eid, answer.json()["details"]["execution_id"]):
        row = (await served.http.get(f"{base}/{each}")).json()
        assert (row["status"], row["reason"]) == ("failed", "machine_stopped")


async def test_what_runs_goes_on_after_a_sleep_that_keeps_memory(
    served: Served, tmp_path: Path
) -> None:
    mid = served.machine()
    base = f"/v1/machines/{mid}/executions"
    body = {"command": "read x; echo got $x", "stdin_stream": True}
    started = await served.http.post(base, params={"wait": "false"}, json=body)
    eid = started.json()["execution_id"]
    late = f"touch {tmp_path}/on; until [ -e {tmp_path}/go ]; do sleep 0.1; done; echo late"
    waiting = asyncio.create_task(served.http.post(base, json={"command": late}))
    await until((tmp_path / "on").exists)
    await served.http.post(f"/v1/machines/{mid}/sleep", params={"tier": "hibernated"})
    answer = await waiting
    assert answer.status_code == 409 and answer.json()["error_code"] == "INVALID_STATE"
    other = answer.json()["details"]["execution_id"]
    for each in (eid, other):
        assert (await served.http.get(f"{base}/{each}")).json()["status"] == "running"
    assert served.executions.running == 2
    assert (await served.http.get(f"/v1/machines/{mid}")).json()["phase"] == "sleeping"
    (tmp_path / "go").touch()
    await served.http.post(f"{base}/{eid}/stdin", content=b"it\n", params={"eof": "true"})
    await until(lambda: served.executions.running == 0)
    for each, said in ((eid, "got it\n"), (other, "late\n")):
        row = (await served.http.get(f"{base}/{each}/output")).json()
        assert row["stdout"] == said
        assert (await served.http.get(f"{base}/{each}")).json()["status"] == "succeeded"
    assert not +served.machines.users


async def test_what_runs_keeps_its_machine_awake_unless_it_says_otherwise(served: Served) -> None:
    mid = served.machine()
    base = f"/v1/machines/{mid}/executions"
    for keep_awake, users in ((False, 0), (True, 1)):
        body = {"command": "sleep 60", "keep_awake": keep_awake}
        started = await served.http.post(base, params={"wait": "false"}, json=body)
        assert started.json()["keep_awake"] is keep_awake
        await asyncio.sleep(0.05)
        await until(lambda n=users: served.machines.users[mid] == n)
        await served.http.delete(f"{base}/{started.json()['execution_id']}")
        await until(lambda: served.machines.users[mid] == 0)


async def test_a_new_daemon_takes_up_what_runs(served: Served, tmp_path: Path) -> None:
    mid = served.machine()
    base = f"/v1/machines/{mid}/executions"
    body = {"command": f"until [ -e {tmp_path}/go ]; do sleep 0.1; done; echo late"}
    eid = (await served.http.post(base, params={"wait": "false"}, json=body)).json()["execution_id"]
    lost = (await served.rows.get("tenant-a", mid, eid)) and "x" * 26
    from dataclasses import replace

    row = await served.rows.get("tenant-a", mid, eid)
    assert row is not None
    await served.rows.insert(replace(row, id=lost))
    await served.executions.close()
    served.executions._closed = False
    served.executions._live.clear()
    await served.executions.open()
    await until(lambda: served.executions.running == 1)
    (tmp_path / "go").touch()
    await until(lambda: served.executions.running == 0)
    assert (await served.http.get(f"{base}/{eid}/output")).json()["stdout"] == "late\n"
    gone = (await served.http.get(f"{base}/{lost}")).json()
    assert (gone["status"], gone["reason"]) == ("failed", "lost")


# --- what a template starts ------------------------------------------------------------------------


def running(served: Served, mid: str, **config: object) -> Running:
    """As the engine lists it."""
    assert served.target is not None
    machine = served.machines.machines[mid]  # type: ignore[attr-defined]
    agent = served.agents.get(mid, served.target, TOKEN)
    return Running(machine, agent, {"start": "sleep 60", **config}, None)  # type: ignore[arg-type]


async def start(served: Served, mid: str, shell: str) -> str:
    """As a machine that boots does it."""
    known_as = f"start{ids.new()}"
    request = pb.StartRequest(execution_id=known_as, shell=shell)
    await served.agents.get(mid, str(served.target), TOKEN).start(request)
    return known_as


async def test_what_a_template_starts_is_an_execution_called_start(served: Served) -> None:
    mid = served.machine()
    base = f"/v1/machines/{mid}/executions"
    missing = await served.http.get(f"{base}/start")
    assert (missing.status_code, missing.json()["error_code"]) == (404, "EXECUTION_NOT_FOUND")
    known_as = await start(served, mid, "echo begun; read line; echo $line; exec sleep 60")
    served.executions.began(running(served, mid), known_as)
    await until(lambda: served.executions.running)
    (found,) = (await served.http.get(base, params={"status": "running"})).json()["items"]
    assert (found["name"], found["command"]) == ("start", ["/bin/sh", "-c", "sleep 60"])
    assert found["keep_awake"] is False and not served.machines.users[mid]  # type: ignore[attr-defined]
    assert (await served.http.get(f"{base}/start")).json()["execution_id"] == found["execution_id"]
    other = await served.http.get(
        f"{base}/start", headers={"authorization": f"Bearer {served.other_key}"}
    )
    assert other.status_code == 404

    while "begun" not in (await served.http.get(f"{base}/start/output")).json()["stdout"]:
        await asyncio.sleep(0.02)
    # A daemon that comes after this one follows it on.
    await served.executions.close()
    again = Executions(
        served.rows,
        served.machines,
        served.agents,
        Cursors(b"secret"),
        SystemClock(),
        served.approvals,
    )
    await again.open()
    await until(lambda: again.running)
    ended = await again.cancel(TENANT, mid, "start")
    assert (ended.id, ended.status) == (found["execution_id"], "cancelled")
    assert "begun" in (ended.stdout or b"").decode()
    await again.close()


async def test_one_that_came_with_its_memory_is_found(served: Served) -> None:
    mid, child = served.machine(), served.machine()
    await start(served, mid, "exec sleep 60")
    newest = await start(served, mid, "echo the newest; exec sleep 60")
    served.executions.began(running(served, child, start=["serve", "all"]), None)
    await until(lambda: served.executions.running)
    row = await served.executions.get(TENANT, child, "start")
    assert (row.name, row.command, row.known_as) == ("start", ["serve", "all"], newest)
    # Once only: a machine that slept and goes on has it.
    served.executions.began(running(served, child), None)
    await asyncio.sleep(0.1)
    assert len((await served.executions.list(TENANT, child)).items) == 1
    await served.executions.cancel(TENANT, child, "start")


async def test_nobodys_is_not_written_down(served: Served) -> None:
    mid = served.machine()
    nobodys = running(served, mid)
    served.executions.began(
        dataclasses.replace(
            nobodys, machine=dataclasses.replace(nobodys.machine, tenant_id=NOBODY)
        ),
        await start(served, mid, "true"),
    )
    await asyncio.sleep(0.1)
    assert not served.executions.running


async def test_what_gets_its_row_while_the_rows_are_read_runs_all_the_same(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    mid = served.machine()
    rows = served.executions._rows
    read = rows.running

    async def slowly(machine_id: str) -> list[ExecutionRow]:
        found = await read(machine_id)
        await until(lambda: not served.executions._fresh)
        return found

    process, stream = await served.executions.begin(TENANT, mid, StartExecution(["sleep", "60"]))
    assert served.executions._fresh
    monkeypatch.setattr(rows, "running", slowly)
    found = await served.executions.processes(TENANT, mid)
    assert process.pid in [each.pid for each in found]
    await served.executions.signal(TENANT, mid, process.execution.id, signal.SIGKILL)
    await stream.aclose()


async def test_what_runs_by_the_number_it_has_in_its_machine(served: Served) -> None:
    mid = served.machine()
    base = f"/v1/machines/{mid}"
    started = (
        await served.http.post(
            f"{base}/executions?wait=false", json={"command": ["/bin/sh", "-c", "echo $$; cat"], "stdin_stream": True}
        )
    ).json()  # fmt: skip

    async def pids() -> list[int]:  # of this one: other tests' run in the same agent
        items = (await served.http.get(f"{base}/processes")).json()["items"]
        return [each["pid"] for each in items if each["execution_id"] == started["execution_id"]]

    (pid,) = await pids()
    ended = await served.http.post(
        f"{base}/executions/{started['execution_id']}/stdin", params={"eof": True}, content=b""
    )
    assert ended.status_code == 200
    async with asyncio.timeout(10):
        while await pids():
            await asyncio.sleep(0.01)
    output = (await served.http.get(f"{base}/executions/{started['execution_id']}/output")).json()
    assert output["stdout"] == f"{pid}\n"
    foreign = await served.client(served.other_key).get(f"{base}/processes")
    assert foreign.status_code == 404
