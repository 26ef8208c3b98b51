"""What needs no server: durations, events, errors."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime

import pytest

from roost.dialects.dedalus import asked, events
from roost.dialects.dedalus.app import action
from roost.dialects.dedalus.errors import problem
from roost.errors import InvalidRequestError, error
from roost.services.outcome import HEAD_BYTES
from roost.store.executions import ExecutionRow

NOW = datetime(2026, 1, 2, tzinfo=UTC)
ROW = ExecutionRow(
    id="e", tenant_id="t", machine_id="m", command=["x"], status="running", created_at=NOW
)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("30s", 30), ("30m", 1800), ("2h", 7200), ("7d3h4s", 7 * 86400 + 3 * 3600 + 4), ("1w3d", 10 * 86400),
        ("1800", 1800), (60, 60), ("never", None), ("0", None), (" 5m ", 300),
    ],
)  # fmt: skip
def test_autosleep(said: str | int, seconds: int | None) -> None:
    assert asked.autosleep(said) == seconds


@pytest.mark.parametrize("said", ["", "5", "s5", "-1", "5 m", "1.5h", "9" * 12, "99999w", "5y"])
def test_no_autosleep(said: str) -> None:
    if said == "5":
        assert asked.autosleep(said) == 5
        return
    with pytest.raises(InvalidRequestError, match="autosleep"):
        asked.autosleep(said)


def test_events_of_one_that_runs_go_on_where_they_were() -> None:
    row = dataclasses.replace(ROW, stdout="aé".encode()[:-1], stdout_bytes=2)
    found, place = events.events(row, events.Place(), 10, NOW)
    assert [(e["sequence"], e["type"], e.get("chunk")) for e in found] == [
        (0, "lifecycle", None),
        (1, "stdout", "a"),
    ]
    assert place is not None
    assert events.events(row, place, 10, NOW) == ([], place)
    row = dataclasses.replace(
        row,
        stdout="aé".encode(),
        stdout_bytes=3,
        stderr=b"oh",
        stderr_bytes=2,
        status="failed",
        exit_code=3,
        ended_at=NOW,
    )
    again = events.Place.read(str(place))
    found, last = events.events(row, again, 2, NOW)
    assert [(e["sequence"], e["type"], e["chunk"]) for e in found] == [
        (2, "stdout", "é"),
        (3, "stderr", "oh"),
    ]
    assert last is not None
    found, end = events.events(row, last, 2, NOW)
    assert end is None
    assert found[0]["sequence"] == 4
    assert (found[0]["status"], found[0]["exit_code"]) == ("failed", 3)


def test_events_skip_what_was_not_kept() -> None:
    data = b"h" * HEAD_BYTES + b"t" * 10
    row = dataclasses.replace(
        ROW,
        status="succeeded",
        stdout=data,
        stdout_bytes=HEAD_BYTES + 1000,
        stdout_truncated=True,
        ended_at=NOW,
        started_at=NOW,
    )
    found, place = events.events(row, events.Place(), 500, NOW)
    assert place is None
    text = "".join(e.get("chunk", "") for e in found)
    assert text == data.decode()
    assert [e["sequence"] for e in found] == list(range(len(found)))


def test_one_that_never_ran_has_its_end_alone() -> None:
    row = dataclasses.replace(ROW, status="failed", exit_code=127, ended_at=NOW, reason="lost")
    found, place = events.events(row, events.Place(), 10, NOW)
    assert place is None
    assert [(e["type"], e["status"], e["error_code"]) for e in found] == [
        ("lifecycle", "failed", "EXECUTION_LOST")
    ]


@pytest.mark.parametrize("cursor", ["", "1.2", "1.2.x", "1.2.3.4", "-1.0.0", "9" * 16 + ".0.0"])
def test_no_cursor(cursor: str) -> None:
    with pytest.raises(InvalidRequestError) as failure:
        events.Place.read(cursor)
    assert failure.value.code == "INVALID_CURSOR"


def test_errors_say_whether_to_come_again() -> None:
    status, headers, body = problem(
        error("RATE_LIMITED", "slow", details={"retry_after_s": 0.25}), "r"
    )
    said = dict(headers)
    assert (status, said[b"x-should-retry"], said[b"retry-after-ms"]) == (429, b"true", b"250")
    assert json.loads(body) == {
        "error_code": "RATE_LIMITED",
        "message": "slow",
        "retryable": True,
        "retry_after_ms": 250,
        "details": {"retry_after_s": 0.25, "request_id": "r"},
    }
    status, headers, body = problem(error("INVALID_STATE", "no"), "r")
    assert (status, dict(headers)[b"x-should-retry"]) == (409, b"false")
    assert "retry_after_ms" not in json.loads(body)


def test_calls_in_the_audit_log() -> None:
    def of(method: str, path: str) -> object:
        found = action({"type": "http", "method": method, "path": path})
        return found and (found.name, found.lasting, found.machine_id)

    assert of("POST", "/v1/machines") == ("dedalus_machines_create", True, None)
    assert of("POST", "/v1/machines/m/sleep") == ("dedalus_machines_sleep", True, "m")
    assert of("DELETE", "/dedalus/v1/machines/m/executions/e") == (
        "dedalus_executions_delete",
        False,
        "m",
    )
    assert of("GET", "/v1/machines/m") is None
    assert of("POST", "/v1/usage") is None
