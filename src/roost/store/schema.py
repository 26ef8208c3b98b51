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
    # by name, of engine.quotas and services.rates; what is not named has no limit
    sa.Column("quotas", sa.JSON, nullable=False, server_default="{}"),
    sa.Column("isolation", sa.String(16)),  # the least of its machines; NULL: the profile's
    sa.Column("created_at", Time, nullable=False),
    sa.Index(None, "name", unique=True),
)

# Keys of people and programs, and tokens for one machine.
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
    # admin | tenant | runner | read_only | machine | preview
    sa.Column("role", sa.String(16), nullable=False, server_default="tenant"),
    sa.Column("machine_id", sa.String(40)),  # of a token: the one machine it is for
    sa.Column("port", sa.Integer),  # of a preview token: the one port
    sa.Column("expires_at", Time),  # NULL: never
    sa.Index(None, "tenant_id"),
    sa.Index(None, "machine_id"),
)

# Public keys that may come in over SSH. A key may be several tenants'.
ssh_keys = sa.Table(
    "ssh_keys",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("tenant_id", sa.ForeignKey("tenants.id"), nullable=False),
    sa.Column("name", sa.String(63), nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),  # as OpenSSH shows it: SHA256:...
    sa.Column("public_key", sa.Text, nullable=False),  # "<type> <base64>", without its comment
    sa.Column("created_at", Time, nullable=False),
    sa.Column("last_used_at", Time),
    sa.UniqueConstraint("tenant_id", "fingerprint"),
    sa.Index(None, "fingerprint"),
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
    sa.Column("config", sa.JSON, nullable=False),  # env, user, workdir, start, ready, size, ...
    sa.Column("size_bytes", sa.BigInteger),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("updated_at", Time, nullable=False),
    sa.Column("parent_id", sa.String(40)),  # the template it was built FROM
    sa.Index(None, "tenant_id", "name"),
)

# What templates of tenants are called; a shipped one is called what its row says, and ``latest``.
template_tags = sa.Table(
    "template_tags",
    metadata,
    sa.Column("tenant_id", sa.String(40), primary_key=True),
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("tag", sa.String(63), primary_key=True),
    sa.Column("template_id", sa.String(40), nullable=False),
    sa.Column("updated_at", Time, nullable=False),
    sa.Index(None, "template_id"),
)

# Disks after steps of builds, each an image of the pool, found again by all that went into it. Of shipped
# recipes' builds they are nobody's; a tenant's are never another's.
layers = sa.Table(
    "layers",
    metadata,
    sa.Column("tenant_id", sa.String(40), primary_key=True),
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("digest", sa.String(80), nullable=False),  # of the image
    sa.Column("content_digest", sa.String(80)),  # once somebody needed it
    sa.Column("created_at", Time, nullable=False),
    sa.Column("used_at", Time, nullable=False),
    sa.Index(None, "digest"),
)

