"""Snapshots, and machines that go on from one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from roost.store.schema import UtcTime

revision = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("machines", sa.Column("snapshot_id", sa.String(length=40), nullable=True))
    op.add_column("machines", sa.Column("memory_image", sa.JSON(), nullable=True))
    op.create_table(
        "snapshots",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=True),
        sa.Column("machine_id", sa.String(length=40), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("for_fork", sa.Boolean(), nullable=False),
        sa.Column("machine", sa.JSON(), nullable=False),
        sa.Column("memory_image", sa.JSON(), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("paused_ms", sa.Float(), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_snapshots_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_snapshots")),
        sa.UniqueConstraint("tenant_id", "name", name=op.f("uq_snapshots_tenant_id_name")),
    )
    op.create_index(
        op.f("ix_snapshots_tenant_id_created_at_id"),
        "snapshots",
        ["tenant_id", "created_at", "id"],
    )


def downgrade() -> None:
    op.drop_table("snapshots")
    op.drop_column("machines", "memory_image")
    op.drop_column("machines", "snapshot_id")
