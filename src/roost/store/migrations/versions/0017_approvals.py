"""What may be run in machines without asking, and what waits for somebody's approval."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision: str | None = "0016"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("machines", sa.Column("tools", sa.JSON(), nullable=True))
    with op.batch_alter_table("executions") as table:
        table.alter_column(
            "status",
            existing_type=sa.String(length=16),
            type_=sa.String(length=24),
            existing_nullable=False,
        )
    op.create_table(
        "approvals",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("machine_id", sa.String(length=40), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("request", sa.LargeBinary(), nullable=True),
        sa.Column("shown", sa.JSON(), nullable=False),
        sa.Column("asked_by", sa.String(length=40), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("decided_by", sa.String(length=40), nullable=True),
        sa.Column("note", sa.String(length=300), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_approvals")),
    )
    op.create_index(
        op.f("ix_approvals_tenant_id_created_at_id"), "approvals", ["tenant_id", "created_at", "id"]
    )
    op.create_index(op.f("ix_approvals_machine_id"), "approvals", ["machine_id"])
    op.create_index(op.f("ix_approvals_status"), "approvals", ["status"])


def downgrade() -> None:
    op.drop_table("approvals")
    # What waited was not started: the version before knows no such state.
    op.execute(
        "UPDATE executions SET status = 'failed', reason = 'approval_expired'"
        " WHERE status = 'approval_required'"
    )
    with op.batch_alter_table("executions") as table:
        table.alter_column(
            "status",
            existing_type=sa.String(length=24),
            type_=sa.String(length=16),
            existing_nullable=False,
        )
    with op.batch_alter_table("machines") as table:
        table.drop_column("tools")
