"""How an execution ended, from the agent's words to the row that is kept."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from roost.agent.v1 import agent_pb2 as pb

HEAD_BYTES = 512 * 1024
TAIL_BYTES = 512 * 1024
_KEEP = HEAD_BYTES + TAIL_BYTES


def ended(result: pb.ExecutionResult) -> dict[str, Any]:
    """The columns of an execution that the agent says is over."""
    said = result.execution
    stdout, stdout_cut = _kept(result.stdout, result.stdout_truncated)
    stderr, stderr_cut = _kept(result.stderr, result.stderr_truncated)
    return {
        **over(said),
        "stdout": stdout,
        "stderr": stderr,
        "stdout_bytes": max(said.stdout_bytes, len(stdout)),
        "stderr_bytes": max(said.stderr_bytes, len(stderr)),
        "stdout_truncated": stdout_cut,
        "stderr_truncated": stderr_cut,
        "ended_at": _time(said.ended_at_unix_ms) if said.ended_at_unix_ms else _now(),
    }


def over(said: pb.Execution) -> dict[str, Any]:
    """The same without its output."""
    return {
        **progress(said),
        "status": _status(said),
        "exit_code": said.exit_code if said.HasField("exit_code") else None,
        "signal": said.signal if said.HasField("signal") else None,
        "reason": "timeout" if said.state == pb.EXECUTION_STATE_TIMED_OUT else None,
    }


def progress(said: pb.Execution) -> dict[str, Any]:
    """The columns that are known while it runs."""
    return {
        "started_at": _time(said.started_at_unix_ms) if said.started_at_unix_ms else _now(),
        "duration_us": said.duration_us,
        "stdout_bytes": said.stdout_bytes,
        "stderr_bytes": said.stderr_bytes,
    }


def failed(reason: str, exit_code: int | None = None) -> Mapping[str, Any]:
    """The columns of one that failed by no doing of its own."""
    return {"status": "failed", "reason": reason, "exit_code": exit_code, "ended_at": _now()}


def expired(result: pb.ExecutionResult | None) -> dict[str, Any]:
    """The columns of one whose timeout is over, whatever its agent says or does not."""
    known = {} if result is None else ended(result)
    over = {"status": "expired", "reason": "timeout"}
    return {"ended_at": _now(), "exit_code": None, "signal": None, **known, **over}


def _status(said: pb.Execution) -> str:
    match said.state:
        case pb.EXECUTION_STATE_TIMED_OUT:
            return "expired"
        case pb.EXECUTION_STATE_KILLED:
            return "cancelled"
    clean = said.HasField("exit_code") and said.exit_code == 0 and not said.HasField("signal")
    return "succeeded" if clean else "failed"


def _kept(data: bytes, truncated: bool) -> tuple[bytes, bool]:
    if len(data) <= _KEEP:
        return data, truncated
    return data[:HEAD_BYTES] + data[-TAIL_BYTES:], True


def _time(unix_ms: int) -> datetime:
    return datetime.fromtimestamp(unix_ms / 1000, UTC)


def _now() -> datetime:
    return datetime.now(UTC)
