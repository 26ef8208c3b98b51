"""How a machine sleeps, and executions that keep it from it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("machines", sa.Column("hibernate_after_seconds", sa.Integer(), nullable=True))
    op.add_column("machines", sa.Column("tier", sa.String(length=16), nullable=True))
    machines = sa.table(
        "machines",
        sa.column("phase", sa.String),
        sa.column("tier", sa.String),
        sa.column("memory_image", sa.JSON),
        sa.column("hibernate_after_seconds", sa.Integer),
    )
    kept = sa.and_(
        machines.c.memory_image.is_not(None),
        sa.cast(machines.c.memory_image, sa.String) != "null",
    )
    tier = sa.case((kept, "hibernated"), else_="stopped")
    op.execute(machines.update().where(machines.c.phase == "sleeping").values(tier=tier))
    op.execute(machines.update().values(hibernate_after_seconds=600))
    keep_awake: sa.Column[bool] = sa.Column(
        "keep_awake", sa.Boolean(), nullable=False, server_default=sa.true()
    )
    op.add_column("executions", keep_awake)


def downgrade() -> None:
    op.drop_column("executions", "keep_awake")
    op.drop_column("machines", "tier")
    op.drop_column("machines", "hibernate_after_seconds")
