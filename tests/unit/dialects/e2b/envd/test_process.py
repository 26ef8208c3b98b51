from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from roost.dialects.e2b.envd import connect, process
from roost.dialects.e2b.envd.place import Place, basic_user
from roost.errors import error
from roost.store.audit import Wanted
from tests.unit.api.kit import TENANT, Served, until
from tests.unit.dialects.e2b.envd.kit import (
    Sandbox,
    b64,
    basic,
    command,
    end,
    frame,
    printed,
)

P = "/process.Process/"
DONE = (2, {})


async def test_a_command_says_what_it_prints_and_how_it_ends(box: Sandbox) -> None:
    frames = await box.all(P + "Start", command("echo out; echo err >&2; exit 3"))
    assert frames[0][1]["event"]["start"]["pid"] > 0
    assert (printed(frames), printed(frames, "stderr")) == (b"out\n", b"err\n")
    said = {"exitCode": 3, "exited": True, "status": "exit status 3", "error": "exit status 3"}
    assert end(frames) == said
    assert frames[-1] == DONE
    good = await box.all(P + "Start", command("true"))
    assert end(good) == {"exitCode": 0, "exited": True, "status": "exit status 0"}


async def test_a_signal_that_ended_it_is_named(box: Sandbox) -> None:
    ended = end(await box.all(P + "Start", command("kill -9 $$")))
    said = {"exitCode": -1, "exited": False, "status": "signal: killed", "error": "signal: killed"}
    assert ended == said


async def test_environment_directory_and_stdin_that_is_off(box: Sandbox) -> None:
    asked = command("echo $A; pwd; cat", process={"envs": {"A": "1"}, "cwd": "/tmp"}, stdin=False)
    assert printed(await box.all(P + "Start", asked)) == b"1\n/tmp\n"


async def test_what_cannot_be_started_says_why(box: Sandbox) -> None:
    missing = await box.all(P + "Start", {"process": {"cmd": "/no/such"}})
    assert missing[0][0] == 2 and missing[0][1]["error"]["code"] == "invalid_argument"
    nowhere = await box.all(P + "Start", command("true", process={"cwd": "/no/such"}))
    assert nowhere[0][1]["error"] == {
        "code": "invalid_argument", "message": "cwd '/no/such' does not exist",
    }  # fmt: skip
    nobody = await box.all(P + "Start", command("true"), **basic("no-such-user"))
    assert nobody[0][1]["error"]["code"] == "unauthenticated"
    elsewhere = await box.all(P + "Start", command("true", process={"cwd": "~root/x"}))
    assert elsewhere[0][1]["error"]["code"] == "invalid_argument"


async def test_runs_as_the_user_of_the_request(box: Sandbox) -> None:
    assert printed(await box.all(P + "Start", command("id -un"), **basic("root"))) == b"root\n"


async def test_listed_fed_and_ended_by_pid(box: Sandbox) -> None:
    stream = box.stream(
        P + "Start", command("cat; echo over", process={"envs": {"A": "1"}}, tag="t")
    )
    pid = (await anext(stream))[1]["event"]["start"]["pid"]
    listed = await box.ok(P + "List")
    assert listed == {
        "processes": [
            {
                "config": {"cmd": "/bin/sh", "args": ["-c", "cat; echo over"], "envs": {"A": "1"}},
                "pid": pid,
                "tag": "t",
            }
        ]
    }
    await box.ok(P + "SendInput", {"process": {"pid": pid}, "input": {"stdin": b64(b"hi\n")}})
    await box.ok(P + "SendInput", {"process": {"tag": "t"}, "input": {"stdin": b64(b"ho\n")}})
    await box.ok(P + "CloseStdin", {"process": {"pid": pid}})
    rest = [each async for each in stream]
    assert printed(rest) == b"hi\nho\nover\n" and end(rest)["exitCode"] == 0
    assert await box.ok(P + "List") == {"processes": []}
    for method, said in (
        ("SendSignal", {"signal": "SIGNAL_SIGKILL"}),
        ("SendInput", {"input": {"stdin": ""}}),
        ("CloseStdin", {}),
        ("Update", {}),
    ):
        answer = await box.call(P + method, {"process": {"pid": pid}, **said})
        assert answer.status_code == 404, method
        assert answer.json() == {
            "code": "not_found", "message": f"process with pid {pid} not found",
        }  # fmt: skip
    gone = await box.all(P + "Connect", {"process": {"pid": pid}})
    assert gone[0][1]["error"]["code"] == "not_found"


