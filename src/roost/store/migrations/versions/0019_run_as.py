"""Whom a machine's commands and terminals run as unless they say."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision: str | None = "0018"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("machines", sa.Column("run_as", sa.String(length=64), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("machines") as table:
        table.drop_column("run_as")
