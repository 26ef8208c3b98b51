"""The tables. Times are UTC; JSON columns hold plain objects; ids are ``ids.new()``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
    }
)


class UtcTime(sa.types.TypeDecorator[datetime]):
    """Aware UTC on the way in and out, also where the database forgets the zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("naive datetime")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


Time = UtcTime()

tenants = sa.Table(
    "tenants",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("name", sa.String(63), nullable=False),
    sa.Column("created_at", Time, nullable=False),
)

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("tenant_id", sa.ForeignKey("tenants.id"), nullable=False),
    sa.Column("name", sa.String(63), nullable=False),
    sa.Column(
        "secret_sha256", sa.String(64), nullable=False, unique=True
    ),  # of the hex secret, 256 bits: no salt needed
    sa.Column("created_at", Time, nullable=False),
    sa.Column("last_used_at", Time),
    sa.Column("revoked_at", Time),
)

templates = sa.Table(
    "templates",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("tenant_id", sa.ForeignKey("tenants.id")),  # NULL: shipped, everybody's
    sa.Column("name", sa.String(63), nullable=False),
    sa.Column("digest", sa.String(80)),  # of the image; NULL until built
    sa.Column("recipe_digest", sa.String(80)),
    sa.Column("status", sa.String(16), nullable=False),  # building | ready | failed
    sa.Column("error", sa.JSON),
    sa.Column("config", sa.JSON, nullable=False),  # env, user, workdir, no_new_privs, default size
    sa.Column("size_bytes", sa.BigInteger),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("updated_at", Time, nullable=False),
    sa.UniqueConstraint("tenant_id", "name"),
)

machines = sa.Table(
    "machines",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("tenant_id", sa.ForeignKey("tenants.id"), nullable=False),
    sa.Column("node_id", sa.String(40), nullable=False),
    sa.Column("key", sa.String(128)),
    sa.Column("name", sa.String(63)),
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("template_id", sa.String(40), nullable=False),
    sa.Column("template", sa.String(63), nullable=False),
    sa.Column("image_digest", sa.String(80), nullable=False),
    sa.Column("driver", sa.String(32), nullable=False),
    sa.Column("isolation", sa.String(16), nullable=False),
    sa.Column("capabilities", sa.JSON, nullable=False),  # of the driver when it last started
    sa.Column("vcpu", sa.Float, nullable=False),
    sa.Column("memory_mib", sa.Integer, nullable=False),
    sa.Column("storage_gib", sa.Integer, nullable=False),
    sa.Column("env", sa.JSON, nullable=False),
    sa.Column("autosleep_seconds", sa.Integer),  # NULL = never
    sa.Column("expires_at", Time),
    sa.Column("ttl_seconds", sa.Integer),
    sa.Column("desired_state", sa.String(16), nullable=False),  # running | sleeping | destroyed
    sa.Column("phase", sa.String(16), nullable=False),
    sa.Column("reason", sa.String(200)),
    sa.Column("retryable", sa.Boolean, nullable=False),
    sa.Column("last_error", sa.JSON),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("generation", sa.Integer, nullable=False),  # of its boots; part of the agent token
    sa.Column("disk_ready", sa.Boolean, nullable=False),  # a disk of its own exists
    sa.Column("slot_index", sa.Integer),
    sa.Column("handle", sa.JSON),
    sa.Column(
        "snapshot_id", sa.String(40)
    ),  # whose disk a fresh one is cloned from; NULL: the template's
    sa.Column("memory_image", sa.JSON),  # what the next start goes on from; NULL: it boots
    sa.Column("created_at", Time, nullable=False),
    sa.Column("last_transition_at", Time, nullable=False),
    sa.Column("last_progress_at", Time, nullable=False),
    sa.Column("last_activity_at", Time),
    # one living machine per tenant and key; destroyed rows free theirs by setting key NULL
    sa.UniqueConstraint("tenant_id", "key"),
    sa.Index(None, "tenant_id", "created_at", "id"),
    sa.Index(None, "phase"),
)

