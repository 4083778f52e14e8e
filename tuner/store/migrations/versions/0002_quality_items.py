"""What each item of a task gave."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "quality_items",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("quality_id", sa.Integer(), nullable=False),
        sa.Column("task", sa.String(length=200), nullable=False),
        sa.Column("metric", sa.String(length=100), nullable=False),
        sa.Column("docs", sa.JSON(), nullable=False),
        sa.Column("values", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["quality_id"],
            ["quality_result.id"],
            name=op.f("fk_quality_items_quality_id_quality_result"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quality_items")),
    )
    with op.batch_alter_table("quality_items", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_quality_items_quality_id"), ["quality_id"], unique=False
        )


def downgrade() -> None:
    """Undo."""
    with op.batch_alter_table("quality_items", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_quality_items_quality_id"))

    op.drop_table("quality_items")
