"""Lists of tools and approvals through the whole serving side, against a real agent."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import re
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from roost.clock import SystemClock
from roost.secrets.vault import Vault
from roost.services import approvals as service
from roost.services import executions as executions_service
from roost.services.approvals import Approvals
from roost.services.executions import Executions, StartExecution
from roost.services.models import Role
from roost.store import approvals as approval_rows
from roost.store import executions as execution_rows
from roost.store.cursor import Cursors
from roost.store.schema import approvals as table
from roost.store.schema import machine_events
from tests.unit.api.kit import OTHER, TENANT, Served, events, until
from tests.unit.api.test_connect import socket

ASK = {"mode": "ask", "allow": [{"program": "echo"}, {"program": "$SHELL"}]}


async def guarded(served: Served, tools: Any = ASK) -> str:
    mid = served.machine()
    put = await served.http.put(f"/v1/machines/{mid}/tools", json=tools)
    assert put.status_code == 200, put.text
    return mid


async def waiting(served: Served, number: int = 1) -> list[dict[str, Any]]:
    async with asyncio.timeout(10):
        while len(found := (await served.http.get("/v1/approvals")).json()["items"]) < number:
            await asyncio.sleep(0.01)
    return found


async def decide(served: Served, approval: str, what: str, **body: Any) -> dict[str, Any]:
    answer = await served.http.post(f"/v1/approvals/{approval}/{what}", json=body or None)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def ask(served: Served, mid: str, wait: bool = True, **body: Any) -> Any:
    params = {} if wait else {"wait": "false"}
    return await served.http.post(f"/v1/machines/{mid}/executions", json=body, params=params)


async def test_what_is_listed_runs_and_the_rest_waits(served: Served) -> None:
    mid = await guarded(served)
    assert (await ask(served, mid, command=["echo", "hi"])).json()["stdout"] == "hi\n"
    asked = asyncio.create_task(
        ask(served, mid, command=["cat"], stdin="exactly this", cwd="/tmp", env={"A_TOKEN": "x"})
    )
    (found,) = await waiting(served)
    assert found["machine_id"] == mid and found["status"] == "pending"
    assert found["asked"] == {
        "command": ["cat"],
        "cwd": "/tmp",
        "user": None,
        "env": {"A_TOKEN": "x"},
        "stdin": "exactly this",
        "stdin_bytes": 12,
        "stdin_stream": False,
        "timeout_ms": None,
    }
    me = (await served.keys.authenticate(served.key)).key_id
    assert found["asked_by"] == me
    row = (await served.http.get(f"/v1/machines/{mid}/executions/{found['execution_id']}")).json()
    assert (row["status"], row["started_at"]) == ("approval_required", None)
    said = await decide(served, found["approval_id"], "approve", note="looked at it")
    assert (said["status"], said["decided_by"], said["note"]) == ("approved", me, "looked at it")
    done = (await asked).json()
    assert (done["status"], done["stdout"]) == ("succeeded", "exactly this")
    assert done["execution_id"] == found["execution_id"]
    again = await served.http.post(f"/v1/approvals/{found['approval_id']}/approve")
    assert (again.status_code, again.json()["error_code"]) == (409, "INVALID_STATE")
    assert (await served.http.get("/v1/approvals")).json()["items"] == []
    every = (await served.http.get("/v1/approvals", params={"status": "any"})).json()["items"]
    assert [each["status"] for each in every] == ["approved"]
    assert (every[0]["asked"]["stdin"], every[0]["asked"]["stdin_bytes"]) == (None, 12)


async def test_all_of_it_is_seen_before_it_is_decided_and_forgotten_after(served: Served) -> None:
    mid = await guarded(served)
    script = "echo harmless\n" * 1000 + "rm -rf /\n"
    row = await ask(served, mid, wait=False, command=["sh"], stdin=script, env={"A": "v" * 5000})
    (found,) = await waiting(served)
    assert found["asked"]["stdin"] == script
    assert found["asked"]["env"] == {"A": "v" * 5000}
    said = await decide(served, row.json()["execution_id"], "deny")
    for asked in (
        said["asked"],
        (await served.http.get(f"/v1/approvals/{found['approval_id']}")).json()["asked"],
    ):
        assert (asked["stdin"], asked["stdin_bytes"]) == (None, len(script))
        assert asked["env"] == {"A": None}


async def test_who_may_decide_sees_what_the_call_adds_whatever_its_name(served: Served) -> None:
    """A name says nothing: GOAUTH and RESTIC_PASSWORD_COMMAND are run. Who may not decide sees no value, and no stdin."""
    mid = await guarded(served)
    env = {"GOAUTH": "/workspace/x", "RESTIC_PASSWORD_COMMAND": "***", "PLAIN": "v"}
    keys = [
        served.key,
        await served.add_key(TENANT, Role.RUNNER),
        await served.add_key(TENANT, Role.READ_ONLY),
    ]
    async with contextlib.AsyncExitStack() as stack:
        http = [await stack.enter_async_context(served.client(key)) for key in keys]
        row = (await ask(served, mid, wait=False, command=["go"], env=env, stdin="pass")).json()
        seen = [await seen_by(each, row["execution_id"]) for each in http]
        hidden = (dict.fromkeys(env), None, 4)
        assert seen == [[(env, "pass", 4)] * 3, [hidden] * 3, [hidden] * 3]
        await decide(served, row["execution_id"], "approve")
        (found,) = (await http[0].get("/v1/approvals", params={"status": "any"})).json()["items"]
        assert added(found) == hidden


async def seen_by(http: httpx.AsyncClient, id: str) -> list[Any]:
    """What goes with the command, in each place it is told of."""
    one = (await http.get(f"/v1/approvals/{id}")).json()
    (listed,) = (await http.get("/v1/approvals")).json()["items"]
    async with http.stream("GET", "/v1/approvals/stream") as answer:
        _, streamed = await anext(events(answer.aiter_lines()))
    return [added(each) for each in (one, listed, streamed)]


def added(approval: dict[str, Any]) -> tuple[Any, Any, Any]:
    asked = approval["asked"]
    return asked["env"], asked["stdin"], asked["stdin_bytes"]


async def test_what_cannot_be_opened_is_not_run_and_can_be_denied(served: Served) -> None:
    """Its key was lost: another one lies there now."""
    mid = await guarded(served)
    row = (await ask(served, mid, wait=False, command=["id"], env={"A": "v"}, stdin="x")).json()
    served.approvals._vault = Vault(bytes(32))
    (found,) = await waiting(served)
    assert (found["asked"]["command"], added(found)) == (["id"], ({"A": None}, None, 1))
    answer = await served.http.post(f"/v1/approvals/{row['execution_id']}/approve")
    assert (answer.status_code, answer.json()["error_code"]) == (409, "INVALID_STATE")
    assert "secrets.key" in answer.json()["message"]
    assert (await waiting(served))[0]["status"] == "pending"
    assert (await decide(served, row["execution_id"], "deny"))["status"] == "denied"


async def test_denied(served: Served) -> None:
    mid = await guarded(served)
    asked = asyncio.create_task(ask(served, mid, command="id"))
    (found,) = await waiting(served)
    await decide(served, found["approval_id"], "deny", note="not today")
    answer = await asked
    assert (answer.status_code, answer.json()["error_code"]) == (403, "APPROVAL_DENIED")
    assert "not today" in answer.json()["message"]
    row = (await served.http.get(f"/v1/machines/{mid}/executions/{found['execution_id']}")).json()
    assert (row["status"], row["reason"]) == ("failed", "approval_denied")
    late = await served.http.post(f"/v1/approvals/{found['approval_id']}/approve")
    assert (late.status_code, late.json()["error_code"]) == (403, "APPROVAL_DENIED")


async def test_nobody_decides_in_time(served: Served) -> None:
    mid = await guarded(served)
    served.approvals._wait = timedelta(seconds=0.05)
    asked = asyncio.create_task(ask(served, mid, command="id"))
    (found,) = await waiting(served)
    await asyncio.sleep(0.06)
    late = await served.http.post(f"/v1/approvals/{found['approval_id']}/approve")
    assert (late.status_code, late.json()["error_code"]) == (409, "APPROVAL_EXPIRED")
    answer = await asked
    assert (answer.status_code, answer.json()["error_code"]) == (409, "APPROVAL_EXPIRED")
    other = asyncio.create_task(ask(served, mid, command="id"))
    await waiting(served)
    await asyncio.sleep(0.06)
    await served.approvals.sweep()
    assert (await other).json()["error_code"] == "APPROVAL_EXPIRED"


async def test_deny_mode_starts_nothing_and_wakes_nothing(served: Served) -> None:
    mid = await guarded(served, {"mode": "deny", "allow": [{"program": "echo"}]})
    await served.http.post(f"/v1/machines/{mid}/sleep")
    answer = await ask(served, mid, command=["cat", "/etc/passwd"])
    assert (answer.status_code, answer.json()["error_code"]) == (403, "TOOL_DENIED")
    assert served.machines.machines[mid].phase == "sleeping"
    assert (await ask(served, mid, command=["echo", "x"])).status_code == 200
    answer = await ask(served, mid, command=["echo", "x"], env={"LD_PRELOAD": "/x"})
    assert answer.json()["error_code"] == "TOOL_DENIED"


async def test_a_machine_sleeps_until_it_is_approved(served: Served) -> None:
    mid = await guarded(served)
    await served.http.post(f"/v1/machines/{mid}/sleep")
    row = (await ask(served, mid, wait=False, command="echo woke")).json()
    assert row["status"] == "approval_required"
    assert served.machines.machines[mid].phase == "sleeping"
    await decide(served, row["execution_id"], "approve")
    events_ = await served.executions.stream(TENANT, mid, row["execution_id"])
    last = [each async for each in events_][-1]
    assert last.execution.stdout == b"woke\n"  # type: ignore[union-attr]


@pytest.mark.parametrize("outcome", ["approve", "deny"])
async def test_streams_go_on(served: Served, outcome: str) -> None:
    mid = await guarded(served)
    url = f"/v1/machines/{mid}/executions"
    async with served.http.stream("POST", f"{url}/stream", json={"command": "echo a"}) as answer:
        heard = events(answer.aiter_lines())
        name, row = await anext(heard)
        assert (name, row["status"]) == ("approval_required", "approval_required")
        await decide(served, row["execution_id"], outcome)
        rest = [each async for each in heard]
    names = [name for name, _ in rest]
    if outcome == "approve":
        assert names == ["started", "stdout", "exit"]
        assert rest[0][1]["execution_id"] == row["execution_id"]
    else:
        assert names == ["error"] and rest[0][1]["error_code"] == "APPROVAL_DENIED"


async def test_input_waits_with_its_command_and_ctrl_c_gives_it_up(served: Served) -> None:
    mid = await guarded(served)
    row = (await ask(served, mid, wait=False, command=["cat"], stdin_stream=True)).json()
    url = f"/v1/machines/{mid}/executions/{row['execution_id']}"
    written = asyncio.create_task(
        served.http.post(f"{url}/stdin", content=b"later", params={"eof": "true"})
    )
    socket = f"ws://127.0.0.1:{served.port}{url}/stream"
    async with connect(
        socket, additional_headers={"authorization": f"Bearer {served.key}"}
    ) as viewer:
        await asyncio.sleep(0.1)
        assert not written.done()
        await decide(served, row["execution_id"], "approve")
        assert (await written).json() == {"written": 5}
        heard = [json.loads(each)["type"] async for each in viewer]
    assert heard == ["started", "stdout", "exit"]
    other = (await ask(served, mid, wait=False, command=["cat"])).json()
    signal = await served.http.post(
        f"/v1/machines/{mid}/executions/{other['execution_id']}/signal", json={"signal": "INT"}
    )
    assert (signal.json()["status"], signal.json()["reason"]) == ("cancelled", "approval_cancelled")
    late = await served.http.post(f"/v1/approvals/{other['execution_id']}/approve")
    assert late.json()["error_code"] == "INVALID_STATE"


async def test_what_cannot_be_started_says_so(served: Served) -> None:
    mid = await guarded(served)
    asked = asyncio.create_task(ask(served, mid, command=["no-such-thing"]))
    (found,) = await waiting(served)
    await decide(served, found["approval_id"], "approve")
    answer = await asked
    assert (answer.status_code, answer.json()["error_code"]) == (422, "COMMAND_NOT_FOUND")
    row = (await served.http.get(f"/v1/machines/{mid}/executions/{found['execution_id']}")).json()
    assert (row["status"], row["exit_code"]) == ("failed", 127)


async def test_who_may_approve(served: Served) -> None:
    """Whoever may change the tenant's machines; not who only uses them, nor the machine, nor another tenant."""
    mid = await guarded(served)
    runner = await served.add_key(TENANT, Role.RUNNER)
    async with served.client(runner) as http:
        made = await http.post(
            f"/v1/machines/{mid}/executions", json={"command": "echo $0"}, params={"wait": "false"}
        )
        assert made.status_code == 201, made.text
        eid = made.json()["execution_id"]
        assert (await http.get(f"/v1/approvals/{eid}")).status_code == 200
        for path, body in (
            (f"/v1/machines/{mid}/tools", {"mode": "off"}),
            (f"/v1/machines/{mid}/egress", {"mode": "open"}),
        ):
            assert (await http.put(path, json=body)).status_code == 403
        for path in ("/v1/machines", f"/v1/machines/{mid}/fork", f"/v1/machines/{mid}/tokens"):
            assert (await http.post(path, json={})).status_code == 403
        assert (await http.post("/v1/keys", json={"name": "mine"})).status_code == 403
        assert (await http.post(f"/v1/machines/{mid}/wake")).status_code == 200
    others = [
        runner,
        await served.add_key(TENANT, Role.READ_ONLY),
        await served.add_token(mid, Role.MACHINE),
        await served.add_token(mid, Role.PREVIEW, port=80),
    ]
    for key in others:
        async with served.client(key) as http:
            for what in ("approve", "deny"):
                answer = await http.post(f"/v1/approvals/{eid}/{what}")
                assert (answer.status_code, answer.json()["error_code"]) == (403, "FORBIDDEN")
    async with served.client(served.other_key) as http:
        foreign = await http.post(f"/v1/approvals/{eid}/approve")
        missing = await http.post(f"/v1/approvals/{'b' * 26}/approve")
        assert foreign.status_code == missing.status_code == 404
        assert foreign.json()["error_code"] == "APPROVAL_NOT_FOUND"
        assert (await http.get("/v1/approvals")).json()["items"] == []
    assert (await waiting(served))[0]["status"] == "pending"
    await decide(served, eid, "approve")
    async with served.client(served.admin) as http:
        noted = (await http.get("/v1/audit", params={"machine_id": mid})).json()["items"]
    mine = (await served.keys.authenticate(served.key)).key_id
    done = [(each["key_id"], each["action"], each["status"]) for each in noted]
    assert done[0] == (mine, "approvals_approve", 200)


