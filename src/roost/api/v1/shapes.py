"""Records of the services as the JSON of the specification."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from roost.gateway.respond import rfc3339
from roost.services.executions import Dropped, Ended, Event, Output
from roost.services.files import FileEvent, FileInfo
from roost.services.models import (
    AuditEntry,
    Key,
    Machine,
    MachineEvent,
    MachineUsage,
    Page,
    Snapshot,
    Template,
    Tenant,
)
from roost.services.tenants import QUOTAS
from roost.services.terminals import Terminal
from roost.services.usage import UsageReport, UsageRow
from roost.store.executions import ExecutionRow

T = TypeVar("T")
Object = dict[str, Any]


def time(at: datetime | None) -> str | None:
    return None if at is None else rfc3339(at)


def page(found: Page[T], shape: Callable[[T], Object]) -> Object:
    return {"items": [shape(item) for item in found.items], "next_cursor": found.next_cursor}


def machine(m: Machine) -> Object:
    status: Object = {
        "phase": m.phase,
        "tier": m.tier,
        "reason": m.reason,
        "retryable": m.retryable,
        "revision": m.revision,
        "last_transition_at": time(m.last_transition_at),
        "last_progress_at": time(m.last_progress_at),
    }
    if m.last_error is not None:
        status["last_error"] = dict(m.last_error)
    return {
        "machine_id": m.id,
        "key": m.key,
        "name": m.name,
        "labels": dict(m.labels),
        "template": m.template,
        "image_digest": m.image_digest,
        "vcpu": m.vcpu,
        "memory_mib": m.memory_mib,
        "storage_gib": m.storage_gib,
        "env": dict(m.env),
        "autosleep_seconds": m.autosleep_seconds,
        "hibernate_after_seconds": m.hibernate_after_seconds,
        "ttl_seconds": m.ttl_seconds,
        "expires_at": time(m.expires_at),
        "desired_state": m.desired_state,
        "phase": m.phase,
        "status": status,
        "isolation": m.isolation,
        "memory_kept": m.memory_kept,
        "node_id": m.node_id,
        "created_at": time(m.created_at),
    }


def snapshot(s: Snapshot) -> Object:
    shown = {
        name: getattr(s, name) for name in Snapshot.__slots__ if name not in ("id", "tenant_id")
    }
    return {"snapshot_id": s.id, **shown, "created_at": time(s.created_at)}


def usage(u: MachineUsage) -> Object:
    return {name: getattr(u, name) for name in MachineUsage.__slots__}


def usage_row(row: UsageRow) -> Object:
    """A key nobody knows of is null."""
    amounts = row.amounts
    return {
        **{name: value or None for name, value in row.group.items()},
        "vcpu_seconds": float(amounts.vcpu_seconds),
        "memory_gib_seconds": float(amounts.memory_gib_seconds),
        "storage_gib_hours": float(amounts.storage_gib_hours),
        "egress_bytes": amounts.egress_bytes,
        "cost": str(row.cost),
    }


def usage_report(report: UsageReport) -> Object:
    return {
        "from": report.first.isoformat(),
        "to": report.last.isoformat(),
        "group_by": list(report.group_by),
        "prices": report.prices.to_wire(),
        "items": [usage_row(row) for row in report.items],
        "total": usage_row(report.total),
    }


def machine_event(e: MachineEvent) -> Object:
    return {"at": time(e.at), "event": e.event, "message": e.message}


def execution(row: ExecutionRow) -> Object:
    return {
        "execution_id": row.id,
        "machine_id": row.machine_id,
        "command": row.command,
        "cwd": row.cwd,
        "user": row.user,
        "status": row.status,
        "exit_code": row.exit_code,
        "signal": row.signal,
        "reason": row.reason,
        "timeout_ms": row.timeout_ms,
        "keep_awake": row.keep_awake,
        "stdout_bytes": row.stdout_bytes or 0,
        "stderr_bytes": row.stderr_bytes or 0,
        "stdout_truncated": bool(row.stdout_truncated),
        "stderr_truncated": bool(row.stderr_truncated),
        "duration_ms": None if row.duration_us is None else row.duration_us / 1000,
        "created_at": time(row.created_at),
        "started_at": time(row.started_at),
        "ended_at": time(row.ended_at),
    }


def finished(row: ExecutionRow) -> Object:
    return {**execution(row), **_streams(row)}


def output(row: ExecutionRow) -> Object:
    return {
        "execution_id": row.id,
        **_streams(row),
        "stdout_bytes": row.stdout_bytes or 0,
        "stderr_bytes": row.stderr_bytes or 0,
        "stdout_truncated": bool(row.stdout_truncated),
        "stderr_truncated": bool(row.stderr_truncated),
    }


def _streams(row: ExecutionRow) -> Object:
    shown: Object = {}
    for name, data in (("stdout", row.stdout or b""), ("stderr", row.stderr or b"")):
        try:
            shown[name] = data.decode()
        except UnicodeDecodeError:
            shown[name] = data.decode(errors="replace")
            shown[f"{name}_b64"] = b64(data)
    return shown


def stream_event(event: Event) -> tuple[str, Object]:
    """Its name and its data."""
    match event:
        case Output():
            return event.stream, {"offset": event.offset, "data_b64": b64(event.data)}
        case Dropped():
            return "dropped", {"stream": event.stream, "bytes": event.bytes}
        case Ended():
            return "exit", execution(event.execution)


def terminal(t: Terminal, stream_url: str) -> Object:
    return {
        "terminal_id": t.id,
        "machine_id": t.machine_id,
        "status": "ready" if t.alive else "closed",
        "width": t.width,
        "height": t.height,
        "protocol": "websocket",
        "stream_url": stream_url,
        "exit_code": t.exit_code,
        "viewers": t.viewers,
        "created_at": time(t.created_at),
    }


def file_info(info: FileInfo) -> Object:
    path, exact = text(info.path)
    shown: Object = {
        "path": path,
        "name": text(info.name)[0],
        "kind": info.kind,
        "size": info.size,
        "mode": f"{info.mode:04o}",
        "uid": info.uid,
        "gid": info.gid,
        "owner": info.owner,
        "group": info.group,
        "mtime": time(info.mtime),
    }
    if info.link_target is not None:
        shown["link_target"] = text(info.link_target)[0]
        shown["target_kind"] = info.target_kind
    if not exact:
        shown["path_b64"] = b64(info.path)
    return shown


def file_event(event: FileEvent) -> Object:
    path, exact = text(event.path)
    shown: Object = {"path": path, "directory": event.directory}
    if not exact:
        shown["path_b64"] = b64(event.path)
    if event.new_path is not None:
        new_path, exact = text(event.new_path)
        shown["new_path"] = new_path
        if not exact:
            shown["new_path_b64"] = b64(event.new_path)
    return shown


def template(t: Template) -> Object:
    return {
        "name": t.name,
        "template_id": t.id,
        "status": t.status,
        "digest": t.digest,
        "size_bytes": t.size_bytes,
        "config": dict(t.config),
        "error": None if t.error is None else dict(t.error),
        "created_at": time(t.created_at),
        "updated_at": time(t.updated_at),
    }


def key(k: Key) -> Object:
    shown = {"key_id": k.id, "tenant_id": k.tenant_id, "role": k.role, **_of_key(k)}
    if k.secret is not None:
        shown["key"] = k.secret
    return shown


def token(k: Key) -> Object:
    scope = {"scope": k.role, "machine_id": k.machine_id, "port": k.port}
    shown = {"token_id": k.id, **scope, **_of_key(k)}
    if k.secret is not None:
        shown["token"] = k.secret
    return shown


def _of_key(k: Key) -> Object:
    return {
        "name": k.name,
        "created_at": time(k.created_at),
        "last_used_at": time(k.last_used_at),
        "expires_at": time(k.expires_at),
    }


def tenant(t: Tenant) -> Object:
    shown: Object = {
        "tenant_id": t.id,
        "name": t.name,
        "quotas": {name: t.quotas.get(name) for name in QUOTAS},
        "created_at": time(t.created_at),
    }
    if t.usage is not None:
        shown["used"] = dict(t.usage)
    return shown


def audit_entry(e: AuditEntry) -> Object:
    return {**{name: getattr(e, name) for name in AuditEntry.__slots__}, "at": time(e.at)}


def text(raw: bytes) -> tuple[str, bool]:
    """As text, and whether that is all of it."""
    try:
        return raw.decode(), True
    except UnicodeDecodeError:
        return raw.decode(errors="replace"), False


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
