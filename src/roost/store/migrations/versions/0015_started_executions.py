"""Executions that templates start: their name, and what the agent calls them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision: str | None = "0013"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("executions", sa.Column("name", sa.String(length=16), nullable=True))
    op.add_column("executions", sa.Column("known_as", sa.String(length=64), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("executions") as table:
        table.drop_column("known_as")
        table.drop_column("name")