async def test_what_was_asked_for_is_sealed_and_gone_once_decided(served: Served) -> None:
    mid = await guarded(served)
    row = (await ask(served, mid, wait=False, command="id", env={"GOAUTH": "open sesame"})).json()
    query = sa.select(table)
    kept = await served.store.read(lambda c: c.execute(query).mappings().one())
    assert b"sesame" not in kept["request"] and "sesame" not in json.dumps(kept["shown"])
    await decide(served, row["execution_id"], "deny")
    kept = await served.store.read(lambda c: c.execute(query).mappings().one())
    assert kept["request"] is None
    told = sa.select(machine_events.c.message).where(machine_events.c.event == "approval")
    lines = await served.store.read(lambda c: list(c.execute(told).scalars()))
    mine = (await served.keys.authenticate(served.key)).key_id
    assert lines == [
        f"{row['execution_id']}: asked for",
        f"{row['execution_id']}: denied by key {mine}",
    ]


async def test_it_outlives_the_daemon(served: Served) -> None:
    mid = await guarded(served)
    one = (await ask(served, mid, wait=False, command="echo $A", env={"A": "kept"})).json()
    lost = (await ask(served, mid, wait=False, command="echo never")).json()
    # Approved, and the daemon was killed before it was started: never twice, so not at all.
    served.approvals.listener = None
    await decide(served, lost["execution_id"], "approve")
    await served.executions.close()
    again = Approvals(
        served.store, SystemClock(), served.approvals._vault, Cursors(b"secret"), wait_s=900.0
    )
    await again.open()
    assert list(again._pending) == [one["execution_id"]]
    executions = Executions(
        served.rows, served.machines, served.agents, Cursors(b"secret"), SystemClock(), again
    )
    await executions.open()
    heard = await executions.stream(TENANT, mid, one["execution_id"])
    first = asyncio.ensure_future(anext(heard))
    await asyncio.sleep(0.05)
    assert not first.done()
    await again.approve(TENANT, one["execution_id"], None)
    await first
    assert [each async for each in heard][-1].execution.stdout == b"kept\n"  # type: ignore[union-attr]

    async def failed() -> bool:
        row = await executions.get(TENANT, mid, lost["execution_id"])
        return (row.status, row.reason) == ("failed", "lost")

    async with asyncio.timeout(10):
        while not await failed():
            await asyncio.sleep(0.02)
    await executions.close()


