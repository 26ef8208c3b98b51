"""Records of the services as this client reads them.

Its two versions differ in where a machine's phase stands (``status`` in one, flat in the other's lists) and in what an
execution must have: each is told all of it.
"""

from __future__ import annotations

from typing import Any

from roost.api.v1.shapes import time
from roost.services.models import Machine, Port
from roost.services.ssh_keys import SshKey
from roost.services.terminals import Terminal
from roost.store.executions import WAITING, ExecutionRow

Object = dict[str, Any]
# Whose words a reason of ours is, for ``error_message``.
_REASONS = {
    "timeout": ("TIMEOUT", "It ran longer than its timeout_ms, and was ended."),
    "machine_stopped": ("MACHINE_STOPPED", "Its machine stopped under it."),
    "lost": ("EXECUTION_LOST", "Its machine went on without it."),
}


def machine(m: Machine) -> Object:
    phase = "starting" if m.phase == "waking" else m.phase
    status: Object = {
        "phase": phase,
        "reason": m.reason or "",
        "retryable": m.retryable,
        "revision": str(m.revision),
        "last_transition_at": time(m.last_transition_at),
        "last_progress_at": time(m.last_progress_at),
        "memory_configured_mib": m.memory_mib,
    }
    if phase == "running":
        status["memory_assigned_mib"] = m.memory_mib
        status["memory_resize_state"] = "stable"
    if m.last_error is not None:
        status["last_error"] = str(m.last_error.get("message") or m.last_error)
    return {
        "machine_id": m.id,
        "vcpu": m.vcpu,
        "memory_mib": m.memory_mib,
        "storage_gib": m.storage_gib,
        "autosleep_seconds": m.autosleep_seconds or 0,
        "desired_state": m.desired_state,
        "phase": phase,
        "status": status,
        "created_at": time(m.created_at),
    }


def execution(row: ExecutionRow) -> Object:
    shown: Object = {
        "execution_id": row.id,
        "machine_id": row.machine_id,
        "command": row.command,
        "status": "queued" if row.status == WAITING else row.status,
        "stdout_bytes": row.stdout_bytes or 0,
        "stderr_bytes": row.stderr_bytes or 0,
        "stdout_truncated": bool(row.stdout_truncated),
        "stderr_truncated": bool(row.stderr_truncated),
        "artifacts": [],
        "log_capture": {"state": "unavailable"},
        "created_at": time(row.created_at),
    }
    optional: Object = {
        "cwd": row.cwd,
        "exit_code": row.exit_code,
        "signal": row.signal,
        "started_at": time(row.started_at),
        "completed_at": time(row.ended_at),
        **why(row),
    }
    return {**shown, **{name: value for name, value in optional.items() if value is not None}}


def why(row: ExecutionRow) -> Object:
    """What it failed of, where that is no doing of its own."""
    if row.reason is None:
        return {}
    code, message = _REASONS.get(row.reason, (row.reason.upper(), row.reason))
    return {"error_code": code, "error_message": message}


def output(row: ExecutionRow) -> Object:
    return {
        "execution_id": row.id,
        "stdout": (row.stdout or b"").decode(errors="replace"),
        "stderr": (row.stderr or b"").decode(errors="replace"),
        "stdout_bytes": row.stdout_bytes or 0,
        "stderr_bytes": row.stderr_bytes or 0,
        "stdout_truncated": bool(row.stdout_truncated),
        "stderr_truncated": bool(row.stderr_truncated),
    }


def terminal(t: Terminal, stream_url: str) -> Object:
    shown: Object = {
        "terminal_id": t.id,
        "machine_id": t.machine_id,
        "status": "ready" if t.alive else "closed",
        "width": t.width,
        "height": t.height,
        "protocol": "websocket",
        "created_at": time(t.created_at),
    }
    if t.alive:
        shown["ready_at"] = shown["created_at"]
        shown["stream_url"] = stream_url
    return shown


def port(p: Port, url: str | None, noun: str, status: str = "ready") -> Object:
    """``noun``: port_id or preview_id, whichever it is asked by."""
    shown: Object = {
        noun: p.id,
        "machine_id": p.machine_id,
        "port": p.port,
        "protocol": p.protocol,
        "visibility": p.visibility,
        "status": status,
        "created_at": time(p.created_at),
        "ready_at": time(p.created_at),
    }
    if url is not None and status == "ready":
        shown["url"] = url
    return shown


def ssh_session(
    key: SshKey, machine_id: str, host: str, port: int, status: str = "ready"
) -> Object:
    shown: Object = {
        "session_id": key.id,
        "machine_id": machine_id,
        "status": status,
        "created_at": time(key.created_at),
        "ready_at": time(key.created_at),
    }
    if status == "ready":
        shown["connection"] = {"endpoint": host, "port": port, "ssh_username": machine_id}
    return shown


def page(items: list[Object], next_cursor: str | None = None) -> Object:
    return {"items": items, "next_cursor": next_cursor}
