"""Quotas of tenants, roles and ends of keys, the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from roost.store.schema import UtcTime

revision = "0004"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("tenants", sa.Column("quotas", sa.JSON(), nullable=False, server_default="{}"))
    op.create_index(op.f("ix_tenants_name"), "tenants", ["name"], unique=True)

    op.add_column(
        "keys",
        sa.Column("role", sa.String(length=16), nullable=False, server_default="tenant"),
    )
    op.add_column("keys", sa.Column("machine_id", sa.String(length=40), nullable=True))
    op.add_column("keys", sa.Column("port", sa.Integer(), nullable=True))
    op.add_column("keys", sa.Column("expires_at", UtcTime(), nullable=True))
    op.create_index(op.f("ix_keys_tenant_id"), "keys", ["tenant_id"])
    op.create_index(op.f("ix_keys_machine_id"), "keys", ["machine_id"])
    # Until now there was one tenant, and each of its keys could do everything.
    op.execute("UPDATE keys SET role = 'admin' WHERE tenant_id = 'default'")

    # Answers kept for repeated requests held keys in clear; these are answered anew.
    op.execute('DELETE FROM idempotency WHERE CAST(body AS TEXT) LIKE \'%"key":"roost_%\'')

    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("key_id", sa.String(length=40), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("method", sa.String(length=16), nullable=False),
        sa.Column("path", sa.String(length=300), nullable=False),
        sa.Column("machine_id", sa.String(length=40), nullable=True),
        sa.Column("peer", sa.String(length=64), nullable=True),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("error_code", sa.String(length=64), nullable=True),
        sa.Column("request_id", sa.String(length=40), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_audit_tenant_id_id"), "audit", ["tenant_id", "id"])
    op.create_index(op.f("ix_audit_machine_id_id"), "audit", ["machine_id", "id"])
    op.create_index(op.f("ix_audit_at"), "audit", ["at"])


def downgrade() -> None:
    op.drop_table("audit")
    op.drop_index(op.f("ix_keys_machine_id"), "keys")
    op.drop_index(op.f("ix_keys_tenant_id"), "keys")
    for column in ("expires_at", "port", "machine_id", "role"):
        op.drop_column("keys", column)
    op.drop_index(op.f("ix_tenants_name"), "tenants")
    op.drop_column("tenants", "quotas")