async def test_its_time_counts_from_its_start(served: Served) -> None:
    mid = await guarded(served)
    row = (await ask(served, mid, wait=False, command="echo x", timeout_ms=2000)).json()
    await asyncio.sleep(2.1)
    await decide(served, row["execution_id"], "approve")
    heard = await served.executions.stream(TENANT, mid, row["execution_id"])
    assert [each async for each in heard][-1].execution.status == "succeeded"  # type: ignore[union-attr]


async def test_what_waits_goes_with_its_machine(served: Served) -> None:
    mid = await guarded(served)
    asked = asyncio.create_task(ask(served, mid, command="id"))
    (found,) = await waiting(served)
    await served.http.delete(f"/v1/machines/{mid}")
    answer = await asked
    assert (answer.status_code, answer.json()["error_code"]) == (409, "INVALID_STATE")
    gone = (await served.http.get(f"/v1/approvals/{found['approval_id']}")).json()
    assert gone["status"] == "cancelled"


async def test_so_many_wait(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "OF_MACHINE", 2)
    mid = await guarded(served)
    for status in (201, 201, 429):
        assert (await ask(served, mid, wait=False, command="id")).status_code == status
    page = (await served.http.get("/v1/approvals", params={"limit": 1})).json()
    rest = {"limit": 1, "cursor": page["next_cursor"]}
    other = (await served.http.get("/v1/approvals", params=rest)).json()
    assert page["items"][0]["created_at"] >= other["items"][0]["created_at"]
    assert other["next_cursor"] is None
    big = await ask(served, await guarded(served), wait=False, command="id", stdin="x" * 66_000)
    assert (big.status_code, big.json()["error_code"]) == (413, "PAYLOAD_TOO_LARGE")


