from __future__ import annotations

import logging
from datetime import date

import pytest

from roost import (
    AuthError,
    CapacityError,
    Client,
    ConflictError,
    InternalError,
    LimitError,
    Machine,
    NotFoundError,
    TimeoutExpired,
    UnavailableError,
)
from roost.errors import CODES

from .stub import MACHINE_ID, Answer, Stub, machine, wire


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_comes_out_as_its_class(stub: Stub, client: Client, code: str) -> None:
    status, _, kind = CODES[code]
    stub.on("GET", "/v1/host", lambda _: Answer(wire(code, "why", request_id="r1"), status))
    with pytest.raises(kind) as caught:
        client.host()
    assert caught.value.code == code
    assert caught.value.message == "why"
    assert caught.value.details["request_id"] == "r1"


def test_an_answer_that_is_not_ours(stub: Stub, client: Client) -> None:
    stub.on("GET", "/v1/host", lambda _: Answer(b"<html>bad gateway</html>", 503))
    with pytest.raises(UnavailableError, match="answered 503"):
        client.host()
    stub.on("GET", "/v1/host", lambda _: Answer(b"<html>hello</html>"))
    with pytest.raises(InternalError, match="not JSON"):
        client.host()


def test_an_unknown_code_keeps_its_text(stub: Stub, client: Client) -> None:
    stub.on("GET", "/v1/host", lambda _: Answer(wire("FROM_THE_FUTURE", "new"), 409))
    with pytest.raises(ConflictError, match="new") as caught:
        client.host()
    assert caught.value.details["unknown_code"] == "FROM_THE_FUTURE"


def test_no_daemon_says_what_to_type() -> None:
    with pytest.raises(UnavailableError, match="roost up") as caught:
        Client("http://127.0.0.1:1", "k").host()
    assert caught.value.code == "DAEMON_UNREACHABLE"


def test_a_slow_daemon_is_a_timeout(stub: Stub) -> None:
    import time

    stub.on("GET", "/v1/host", lambda _: time.sleep(1))
    with Client(timeout=0.1) as client, pytest.raises(TimeoutExpired):
        client.host()


def test_a_broken_connection_is_retried_once_with_the_same_key(
    stub: Stub, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    stub.on("POST", "/v1/machines", lambda _: machine())
    stub.drop_next = 1
    with caplog.at_level(logging.WARNING, "roost.client"):
        assert Machine.create(client=client).id == MACHINE_ID
    first, second = stub.asked("POST", "/v1/machines")
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert "once more" in caplog.text
    stub.drop_next = 2
    with pytest.raises(UnavailableError) as caught:
        Machine.create(client=client)
    assert caught.value.code == "DAEMON_UNREACHABLE"


def test_a_retry_waits_for_the_first_try_to_end(stub: Stub, client: Client) -> None:
    answers = [Answer(wire("IDEMPOTENCY_IN_PROGRESS"), 409), Answer(machine())]
    stub.on("POST", "/v1/machines", lambda _: answers.pop(0))
    stub.drop_next = 1
    assert Machine.create(client=client).id == MACHINE_ID
    assert not answers


def test_a_streamed_body_is_sent_once(stub: Stub, client: Client) -> None:
    stub.on("PUT", f"/v1/machines/{MACHINE_ID}/files", lambda _: None)
    m = Machine.get(MACHINE_ID, client=client)
    stub.drop_next = 1
    with pytest.raises(UnavailableError):
        m.files.write("/a", iter([b"x"]))


def test_busy_is_an_error_unless_waiting_was_asked_for(stub: Stub, client: Client) -> None:
    busy = Answer(wire("RATE_LIMITED"), 429, {"Retry-After": "0.01"})
    stub.on("GET", "/v1/host", lambda _: busy)
    with pytest.raises(LimitError):
        client.host()
    assert len(stub.asked("GET", "/v1/host")) == 1
    with Client(max_retry_wait=0.035) as patient, pytest.raises(LimitError):
        patient.host()
    assert len(stub.asked("GET", "/v1/host")) == 1 + 4
    stub.on("GET", "/v1/host", lambda _: Answer(wire("CAPACITY_EXCEEDED"), 503))
    with Client(max_retry_wait=9) as patient, pytest.raises(CapacityError):
        patient.host()  # no Retry-After, no waiting


def test_pages_are_walked(stub: Stub, client: Client) -> None:
    def page(request: object) -> dict[str, object]:
        cursor = int(request.query.get("cursor", "0"))  # type: ignore[attr-defined]
        return {
            "items": [machine(machine_id=f"{cursor + i:026d}") for i in range(2)],
            "next_cursor": str(cursor + 2) if cursor < 4 else None,
        }

    stub.on("GET", "/v1/machines", page)
    assert len(Machine.list(client=client)) == 6
    assert [m.id for m in Machine.list(client=client, limit=1)] == [f"{0:026d}", f"{1:026d}"][:2]


def test_what_a_caller_puts_in_a_path_stays_one_segment(stub: Stub, client: Client) -> None:
    with pytest.raises(NotFoundError):
        Machine.get("../keys", client=client)
    assert stub.seen == []


def test_a_wrong_key(stub: Stub, client: Client) -> None:
    stub.on("GET", "/v1/host", lambda _: Answer(wire("AUTH_INVALID"), 401))
    with pytest.raises(AuthError):
        client.host()


def test_usage_asks_for_days_and_groups(stub: Stub, client: Client) -> None:
    found = {"items": [], "total": {"cost": "0.000000"}}
    stub.on("GET", "/v1/usage", lambda _: found)
    assert client.usage() == found
    assert stub.seen[-1].query == {"group_by": "day"}
    client.usage(date(2026, 3, 1), "2026-03-02", group_by=["day", "key"], tenant="t")
    assert stub.seen[-1].query == {
        "from": "2026-03-01", "to": "2026-03-02", "group_by": "day,key", "tenant": "t",
    }  # fmt: skip