async def test_who_leaves_leaves_it_running_and_hears_from_then_on(box: Sandbox) -> None:
    script = "echo before; read x; echo after-$x"
    stream = box.stream(P + "Start", command(script))
    pid = (await anext(stream))[1]["event"]["start"]["pid"]
    assert printed([await anext(stream)]) == b"before\n"
    await stream.aclose()
    again = box.stream(P + "Connect", {"process": {"pid": pid}})
    assert (await anext(again))[1]["event"]["start"]["pid"] == pid
    await box.ok(P + "SendInput", {"process": {"pid": pid}, "input": {"stdin": b64(b"1\n")}})
    rest = [each async for each in again]
    assert printed(rest) == b"after-1\n" and end(rest)["exitCode"] == 0


async def test_signals(box: Sandbox) -> None:
    for signal, status in ((15, "signal: terminated"), ("SIGNAL_SIGKILL", "signal: killed")):
        stream = box.stream(P + "Start", command("sleep 60"))
        pid = (await anext(stream))[1]["event"]["start"]["pid"]
        await box.ok(P + "SendSignal", {"process": {"pid": pid}, "signal": signal})
        assert end([each async for each in stream])["status"] == status
    refused = await box.call(P + "SendSignal", {"process": {"pid": 1}, "signal": 2})
    assert refused.json()["code"] == "unimplemented"


async def test_a_stream_of_input(box: Sandbox) -> None:
    stream = box.stream(P + "Start", command("head -c 300006 | wc -c"))
    pid = (await anext(stream))[1]["event"]["start"]["pid"]

    async def said() -> Any:
        yield frame({"start": {"process": {"pid": pid}}})
        whole = frame({"data": {"input": {"stdin": b64(b"x" * 300_000)}}})
        yield whole[:7]
        yield whole[7:]
        yield frame({"keepalive": {}})
        yield frame({"data": {"input": {"stdin": b64(b"abcdef")}}})

    answer = await box.http.post(
        P + "StreamInput", content=said(), headers={"content-type": "application/connect+json"}
    )
    assert answer.content == frame({}).replace(b"{}", b"{}") + frame({}, 2)
    rest = [each async for each in stream]
    assert printed(rest).strip() == b"300006"


async def test_a_stream_of_input_begins_with_whom_it_is_for(box: Sandbox) -> None:
    for body, code in (
        (frame({"data": {"input": {"stdin": ""}}}), "invalid_argument"),
        (b"", "invalid_argument"),
        (frame({"start": {"process": {"pid": 999999}}}), "not_found"),
        (b"\0\xff\xff\xff\xff", "resource_exhausted"),
        (b"\1\0\0\0\2{}", "unimplemented"),
        (frame(b"[1"), "invalid_argument"),
    ):
        frames = await box.all(P + "StreamInput", None, body=body)
        assert frames[-1][0] == 2 and frames[-1][1]["error"]["code"] == code, body


async def test_a_command_is_ended_at_its_deadline(box: Sandbox) -> None:
    frames = await box.all(P + "Start", command("sleep 60"), connect_timeout_ms="200")
    assert frames[-1][1]["error"]["code"] == "deadline_exceeded"

    async def none() -> bool:
        return (await box.ok(P + "List"))["processes"] == []

    async with asyncio.timeout(30):
        while not await none():
            await asyncio.sleep(0.02)