async def test_who_leaves_while_it_is_written_leaves_what_expires(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    mid = await guarded(served)
    served.approvals._wait = timedelta(0)
    reached, go = threading.Event(), threading.Event()
    insert = approval_rows.insert

    def slow(*args: Any) -> None:
        reached.set()
        go.wait(10)
        insert(*args)

    monkeypatch.setattr(approval_rows, "insert", slow)
    asked = asyncio.create_task(served.executions.start(TENANT, mid, StartExecution("id")))
    await asyncio.to_thread(reached.wait, 10)
    asked.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asked
    go.set()
    await waiting(served)
    await until(lambda: bool(served.approvals._pending))
    await served.approvals.sweep()
    assert (await served.http.get("/v1/approvals")).json()["items"] == []


async def test_what_leads_around_the_list_is_closed(served: Served) -> None:
    mid = await guarded(served, {"mode": "ask", "allow": [{"program": "echo"}]})
    opened = await served.http.post(f"/v1/machines/{mid}/terminals", json={})
    assert (opened.status_code, opened.json()["error_code"]) == (403, "TOOL_DENIED")
    code = await served.http.post(f"/v1/machines/{mid}/code", json={"code": "1"})
    assert (code.status_code, code.json()["error_code"]) == (403, "TOOL_DENIED")
    assert (await served.http.get("/v1/approvals")).json()["items"] == []
    await served.http.put(f"/v1/machines/{mid}/tools", json=ASK)
    opened = await served.http.post(f"/v1/machines/{mid}/terminals", json={})
    assert opened.status_code == 201
    await served.http.delete(f"/v1/machines/{mid}/terminals/{opened.json()['terminal_id']}")


# What starts a server on a port, in a template's own programs and its roost.toml.
OPENED = re.compile(r"(?:127\.0\.0\.1:|port[ =]+|ports = \[|PORT = |novnc )(\d+)")


async def test_no_port_of_a_template_leads_around_the_list(served: Served) -> None:
    mid = await guarded(served, {"mode": "deny", "allow": []})
    root = Path(__file__).parents[3] / "templates"
    files = [*root.glob("*/roost.toml"), *root.glob("*/files/roost-*")]
    ports = {int(found) for each in files for found in OPENED.findall(each.read_text())}
    assert ports == {5900, 6080, 7113, 7114, 9222}
    await served.machines.sleep(TENANT, mid, "stopped")
    for port in ports:
        with pytest.raises(InvalidStatus) as refused:
            await socket(served, port, mid)
        assert json.loads(refused.value.response.body)["error_code"] == "TOOL_DENIED", port
    assert not served.machines.runs(mid)


async def test_followed(served: Served) -> None:
    mid = await guarded(served)
    first = (await ask(served, mid, wait=False, command="id")).json()["execution_id"]
    async with served.http.stream("GET", "/v1/approvals/stream") as answer:
        heard = events(answer.aiter_lines())
        name, data = await anext(heard)
        assert (name, data["approval_id"], data["status"]) == ("approval", first, "pending")
        second = (await ask(served, mid, wait=False, command="id")).json()["execution_id"]
        assert (await anext(heard))[1]["approval_id"] == second
        await decide(served, first, "deny")
        _, data = await anext(heard)
        assert (data["approval_id"], data["status"]) == (first, "denied")
    await until(lambda: not served.approvals._followers)


async def test_each_is_told_once_and_again_as_it_is_decided_however_many_wait(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "FOLLOWED", 2)
    mid = await guarded(served)

    async def asked() -> str:
        return str((await ask(served, mid, wait=False, command="id")).json()["execution_id"])

    ids = [await asked(), await asked()]
    told = served.approvals.follow(TENANT)
    async with asyncio.timeout(10), contextlib.aclosing(told):

        async def heard(number: int) -> list[tuple[str, str]]:
            found = [await anext(told) for _ in range(number)]
            return [(each.id, each.status) for each in found]

        assert await heard(2) == [(id, "pending") for id in ids]
        ids += [await asked(), await asked(), await asked()]
        assert await heard(3) == [(id, "pending") for id in ids[2:]]
        await decide(served, ids[0], "deny")
        assert await heard(1) == [(ids[0], "denied")]
        for id in ids[1:4]:
            await decide(served, id, "deny")
        assert sorted(await heard(3)) == sorted((id, "denied") for id in ids[1:4])
        await decide(served, ids[4], "approve")
        assert await heard(1) == [(ids[4], "approved")]
    async with contextlib.aclosing(served.approvals.follow(TENANT)) as none:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(none), 0.1)


