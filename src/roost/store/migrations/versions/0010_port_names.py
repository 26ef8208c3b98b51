"""Whose a port's name is, also when no port has it any more."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision: str | None = "0009"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "port_names",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_port_names")),
    )
    op.create_index(op.f("ix_port_names_tenant_id"), "port_names", ["tenant_id"])
    op.execute(
        "INSERT INTO port_names (name, tenant_id) "
        "SELECT name, tenant_id FROM ports WHERE name IS NOT NULL"
    )


def downgrade() -> None:
    op.drop_table("port_names")