# Machines at one instant. Those made for a fork belong to no name and go when its children are made.
snapshots = sa.Table(
    "snapshots",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("tenant_id", sa.ForeignKey("tenants.id"), nullable=False),
    sa.Column("name", sa.String(63)),
    sa.Column("machine_id", sa.String(40), nullable=False),  # it is of; may be gone by now
    sa.Column("status", sa.String(16), nullable=False),  # creating | ready | quarantined
    sa.Column("for_fork", sa.Boolean, nullable=False),
    # the columns a machine made from it takes over; beside them "quarantined": why it is
    sa.Column("machine", sa.JSON, nullable=False),
    sa.Column("memory_image", sa.JSON),  # NULL: the disk alone
    sa.Column("size_bytes", sa.BigInteger),  # allocated, shared blocks included
    sa.Column("paused_ms", sa.Float),
    sa.Column("created_at", Time, nullable=False),
    sa.UniqueConstraint("tenant_id", "name"),
    sa.Index(None, "tenant_id", "created_at", "id"),
)

# A machine's own life, bounded per machine.
machine_events = sa.Table(
    "machine_events",
    metadata,
    sa.Column(
        "id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True
    ),  # ascending
    sa.Column("machine_id", sa.String(40), nullable=False),
    sa.Column("at", Time, nullable=False),
    sa.Column("event", sa.String(32), nullable=False),
    sa.Column("message", sa.String(500), nullable=False),
    sa.Index(None, "machine_id", "id"),
)

executions = sa.Table(
    "executions",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("tenant_id", sa.String(40), nullable=False),
    sa.Column("machine_id", sa.String(40), nullable=False),
    sa.Column("command", sa.JSON, nullable=False),  # argv as run
    sa.Column("cwd", sa.String(4096)),
    sa.Column("user", sa.String(64)),
    sa.Column(
        "status", sa.String(16), nullable=False
    ),  # queued running succeeded failed cancelled expired
    sa.Column("exit_code", sa.Integer),
    sa.Column("signal", sa.Integer),
    sa.Column("reason", sa.String(200)),
    sa.Column("timeout_ms", sa.BigInteger),
    sa.Column("stdout_bytes", sa.BigInteger),
    sa.Column("stderr_bytes", sa.BigInteger),
    sa.Column("stdout_truncated", sa.Boolean),
    sa.Column("stderr_truncated", sa.Boolean),
    sa.Column("stdout", sa.LargeBinary),  # kept once finished, bounded; NULL while the agent has it
    sa.Column("stderr", sa.LargeBinary),
    sa.Column("duration_us", sa.BigInteger),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("started_at", Time),
    sa.Column("ended_at", Time),
    sa.Index(None, "machine_id", "created_at", "id"),
    sa.Index(None, "status"),
)

idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("tenant_id", sa.String(40), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("request_sha256", sa.String(64), nullable=False),  # method, path, query, body
    sa.Column("status", sa.Integer),  # NULL while the first request runs
    sa.Column("headers", sa.JSON),
    sa.Column("body", sa.LargeBinary),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("expires_at", Time, nullable=False),
    sa.Index(None, "expires_at"),
)

# One row an operation, one row a step: what was begun must be finished or undone.
operations = sa.Table(
    "operations",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("kind", sa.String(32), nullable=False),  # create, wake, sleep, destroy, ...
    sa.Column("machine_id", sa.String(40), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),  # doing | undoing | done | undone | stuck
    sa.Column("step", sa.Integer, nullable=False),  # steps begun; the last may be half done
    sa.Column("context", sa.JSON, nullable=False),  # what later steps and undos need
    sa.Column("error", sa.JSON),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("updated_at", Time, nullable=False),
    sa.Index(None, "state"),
    sa.Index(None, "machine_id"),
)
