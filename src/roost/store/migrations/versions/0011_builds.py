"""Templates that are built: tags, what was built from what, layers of the cache, builds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from roost.store.schema import UtcTime

revision = "0011"
down_revision: str | None = "0010"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    # A name is its tags' from now on: a tenant has many templates of one name.
    with op.batch_alter_table("templates") as table:
        table.drop_constraint("uq_templates_tenant_id_name", type_="unique")
        table.add_column(sa.Column("parent_id", sa.String(length=40), nullable=True))
    op.create_index(op.f("ix_templates_tenant_id_name"), "templates", ["tenant_id", "name"])
    op.create_table(
        "template_tags",
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("tag", sa.String(length=63), nullable=False),
        sa.Column("template_id", sa.String(length=40), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "name", "tag", name=op.f("pk_template_tags")),
    )
    op.create_index(op.f("ix_template_tags_template_id"), "template_tags", ["template_id"])
    op.create_table(
        "layers",
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=80), nullable=False),
        sa.Column("content_digest", sa.String(length=80), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("used_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "key", name=op.f("pk_layers")),
    )
    op.create_index(op.f("ix_layers_digest"), "layers", ["digest"])
    op.create_table(
        "builds",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("created_by", sa.String(length=40), nullable=True),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("driver", sa.String(length=32), nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("cached", sa.Integer(), nullable=False),
        sa.Column("template_id", sa.String(length=40), nullable=True),
        sa.Column("machine_id", sa.String(length=40), nullable=True),
        sa.Column("digest", sa.String(length=80), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("started_at", UtcTime(), nullable=True),
        sa.Column("ended_at", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_builds")),
    )
    op.create_index(
        op.f("ix_builds_tenant_id_created_at_id"), "builds", ["tenant_id", "created_at", "id"]
    )
    op.create_index(op.f("ix_builds_status"), "builds", ["status"])


def downgrade() -> None:
    op.drop_table("builds")
    op.drop_table("layers")
    op.drop_table("template_tags")
    op.drop_index(op.f("ix_templates_tenant_id_name"), "templates")
    with op.batch_alter_table("templates") as table:
        table.drop_column("parent_id")
        table.create_unique_constraint("uq_templates_tenant_id_name", ["tenant_id", "name"])