async def test_the_list_is_shown_and_replaced(bare: Served) -> None:
    made = (await bare.http.post("/v1/machines", json={"tools": ASK})).json()
    rules = [{"program": "echo", "args": None}, {"program": "$SHELL", "args": None}]
    assert made["tools"] == {"mode": "ask", "allow": rules}
    url = f"/v1/machines/{made['machine_id']}/tools"
    shown = await bare.http.get(url)
    assert shown.json() == made["tools"] and shown.headers["etag"] == '"1"'
    allow = [{"program": "git", "args": ["log", "..."], "env": ["GIT_*"], "users": ["app"]}]
    put = await bare.http.put(url, json={"allow": allow})
    assert put.json() == {"mode": "ask", "allow": allow}
    stale = await bare.http.put(url, json={"mode": "off"}, headers={"if-match": '"1"'})
    assert (stale.status_code, stale.json()["error_code"]) == (412, "REVISION_MISMATCH")
    for body in ({}, {"mode": "open"}, {"mode": "off", "allow": allow}, {"allow": [{}]}):
        assert (await bare.http.put(url, json=body)).status_code == 422
    foreign = await bare.http.get(f"/v1/machines/{bare.machine(OTHER)}/tools")
    assert foreign.status_code == 404
    assert (await bare.http.put(url, json={"mode": "off"})).json() == {"mode": "off", "allow": []}
    plain = (await bare.http.post("/v1/machines", json={"tools": "deny"})).json()
    assert plain["tools"] == {"mode": "deny", "allow": []}


