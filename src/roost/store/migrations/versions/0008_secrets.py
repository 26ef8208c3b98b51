"""Secrets of machines, and the authorities of those that have any."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from roost.store.schema import UtcTime

revision = "0008"
down_revision: str | None = "0007"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "secrets",
        sa.Column("machine_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("hosts", sa.JSON(), nullable=False),
        sa.Column("header", sa.String(length=64), nullable=True),
        sa.Column("format", sa.String(length=256), nullable=False),
        sa.Column("placeholder", sa.String(length=256), nullable=True),
        sa.Column("in_body", sa.Boolean(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("machine_id", "name", name=op.f("pk_secrets")),
    )
    op.create_table(
        "machine_authorities",
        sa.Column("machine_id", sa.String(length=40), nullable=False),
        sa.Column("certificate", sa.Text(), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("machine_id", name=op.f("pk_machine_authorities")),
    )
    # Fingerprints of requests are keyed from now on: those kept before tell more than they should.
    op.execute("DELETE FROM idempotency")


def downgrade() -> None:
    op.drop_table("machine_authorities")
    op.drop_table("secrets")