builds = sa.Table(
    "builds",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("tenant_id", sa.String(40), nullable=False),  # nobody's: of a shipped recipe
    sa.Column("created_by", sa.String(40)),
    sa.Column("tags", sa.JSON, nullable=False),  # ["name:tag", ...]
    sa.Column("driver", sa.String(32)),
    # waiting (for its context) | queued | running | succeeded | failed | cancelled
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("steps", sa.Integer, nullable=False),
    sa.Column("cached", sa.Integer, nullable=False),  # steps that did not run
    sa.Column("template_id", sa.String(40)),  # of its template, made when it begins
    sa.Column("machine_id", sa.String(40)),  # kept after it failed
    sa.Column("digest", sa.String(80)),
    sa.Column("error", sa.JSON),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("started_at", Time),
    sa.Column("ended_at", Time),
    sa.Index(None, "tenant_id", "created_at", "id"),
    sa.Index(None, "status"),
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
    sa.Column("hibernate_after_seconds", sa.Integer),  # of one that is frozen; NULL = never
    sa.Column("expires_at", Time),
    sa.Column("ttl_seconds", sa.Integer),
    sa.Column("desired_state", sa.String(16), nullable=False),  # running | sleeping | destroyed
    sa.Column("phase", sa.String(16), nullable=False),
    sa.Column("tier", sa.String(16)),  # asleep: frozen | hibernated | stopped
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
    sa.Column("created_by", sa.String(40)),  # the key whose usage it is; NULL: nobody's yet
    sa.Column("egress", sa.JSON),  # what it may reach, as ``Policy.to_json``; NULL: open
    sa.Column("parent_id", sa.String(40)),  # it went on from, also where that is gone by now
    sa.Column("from_snapshot_id", sa.String(40)),  # a user's snapshot of the parent; NULL: a fork
    sa.Column("replaces", sa.String(40)),  # the machine whose key, name and ports it took
    sa.Column("inside", sa.JSON),  # what it may ask, as ``Allowance.to_json``; NULL: nothing
    sa.Column("tools", sa.JSON),  # what may be run in it, as ``Tools.to_json``; NULL: everything
    # its disks besides its own, as ``Mount.to_json``; who else has them is in volume_attachments
    sa.Column("volumes", sa.JSON),
    # once ``expires_at`` is past: destroy | sleep
    sa.Column("expiry", sa.String(16), nullable=False, server_default="destroy"),
    # whether what needs it wakes it; else only who asks for that
    sa.Column("autowake", sa.Boolean, nullable=False, server_default=sa.true()),
    # asked for: without our guardrails inside it; never without the boundary around it
    sa.Column("unrestricted", sa.Boolean, nullable=False, server_default=sa.false()),
    # it was a directory: what was in it is unpacked on its disk before its next start is told
    sa.Column("brings_tree", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column(
        "run_as", sa.String(64)
    ),  # of commands and terminals that do not say; NULL: the template's
    sa.Column("created_at", Time, nullable=False),
    sa.Column("last_transition_at", Time, nullable=False),
    sa.Column("last_progress_at", Time, nullable=False),
    sa.Column("last_activity_at", Time),
    # one living machine per tenant and key; destroyed rows free theirs by setting key NULL
    sa.UniqueConstraint("tenant_id", "key"),
    sa.Index(None, "tenant_id", "created_at", "id"),
    sa.Index(None, "phase"),
    sa.Index(None, "parent_id"),
)

# What is left of machines that are long destroyed while others that came of them live: so that a tree hangs together.
ancestors = sa.Table(
    "ancestors",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),  # the machine's
    sa.Column("tenant_id", sa.String(40), nullable=False),
    sa.Column("parent_id", sa.String(40)),
    sa.Column("from_snapshot_id", sa.String(40)),
    sa.Column("name", sa.String(63)),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("destroyed_at", Time, nullable=False),
    sa.Index(None, "tenant_id", "created_at"),
    sa.Index(None, "parent_id"),
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

# Disks of their own, that outlive machines: ``<id>.ext4`` in the pool. A row is there before its disk and goes after it.
volumes = sa.Table(
    "volumes",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("tenant_id", sa.ForeignKey("tenants.id"), nullable=False),
    sa.Column("name", sa.String(63), nullable=False),
    sa.Column("size_gib", sa.Integer, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),  # creating | ready | deleting
    # a virtual machine had it read-write: no host mounts it any more
    sa.Column("raw_written", sa.Boolean, nullable=False),
    sa.Column("created_by", sa.String(40)),
    sa.Column("created_at", Time, nullable=False),
    sa.UniqueConstraint("tenant_id", "name"),
    sa.Index(None, "tenant_id", "created_at", "id"),
)

# From the machine's row on until it is destroyed. Of one volume: one read-write, or any number read-only.
volume_attachments = sa.Table(
    "volume_attachments",
    metadata,
    sa.Column("volume_id", sa.String(40), primary_key=True),
    sa.Column("machine_id", sa.String(40), primary_key=True),
    sa.Column("path", sa.String(255), nullable=False),
    sa.Column("read_only", sa.Boolean, nullable=False),
    sa.Column("created_at", Time, nullable=False),
    sa.Index(None, "machine_id"),
)

# Values are sealed by roost.secrets.vault; of machines, never of snapshots.
secrets = sa.Table(
    "secrets",
    metadata,
    sa.Column("machine_id", sa.String(40), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("tenant_id", sa.String(40), nullable=False),
    sa.Column("hosts", sa.JSON, nullable=False),
    sa.Column("header", sa.String(64)),  # or a placeholder
    sa.Column("format", sa.String(256), nullable=False),
    sa.Column("placeholder", sa.String(256)),
    sa.Column("in_body", sa.Boolean, nullable=False),
    sa.Column("value", sa.LargeBinary, nullable=False),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("updated_at", Time, nullable=False),
)

# What signs the certificates that a machine with secrets is shown.
machine_authorities = sa.Table(
    "machine_authorities",
    metadata,
    sa.Column("machine_id", sa.String(40), primary_key=True),
    sa.Column("certificate", sa.Text, nullable=False),  # PEM
    sa.Column("key", sa.LargeBinary, nullable=False),  # sealed
    sa.Column("created_at", Time, nullable=False),
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

# Ports of machines that are shown outside; they go with their machine.
ports = sa.Table(
    "ports",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("machine_id", sa.String(40), nullable=False),
    sa.Column("tenant_id", sa.String(40), nullable=False),
    sa.Column("port", sa.Integer, nullable=False),
    sa.Column("protocol", sa.String(8), nullable=False),  # http | tcp
    sa.Column("visibility", sa.String(8), nullable=False),  # private | public
    sa.Column("name", sa.String(63)),  # a host's label, one of the whole daemon; NULL: none
    sa.Column("salt", sa.String(32), nullable=False),  # of its links: another one ends them
    # the machine asked for it itself
    sa.Column("from_inside", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("created_at", Time, nullable=False),
    # the machine it was made for: its host is called after that one, whoever serves it now
    sa.Column("host_id", sa.String(40), nullable=False),
    sa.UniqueConstraint("machine_id", "port"),
    sa.UniqueConstraint("name"),
    sa.Index(None, "tenant_id"),
    sa.Index(None, "host_id", "port", unique=True),
)

# Names ports have or had: an origin, with what browsers keep of it, stays with the tenant that had it first.
port_names = sa.Table(
    "port_names",
    metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("tenant_id", sa.String(40), nullable=False),
    sa.Index(None, "tenant_id"),
)

executions = sa.Table(
    "executions",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("tenant_id", sa.String(40), nullable=False),
    sa.Column("machine_id", sa.String(40), nullable=False),
    # What the daemon calls it: "start", what the template starts; None: one that somebody asked for.
    sa.Column("name", sa.String(16)),
    sa.Column("known_as", sa.String(64)),  # what the agent calls it; None: by its id
    sa.Column("command", sa.JSON, nullable=False),  # argv as run
    sa.Column("cwd", sa.String(4096)),
    sa.Column("user", sa.String(64)),
    # approval_required queued running succeeded failed cancelled expired
    sa.Column("status", sa.String(24), nullable=False),
    sa.Column("exit_code", sa.Integer),
    sa.Column("signal", sa.Integer),
    sa.Column("reason", sa.String(200)),
    sa.Column("timeout_ms", sa.BigInteger),
    sa.Column("keep_awake", sa.Boolean, nullable=False),  # while it runs its machine is not idle
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

# Executions outside their machine's list, by the execution's id: asked for, and decided once.
approvals = sa.Table(
    "approvals",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("tenant_id", sa.String(40), nullable=False),
    sa.Column("machine_id", sa.String(40), nullable=False),
    # pending | approved | denied | expired | cancelled
    sa.Column("status", sa.String(16), nullable=False),
    # the call as it came, sealed by roost.secrets.vault; NULL once it is decided
    sa.Column("request", sa.LargeBinary),
    sa.Column("shown", sa.JSON, nullable=False),  # what people see of it
    sa.Column("asked_by", sa.String(40)),  # the key; NULL: none known
    sa.Column("created_at", Time, nullable=False),
    sa.Column("expires_at", Time, nullable=False),
    sa.Column("decided_at", Time),
    sa.Column("decided_by", sa.String(40)),
    sa.Column("note", sa.String(300)),  # of who decided
    sa.Index(None, "tenant_id", "created_at", "id"),
    sa.Index(None, "machine_id"),
    sa.Index(None, "status"),
)

idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("tenant_id", sa.String(40), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column(
        "request_sha256", sa.String(64), nullable=False
    ),  # of method, path, query, body; keyed
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

# What is being counted: a machine that has run, or a snapshot. Everything before ``since_ms`` is in ``usage``;
# the rates hold from then on. Milliseconds since 1970, so that sums are whole numbers.
meters = sa.Table(
    "meters",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),  # the machine's or the snapshot's
    sa.Column("tenant_id", sa.String(40), nullable=False),
    sa.Column("machine_id", sa.String(40), nullable=False),  # it is, or was taken of
    sa.Column("key_id", sa.String(40), nullable=False),  # that made the machine; "": none known
    sa.Column("family", sa.String(40), nullable=False),  # those that may share blocks
    sa.Column("since_ms", sa.BigInteger, nullable=False),
    sa.Column("vcpu_milli", sa.Integer, nullable=False),
    sa.Column("memory_mib", sa.Integer, nullable=False),
    sa.Column("storage_kib", sa.BigInteger, nullable=False),
    sa.Column("born_ms", sa.BigInteger, nullable=False),
    sa.Column("measured_ms", sa.BigInteger),  # its storage; NULL: look soon
    sa.Column("egress_generation", sa.Integer, nullable=False),  # the start its counter is of
    sa.Column("egress_seen", sa.BigInteger, nullable=False),
    sa.Index(None, "tenant_id"),
    sa.Index(None, "family"),
    sa.Index(None, "measured_ms"),
)

# Sums of a UTC day. Storage is in KiB times milliseconds and the like: whole numbers, nothing is rounded.
usage = sa.Table(
    "usage",
    metadata,
    sa.Column("tenant_id", sa.String(40), primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True),  # YYYY-MM-DD
    sa.Column("machine_id", sa.String(40), primary_key=True),
    sa.Column("key_id", sa.String(40), primary_key=True),
    sa.Column("vcpu_milli_ms", sa.BigInteger, nullable=False),
    sa.Column("memory_mib_ms", sa.BigInteger, nullable=False),
    sa.Column("storage_kib_ms", sa.BigInteger, nullable=False),
    sa.Column("egress_bytes", sa.BigInteger, nullable=False),
)

# One row: everything ever counted on this host, for ``/metrics``; no bill is made of it.
usage_totals = sa.Table(
    "usage_totals",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("vcpu_seconds", sa.Float, nullable=False),
    sa.Column("memory_gib_seconds", sa.Float, nullable=False),
    sa.Column("storage_gib_hours", sa.Float, nullable=False),
    sa.Column("egress_bytes", sa.Float, nullable=False),
)

# Who changed what, and how that ended. Ids are never used twice: who follows names the last one seen.
audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("at", Time, nullable=False),
    sa.Column("tenant_id", sa.String(40), nullable=False),  # may be gone by now, as the key may
    sa.Column("key_id", sa.String(40), nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("action", sa.String(64), nullable=False),  # the operationId of the call
    sa.Column("method", sa.String(16), nullable=False),
    sa.Column("path", sa.String(300), nullable=False),  # without its query
    sa.Column("machine_id", sa.String(40)),
    sa.Column("peer", sa.String(64)),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("error_code", sa.String(64)),
    sa.Column("request_id", sa.String(40), nullable=False),
    sa.Index(None, "tenant_id", "id"),
    sa.Index(None, "machine_id", "id"),
    sa.Index(None, "at"),
    sqlite_autoincrement=True,
)
