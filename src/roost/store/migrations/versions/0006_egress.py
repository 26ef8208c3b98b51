"""What a machine may reach."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision: str | None = "0005"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("machines", sa.Column("egress", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("machines", "egress")