async def test_who_asks_and_gives_up_again_and_again_fills_no_disk(
    bare: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executions_service, "PRUNE_EVERY", 5)
    monkeypatch.setattr(approval_rows, "KEEP_PER_MACHINE", 3)
    monkeypatch.setattr(execution_rows, "KEEP_PER_MACHINE", 3)
    mid = await guarded(bare)
    await bare.machines.sleep(TENANT, mid, "stopped")
    for _ in range(9):
        asked = (await ask(bare, mid, wait=False, command="id")).json()
        path = f"/v1/machines/{mid}/executions/{asked['execution_id']}"
        assert (await bare.http.delete(path)).status_code == 200
    last = (await ask(bare, mid, wait=False, command="id")).json()["execution_id"]

    async def few() -> bool:
        of = {"status": "any", "machine_id": mid}
        found = (await bare.http.get("/v1/approvals", params=of)).json()["items"]
        ran = (await bare.http.get(f"/v1/machines/{mid}/executions")).json()["items"]
        assert last in {each["approval_id"] for each in found}
        return len(found) <= 3 and len(ran) <= 3

    async with asyncio.timeout(10):
        while not await few():
            await asyncio.sleep(0.01)


async def test_whom_it_runs_as_is_who_it_was_when_it_was_asked_for(bare: Served) -> None:
    mid = await guarded(bare)
    await bare.machines.sleep(TENANT, mid, "stopped")
    machine = bare.machines.machines[mid]
    bare.machines.machines[mid] = dataclasses.replace(machine, run_as="worker")
    asked = (await ask(bare, mid, wait=False, command="id")).json()
    bare.machines.machines[mid] = dataclasses.replace(machine, run_as="root")
    (found,) = await waiting(bare)
    assert found["asked"]["user"] == asked["user"] == "worker"
    started: list[Any] = []

    async def begin(approval: Any, spec: Any) -> None:
        started.append(spec.user)

    bare.executions._start_approved = begin  # type: ignore[method-assign]
    await decide(bare, found["approval_id"], "approve")
    assert started == ["worker"]


async def test_where_the_machine_had_no_user_of_its_own_it_is_the_templates(served: Served) -> None:
    mid = await guarded(served)
    found = (await ask(served, mid, wait=False, command="id")).json()
    patched = await served.http.patch(f"/v1/machines/{mid}", json={"run_as": "nobody-of-late"})
    assert patched.status_code == 200
    await decide(served, found["execution_id"], "approve")
    one = f"/v1/machines/{mid}/executions/{found['execution_id']}"
    async with asyncio.timeout(10):
        while (ended := (await served.http.get(one)).json())["status"] in ("queued", "running"):
            await asyncio.sleep(0.01)
    assert (ended["status"], ended["user"]) == ("succeeded", None)
