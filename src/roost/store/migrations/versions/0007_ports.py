"""Ports of machines that are shown outside."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from roost.store.schema import UtcTime

revision = "0007"
down_revision: str | None = "0006"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "ports",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("machine_id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("port", sa.Integer(), nullable=False),
        sa.Column("protocol", sa.String(length=8), nullable=False),
        sa.Column("visibility", sa.String(length=8), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=True),
        sa.Column("salt", sa.String(length=32), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ports")),
        sa.UniqueConstraint("machine_id", "port", name=op.f("uq_ports_machine_id_port")),
        sa.UniqueConstraint("name", name=op.f("uq_ports_name")),
    )
    op.create_index(op.f("ix_ports_tenant_id"), "ports", ["tenant_id"])


def downgrade() -> None:
    op.drop_table("ports")
