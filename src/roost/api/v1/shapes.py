"""Records of the services as the JSON of the specification."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from roost import claims
from roost.egress.interface import Decision
from roost.engine.tools import Tools
from roost.gateway.respond import rfc3339
from roost.secrets import Secret
from roost.services.approvals import Approval
from roost.services.diffs import Diff, Difference, Side
from roost.services.executions import Begun, Dropped, Ended, Event, Output
from roost.services.files import FileEvent, FileInfo, at_ns
from roost.services.models import (
    Attachment,
    AuditEntry,
    Build,
    Key,
    Machine,
    MachineEvent,
    MachineUsage,
    Node,
    Page,
    Port,
    Sample,
    Snapshot,
    Template,
    Tenant,
    Volume,
)
from roost.services.policies import EgressReport
from roost.services.ssh_keys import SshKey
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
        "egress": m.egress.to_json(),
        "parent_id": m.parent_id,
        "from_snapshot_id": m.from_snapshot_id,
        "replaces": m.replaces,
        "inside": {
            "allow": list(m.inside.allow),
            "forks": m.inside.forks,
            "forked": m.inside.forked,
        },
        "tools": tools(m.tools),
        "volumes": [each.to_json() for each in m.volumes],
        "expiry": m.expiry,
        "autowake": m.autowake,
        "unrestricted": m.unrestricted,
        "warnings": claims.warnings(m.capabilities.level, m.unrestricted),
        "run_as": m.run_as,
        "node_id": m.node_id,
        "created_at": time(m.created_at),
    }


def tools(t: Tools) -> Object:
    return t.to_json()


def approval(a: Approval) -> Object:
    return {
        "approval_id": a.id,
        "execution_id": a.id,
        "machine_id": a.machine_id,
        "status": a.status,
        "asked": dict(a.shown),
        "asked_by": a.asked_by,
        "created_at": time(a.created_at),
        "expires_at": time(a.expires_at),
        "decided_at": time(a.decided_at),
        "decided_by": a.decided_by,
        "note": a.note,
    }


def volume(v: Volume) -> Object:
    return {
        "volume_id": v.id,
        "name": v.name,
        "size_gib": v.size_gib,
        "raw_written": v.raw_written,
        "attachments": [
            {name: getattr(each, name) for name in Attachment.__slots__} for each in v.attachments
        ],
        "created_at": time(v.created_at),
    }


def sample(s: Sample) -> Object:
    return {**{name: getattr(s, name) for name in Sample.__slots__}, "at": time(s.at)}


def node(n: Node) -> Object:
    return {**{name: getattr(n, name) for name in Node.__slots__}, "created_at": time(n.created_at)}


def diff(d: Diff) -> Object:
    return {
        "machine_id": d.machine_id,
        "other": d.other,
        "items": [_difference(each) for each in d.items],
        "counts": {change.value: number for change, number in d.counts.items()},
        "compared": d.compared,
        "truncated": d.truncated,
    }


def _difference(d: Difference) -> Object:
    path, exact = text(d.path)
    shown: Object = {
        "path": path,
        "change": d.change.value,
        "before": _side(d.before),
        "after": _side(d.after),
        "unsure": d.unsure,
    }
    if not exact:
        shown["path_b64"] = b64(d.path)
    return shown


def _side(side: Side | None) -> Object | None:
    if side is None:
        return None
    shown: Object = {
        "kind": side.kind,
        "size": side.size,
        "mode": f"{side.mode:04o}",
        "uid": side.uid,
        "gid": side.gid,
        "mtime": time(at_ns(side.mtime_ns)),
    }
    if side.link_target is not None:
        shown["link_target"] = text(side.link_target)[0]
    return shown


def egress(report: EgressReport) -> Object:
    suggested = report.suggested
    return {
        **report.policy.to_json(),
        "decisions": [decision(each) for each in report.decisions],
        "suggested": {
            "allow": list(suggested.allow),
            "wildcards": [
                {"entry": each.entry, "instead_of": list(each.instead_of)}
                for each in suggested.wildcards
            ],
            "left_out": suggested.left_out,
        },
    }


def decision(d: Decision) -> Object:
    shown: Object = {name: getattr(d, name) for name in Decision.__slots__}
    for name in ("first_at", "last_at"):
        shown[name] = time(datetime.fromtimestamp(shown[name], UTC))
    return shown


def secret(s: Secret) -> Object:
    """Its value is nowhere in here."""
    return {
        "name": s.name,
        "hosts": [str(each) for each in s.hosts],
        "header": s.header,
        "format": s.format if s.header is not None else None,
        "placeholder": s.placeholder,
        "in_body": s.in_body,
        "created_at": time(s.created_at),
        "updated_at": time(s.updated_at),
    }


def snapshot(s: Snapshot) -> Object:
    shown = {
        name: getattr(s, name) for name in Snapshot.__slots__ if name not in ("id", "tenant_id")
    }
    return {"snapshot_id": s.id, **shown, "created_at": time(s.created_at)}


def port(p: Port, url: str | None) -> Object:
    shown = ("machine_id", "port", "protocol", "visibility", "name")
    about = {name: getattr(p, name) for name in shown}
    return {"port_id": p.id, **about, "url": url, "created_at": time(p.created_at)}


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
        "name": row.name,
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
        case Begun():
            return "started", execution(event.execution)
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
        "pid": t.pid,
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
        "tags": list(t.tags),
        "shipped": t.tenant_id is None,
        "parent_id": t.parent_id,
        "config": dict(t.config),
        "error": None if t.error is None else dict(t.error),
        "created_at": time(t.created_at),
        "updated_at": time(t.updated_at),
    }


def build(b: Build) -> Object:
    return {
        "build_id": b.id,
        "tags": list(b.tags),
        "status": b.status,
        "step": b.step,
        "steps": b.steps,
        "cached": b.cached,
        "driver": b.driver,
        "template_id": b.template_id,
        "digest": b.digest,
        "machine_id": b.machine_id,
        "error": None if b.error is None else dict(b.error),
        "created_at": time(b.created_at),
        "started_at": time(b.started_at),
        "ended_at": time(b.ended_at),
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


def ssh_key(k: SshKey) -> Object:
    return {
        "ssh_key_id": k.id,
        "name": k.name,
        "fingerprint": k.fingerprint,
        "public_key": k.public_key,
        "created_at": time(k.created_at),
        "last_used_at": time(k.last_used_at),
    }


def tenant(t: Tenant) -> Object:
    shown: Object = {
        "tenant_id": t.id,
        "name": t.name,
        "quotas": {name: t.quotas.get(name) for name in QUOTAS},
        "isolation": t.isolation,
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
