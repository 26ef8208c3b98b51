"""What a machine may ask from inside, and which of its ports it showed itself."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision: str | None = "0011"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("machines", sa.Column("inside", sa.JSON(), nullable=True))
    op.add_column(
        "ports",
        sa.Column("from_inside", sa.Boolean(), nullable=False, server_default=sa.false()),
    )


def downgrade() -> None:
    op.drop_column("ports", "from_inside")
    op.drop_column("machines", "inside")
