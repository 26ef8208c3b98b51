"""Lists of tools and approvals in the SDK: what is sent, and a command that waits goes on."""

from __future__ import annotations

from typing import Any

import pytest

from roost import Client, ForbiddenError, Machine

from .stub import EXECUTION_ID, MACHINE_ID, Answer, Stub, execution, machine, sse

EXECUTIONS = f"/v1/machines/{MACHINE_ID}/executions"
RULE = {"program": "git", "args": ["status", "..."]}


@pytest.fixture
def m(stub: Stub, client: Client) -> Machine:
    return Machine.get(MACHINE_ID, client=client)


def test_the_list(stub: Stub, client: Client, m: Machine) -> None:
    assert m.tools == {"mode": "off", "allow": []}
    stub.on("PUT", f"/v1/machines/{MACHINE_ID}/tools", lambda r: r.json)
    assert m.set_tools("ask", [RULE], if_revision=3) == {"mode": "ask", "allow": [RULE]} == m.tools
    assert stub.seen[-1].headers["if-match"] == '"3"'
    stub.on("POST", "/v1/machines", lambda _: Answer(machine(), 201))
    for tools, sent in (("deny", "deny"), ([RULE], {"allow": [RULE]}), (m.tools, m.tools)):
        Machine.create(tools=tools, client=client)  # type: ignore[arg-type]
        assert stub.seen[-1].json["tools"] == sent


def test_approvals(stub: Stub, client: Client) -> None:
    stub.on("GET", "/v1/approvals", lambda _: {"items": [{"n": 1}], "next_cursor": None})
    assert client.approvals(machine_id=MACHINE_ID) == [{"n": 1}]
    assert stub.seen[-1].query["status"] == "pending"
    for what in ("approve", "deny"):
        stub.on("POST", f"/v1/approvals/{EXECUTION_ID}/{what}", lambda r: r.json)
        assert getattr(client, what)(EXECUTION_ID, note="n") == {"note": "n"}
        assert getattr(client, what)(EXECUTION_ID) == {}
    stub.on("GET", f"/v1/approvals/{EXECUTION_ID}", lambda _: {"n": 2})
    assert client.approval(EXECUTION_ID) == {"n": 2}
    stub.on("GET", "/v1/approvals/stream", lambda _: iter([sse("approval", {"n": 3})]))
    assert next(iter(client.follow_approvals())) == {"n": 3}


@pytest.mark.parametrize("approved", [True, False])
def test_exec_goes_on_once_it_is_decided(stub: Stub, m: Machine, approved: bool) -> None:
    """However long that takes: the time that is given is the command's own."""

    def stream(_: Any) -> Any:
        if approved:
            yield sse("started", execution(status="running"))
            yield sse("exit", execution())
        else:
            yield sse("error", {"error_code": "APPROVAL_DENIED", "message": "denied (no)"})

    waits = execution(status="approval_required", exit_code=None)
    stub.on("POST", EXECUTIONS, lambda _: Answer(waits, 202))
    stub.on("GET", f"{EXECUTIONS}/{EXECUTION_ID}/stream", stream)
    stub.on("GET", f"{EXECUTIONS}/{EXECUTION_ID}", lambda _: execution())
    said = {"execution_id": EXECUTION_ID, "stdout": "hi", "stderr": ""}
    stub.on("GET", f"{EXECUTIONS}/{EXECUTION_ID}/output", lambda _: said)
    if approved:
        assert m.exec("id", timeout=0.01).stdout == "hi"
    else:
        with pytest.raises(ForbiddenError, match="denied") as caught:
            m.exec("id")
        assert caught.value.code == "APPROVAL_DENIED"
    assert m.start("id").running
