"""Volumes and who has them; what happens when a machine's time is over, and whether traffic wakes it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision: str | None = "0015"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "volumes",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("size_gib", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("raw_written", sa.Boolean(), nullable=False),
        sa.Column("created_by", sa.String(length=40), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_volumes_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_volumes")),
        sa.UniqueConstraint("tenant_id", "name", name=op.f("uq_volumes_tenant_id_name")),
    )
    op.create_index(
        op.f("ix_volumes_tenant_id_created_at_id"), "volumes", ["tenant_id", "created_at", "id"]
    )
    op.create_table(
        "volume_attachments",
        sa.Column("volume_id", sa.String(length=40), nullable=False),
        sa.Column("machine_id", sa.String(length=40), nullable=False),
        sa.Column("path", sa.String(length=255), nullable=False),
        sa.Column("read_only", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("volume_id", "machine_id", name=op.f("pk_volume_attachments")),
    )
    op.create_index(op.f("ix_volume_attachments_machine_id"), "volume_attachments", ["machine_id"])
    op.add_column("machines", sa.Column("volumes", sa.JSON(), nullable=True))
    op.add_column(
        "machines",
        sa.Column("expiry", sa.String(length=16), nullable=False, server_default="destroy"),
    )
    op.add_column(
        "machines",
        sa.Column("autowake", sa.Boolean(), nullable=False, server_default=sa.true()),
    )


def downgrade() -> None:
    with op.batch_alter_table("machines") as table:
        table.drop_column("autowake")
        table.drop_column("expiry")
        table.drop_column("volumes")
    op.drop_table("volume_attachments")
    op.drop_table("volumes")
