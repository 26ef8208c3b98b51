"""Where machines came from, whose place they took, and hosts of ports that outlast a machine."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from roost.store.schema import UtcTime

revision = "0013"
down_revision: str | None = "0012"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    for name in ("parent_id", "from_snapshot_id", "replaces"):
        op.add_column("machines", sa.Column(name, sa.String(length=40), nullable=True))
    op.create_index(op.f("ix_machines_parent_id"), "machines", ["parent_id"])
    op.create_table(
        "ancestors",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("parent_id", sa.String(length=40), nullable=True),
        sa.Column("from_snapshot_id", sa.String(length=40), nullable=True),
        sa.Column("name", sa.String(length=63), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("destroyed_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ancestors")),
    )
    op.create_index(
        op.f("ix_ancestors_tenant_id_created_at"), "ancestors", ["tenant_id", "created_at"]
    )
    op.create_index(op.f("ix_ancestors_parent_id"), "ancestors", ["parent_id"])
    host = sa.Column("host_id", sa.String(length=40), nullable=False, server_default="")
    op.add_column("ports", host)
    op.execute("UPDATE ports SET host_id = machine_id")
    op.create_index(op.f("ix_ports_host_id_port"), "ports", ["host_id", "port"], unique=True)


def downgrade() -> None:
    op.drop_index(op.f("ix_ports_host_id_port"), "ports")
    op.drop_column("ports", "host_id")
    op.drop_table("ancestors")
    op.drop_index(op.f("ix_machines_parent_id"), "machines")
    for name in ("replaces", "from_snapshot_id", "parent_id"):
        op.drop_column("machines", name)