async def test_a_command_outlives_the_deadline_of_who_only_listens(box: Sandbox) -> None:
    stream = box.stream(P + "Start", command("sleep 60"))
    pid = (await anext(stream))[1]["event"]["start"]["pid"]
    frames = await box.all(P + "Connect", {"process": {"pid": pid}}, connect_timeout_ms="100")
    assert frames[-1][1]["error"]["code"] == "deadline_exceeded"
    assert [each["pid"] for each in (await box.ok(P + "List"))["processes"]] == [pid]
    await box.ok(P + "SendSignal", {"process": {"pid": pid}, "signal": 9})


async def test_a_silent_stream_says_that_it_lives(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "SHORTEST_PING_S", 0.05)
    monkeypatch.setattr(connect, "PING_S", 0.05)
    frames = await box.all(P + "Start", command("sleep 0.4"))
    assert (0, {"event": {"keepalive": {}}}) in frames
    assert end(frames)["exitCode"] == 0


async def test_bad_messages_and_headers(box: Sandbox) -> None:
    for said in ({"process": {"pid": -1}}, {"process": 7}, {"process": {}}):
        answer = await box.call(P + "SendSignal", {**said, "signal": 9})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_argument")
    answer = await box.http.post(
        P + "List", content=b"{}", headers={"content-type": "application/proto"}
    )
    assert answer.status_code == 501 and answer.json()["code"] == "unimplemented"
    for body in (b"", b"\0\0\0\0\x09{}", frame({}) + frame({}), b"\2\0\0\0\2{}"):
        frames = await box.all(P + "Start", None, body=body)
        assert frames[-1][1]["error"]["code"] == "invalid_argument", body
    late = await box.call(P + "List", {}, connect_timeout_ms="soon")
    assert late.json()["code"] == "invalid_argument"
    broken = await box.call(P + "SendInput", {"process": {"pid": 1}, "input": {"stdin": "%%"}})
    assert broken.json()["code"] == "invalid_argument"


async def test_stdin_that_was_not_asked_for(box: Sandbox) -> None:
    stream = box.stream(P + "Start", command("sleep 60", stdin=False))
    pid = (await anext(stream))[1]["event"]["start"]["pid"]
    answer = await box.call(
        P + "SendInput", {"process": {"pid": pid}, "input": {"stdin": b64(b"x")}}
    )
    assert answer.status_code == 500 and "stdin" in answer.json()["message"]
    answer = await box.call(P + "SendInput", {"process": {"pid": pid}, "input": {"pty": b64(b"x")}})
    assert "tty not assigned" in answer.json()["message"]
    await box.ok(P + "SendSignal", {"process": {"pid": pid}, "signal": 9})


async def test_a_terminal(box: Sandbox) -> None:
    asked = {
        "process": {
            "cmd": "/bin/sh",
            "args": ["-i"],
            "envs": {"PS1": "$ ", "TERM": "dumb"},
            "cwd": "/tmp",
        },
        "pty": {"size": {"cols": 91, "rows": 23}},
    }
    stream = box.stream(P + "Start", asked)
    pid = (await anext(stream))[1]["event"]["start"]["pid"]
    shown = b""

    async def wait_for(text: bytes) -> None:
        nonlocal shown
        async with asyncio.timeout(10):
            while text not in shown:
                shown += printed([await anext(stream)], "pty")

    one = {"process": {"pid": pid}}
    await box.ok(P + "SendInput", {**one, "input": {"pty": b64(b"stty size; echo $TERM; pwd\n")}})
    await wait_for(b"23 91\r\ndumb\r\n/tmp")
    await box.ok(P + "Update", {**one, "pty": {"size": {"cols": 80, "rows": 24}}})
    await box.ok(P + "SendInput", {**one, "input": {"pty": b64(b"stty size\n")}})
    await wait_for(b"24 80")
    listed = (await box.ok(P + "List"))["processes"]
    assert [(each["pid"], each["config"]["args"]) for each in listed] == [(pid, ["-i"])]
    wrong = await box.call(P + "SendInput", {**one, "input": {"stdin": b64(b"x")}})
    assert wrong.status_code == 500 and "pty input" in wrong.json()["message"]
    assert (await box.call(P + "CloseStdin", one)).status_code == 500
    await stream.aclose()
    # Nobody watches now: what is typed arrives all the same.
    await box.ok(P + "SendInput", {**one, "input": {"pty": b64(b"echo alone > /dev/null\n")}})
    again = box.stream(P + "Connect", one)
    assert (await anext(again))[1]["event"]["start"]["pid"] == pid
    await box.ok(P + "SendInput", {**one, "input": {"pty": b64(b"exit 5\n")}})
    assert end([each async for each in again])["exitCode"] == 5


