"""Each line about a request has its id, and the machine's where one is known; and what is counted beside."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from roost.gateway.metrics import Metrics
from roost.logs import _console, _Handover

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("logged")
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.gateway.logged", str(directory)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return directory


def test_lines_say_which_request_and_which_machine(ran: Path) -> None:
    lines: list[dict[str, Any]] = [
        json.loads(each) for each in (ran / "logs/daemon.log").read_text().splitlines()
    ]
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["status"] for line in requests] == [201, 200, 200, 200, 404]
    assert len({line["request_id"] for line in requests}) == 5
    machine_id = requests[0]["machine_id"]
    assert [line["machine_id"] for line in requests[1:]] == [machine_id] * 3 + ["0" * 26]
    # Told by the engine, in a task of its own, through the standard library's loggers.
    lost = [line for line in lines if "its memory is lost" in line["event"]]
    assert len(lost) == 1
    assert lost[0]["machine_id"] == machine_id
    assert lost[0]["request_id"] in {line["request_id"] for line in requests[2:4]}
    # What happens by itself is about the machine and about no request.
    again = [line for line in lines if "retrying after" in line["event"]]
    assert again
    assert {line["machine_id"] for line in again} == {machine_id}
    assert not any("request_id" in line for line in again)
    marks = [line for line in lines if line["logger"] == "marks"]
    assert len(marks) == 2
    assert not any("machine_id" in line for line in marks)


def test_what_is_counted(ran: Path) -> None:
    families = list(text_string_to_metric_families((ran / "metrics").read_text()))
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }
    assert found["roost_machines", ("driver", "fake"), ("phase", "failed")] == 1
    for kind in ("create", "sleep", "wake", "reap"):
        assert found["roost_operations_total", ("code", ""), ("kind", kind)] == 1
        assert found["roost_operation_seconds_count", ("kind", kind)] == 1
    assert found["roost_failures_total", ("code", "MACHINE_NOT_FOUND")] == 1
    assert found["roost_network_slots", ("state", "used")] == 0
    assert found["roost_network_slots", ("state", "free")] == 1000
    assert found["roost_pool_bytes", ("state", "free")] == 50
    assert found["roost_warm_machines",] == 0
    assert found["roost_database_write_queue",] == 0
    assert found["roost_usage_vcpu_seconds_total",] > 0
    assert found["roost_usage_memory_byte_seconds_total",] == pytest.approx(
        found["roost_usage_vcpu_seconds_total",] * 10 * 64 * 2**20
    )
    assert found["roost_usage_egress_bytes_total",] == 0
    counters = [family.name for family in families if family.type == "counter"]
    assert counters
    assert not any(name.endswith("_total") for name in counters), "the parser takes the suffix off"


async def test_a_loop_that_is_held_up_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio
    import time

    metrics = Metrics()
    watching = asyncio.ensure_future(metrics.watch_loop())
    count = low = 0.0
    async with asyncio.timeout(30):
        while count <= low:
            await asyncio.sleep(0.9)
            time.sleep(0.4)  # nobody's turn comes
            await asyncio.sleep(0.05)
            text = (await metrics.render()).decode()
            said = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[:1] != "#")
            count = float(said["roost_event_loop_lag_seconds_count"])
            low = float(said['roost_event_loop_lag_seconds_bucket{le="0.1"}'])
    watching.cancel()


def test_a_stranger_writes_no_line_of_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a field, nor in what is said, nor in an exception's text: one line, and a traceback's set in."""
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    out = io.StringIO()
    handler = _console(out)  # type: ignore[arg-type]
    forged = "<3>request method=GET tenant=default"
    handover = _Handover(None)  # type: ignore[arg-type]

    def told(message: Any, exc_info: Any = None) -> list[str]:
        out.truncate(out.seek(0))
        record = logging.LogRecord("x", logging.INFO, "", 0, message, None, exc_info)
        if isinstance(message, dict):  # as structlog hands it over
            record._logger, record._name = None, "info"
        handler.emit(handover.prepare(record))
        return out.getvalue().splitlines()

    for end in ("\n", "\r", "\x85", "\u2028", "\x0b", "\x1b[2J", "\0"):
        (line,) = told(f"said{end}{forged}")
        assert line.startswith("<6>said\\")
        (line,) = told({"event": "request", "path": f"/x{end}{forged}", "status": 404})
        assert line.startswith('<6>request path="/x\\') and line.endswith(
            ' tenant=default" status=404'
        )
        try:
            raise ValueError(f"no{end}{forged}")
        except ValueError:
            first, *trace = told("failed", sys.exc_info())
        assert first.startswith("<6>failed")
        assert all(line.startswith("<6>  ") for line in trace)
        assert any("Traceback" in line for line in trace)
    (line,) = told({"event": "request", "path": "/é tenant=default", "peer": "::1", "ms": 1.5})
    assert line == '<6>request path="/é tenant=default" peer=::1 ms=1.5'


def test_a_stranger_does_not_steer_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    out = io.StringIO()
    record = logging.LogRecord("x", logging.WARNING, "", 0, {"event": "request"}, None, None)
    record._logger, record._name = None, "warning"
    record.msg["path"] = "/\x1b[2J"  # type: ignore[index]
    _console(out).emit(record)  # type: ignore[arg-type]
    assert r"/\x1b[2J" in out.getvalue() and "\x1b" not in out.getvalue()
