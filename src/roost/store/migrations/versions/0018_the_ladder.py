"""The least isolation of a tenant's machines; machines that run unrestricted, and trees that a next start unpacks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision: str | None = "0017"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("tenants", sa.Column("isolation", sa.String(length=16), nullable=True))
    for name in ("unrestricted", "brings_tree"):
        op.add_column(
            "machines",
            sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.false()),
        )


def downgrade() -> None:
    with op.batch_alter_table("machines") as table:
        table.drop_column("brings_tree")
        table.drop_column("unrestricted")
    with op.batch_alter_table("tenants") as table:
        table.drop_column("isolation")