async def test_a_terminal_that_is_killed(box: Sandbox) -> None:
    asked = {"process": {"cmd": "/bin/cat"}, "pty": {"size": {"cols": 80, "rows": 24}}}
    stream = box.stream(P + "Start", asked)
    pid = (await anext(stream))[1]["event"]["start"]["pid"]
    await box.ok(P + "SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})
    assert end([each async for each in stream])["status"] == "signal: killed"
    late = await box.all(P + "Start", asked, connect_timeout_ms="200")
    assert late[-1][1]["error"]["code"] == "deadline_exceeded"
    async with asyncio.timeout(30):
        while (await box.ok(P + "List"))["processes"]:
            await asyncio.sleep(0.02)


async def test_what_is_kept_of_starts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    services: Any = SimpleNamespace(executions=None, terminals=None)
    kept = process.Processes(services, services)
    monkeypatch.setattr(process, "NOTES", 3)
    monkeypatch.setattr(process, "DEADLINES", 2)
    for each in range(9):
        kept._keep(str(each), process.Note(None, {"A": "x" * 9999}, ["y" * 9999] * 99, None))
        kept._end_later(Place(TENANT, "m"), str(each), 1e6)
    assert list(kept._notes) == ["6", "7", "8"] and list(kept._ending) == ["7", "8"]
    assert all(not note.envs and len(note.command) == 8 for note in kept._notes.values())
    many = process.Note(None, {}, [""] * 9999, None)  # of no length, and yet much
    kept._keep("8", many)
    assert len(many.command) == 8
    kept._ended("7")
    kept._ended("8")
    assert not kept._ending and list(kept._notes) == ["6"]
    await asyncio.sleep(0)


async def test_one_row_for_what_ends_at_once(box: Sandbox, served: Served) -> None:
    await box.all(P + "Start", command("echo hi"))
    base = f"/v1/machines/{box.id}/executions"

    async def rows() -> Any:
        return (await served.http.get(base)).json()["items"]

    async with asyncio.timeout(30):
        while not [row for row in await rows() if row["status"] == "succeeded"]:
            await asyncio.sleep(0.02)
    row = (await rows())[0]
    said = (await served.http.get(f"{base}/{row['execution_id']}/output")).json()
    assert said["stdout"] == "hi\n"


async def test_a_row_for_what_runs(box: Sandbox, served: Served) -> None:
    stream = box.stream(P + "Start", command("sleep 60"))
    pid = (await anext(stream))[1]["event"]["start"]["pid"]
    base = f"/v1/machines/{box.id}/executions"
    async with asyncio.timeout(30):
        while not (found := (await served.http.get(base)).json()["items"]):
            await asyncio.sleep(0.02)
    assert found[0]["status"] == "running"
    await box.ok(P + "SendSignal", {"process": {"pid": pid}, "signal": 9})
    await until(lambda: not served.executions.running)
    row = (await served.http.get(f"{base}/{found[0]['execution_id']}")).json()
    assert (row["status"], row["signal"]) == ("failed", 9)


async def test_what_came_with_the_memory_of_another_machine_is_met(
    box: Sandbox, served: Served
) -> None:
    """As after a fork: the agent knows it, no row of this machine does. All machines share one agent here."""
    stream = box.stream(P + "Start", command("read x; exit $x"))
    pid = (await anext(stream))[1]["event"]["start"]["pid"]
    other = Sandbox(served.url, served.machine())
    async with other.http:
        twice = await asyncio.gather(other.ok(P + "List"), other.ok(P + "List"))
        assert [[each["pid"] for each in one["processes"]] for one in twice] == [[pid], [pid]]
        rows = await served.executions.list(TENANT, other.id)
        assert len(rows.items) == 1
        again = other.stream(P + "Connect", {"process": {"pid": pid}})
        await anext(again)
        said = {"process": {"pid": pid}, "input": {"stdin": b64(b"4\n")}}
        await other.ok(P + "SendInput", said)
        assert end([each async for each in again])["exitCode"] == 4


async def test_what_an_agent_speaks_of_is_bounded(
    box: Sandbox, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.services.executions.MET", 1)
    for _ in range(3):
        await anext(box.stream(P + "Start", command("sleep 60")))
    other = Sandbox(served.url, served.machine())
    async with other.http:
        for _ in range(2):
            assert len((await other.ok(P + "List"))["processes"]) == 1
        assert len((await served.executions.list(TENANT, other.id)).items) == 1


async def test_one_whose_row_could_not_be_written_is_met_again(
    box: Sandbox, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: Any = served.executions._rows
    insert, failed = rows.insert, []

    async def once(row: Any) -> None:
        if not failed:
            failed.append(row.id)
            raise error("STORAGE_FULL", "No room.")
        await insert(row)

    monkeypatch.setattr(rows, "insert", once)
    pid = (await anext(box.stream(P + "Start", command("sleep 60"))))[1]["event"]["start"]["pid"]
    await until(lambda: bool(failed) and failed[0] not in served.executions._live)
    listed = (await box.ok(P + "List"))["processes"]
    assert [each["pid"] for each in listed] == [pid]


async def test_what_changes_something_is_in_the_audit_log(
    box: Sandbox, served: Served, tmp_path: Path
) -> None:
    path = str(tmp_path / "audited")
    await box.all(P + "Start", command("true"))
    await box.ok(P + "List")
    await box.http.post("/files", params={"path": path}, content=b"x")
    await box.http.get("/files", params={"path": path})
    await box.ok("/filesystem.Filesystem/Stat", {"path": path})
    await box.ok("/filesystem.Filesystem/Remove", {"path": path})
    await box.http.post("/health")
    found = (await served.audit.query(Wanted(machine_id=box.id), 10, None)).items
    assert [each.action for each in found] == ["e2b_Remove", "e2b_files", "e2b_Start"]
    assert found[0].status == 200 and found[0].tenant_id == TENANT


async def test_who_may_not(served: Served) -> None:
    missing = Sandbox(served.url, "missing")
    async with missing.http:
        answer = await missing.call(P + "List")
        assert answer.status_code == 502
        said = answer.json()
        assert (said["code"], said["message"]) == (502, "The sandbox was not found")
        assert said["sandboxId"] == "missing"
        answer = await missing.call(P + "List", x_access_token="wrong")
        assert answer.status_code == 401 and answer.json()["code"] == 401


async def test_an_idempotency_key_is_one_sandboxs(box: Sandbox, served: Served) -> None:
    """Which sandbox is meant stands in a header, or in the host: another one's answer is nobody's."""
    one = await box.call(P + "List", idempotency_key="k")
    assert one.status_code == 200
    again = await box.call(P + "List", idempotency_key="k")
    assert again.headers["idempotent-replayed"] == "true"
    two = Sandbox(served.url, served.machine())
    async with two.http:
        assert (await two.call(P + "List", idempotency_key="k")).status_code == 409


def test_what_basic_authorization_names() -> None:
    def of(value: bytes) -> str | None:
        return basic_user([(b"authorization", value)])

    assert of(b"Basic " + base64.b64encode(b"root:")) == "root"
    assert of(b"basic " + base64.b64encode("ü:x".encode())) == "ü"
    assert of(b"Bearer x") is None
    assert of(b"Basic \xff\xff") == "\0"
    assert json.dumps(of(b"Basic " + base64.b64encode(b"\xff:"))) == '"\\u0000"'
