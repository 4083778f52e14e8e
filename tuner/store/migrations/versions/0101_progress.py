"""Adds what a study does now, and the role to the index that figures are read from."""

import sqlalchemy as sa
from alembic import op

revision = "0101"
down_revision = "0100"
branch_labels = None
depends_on = None

BEFORE = ["configuration_id", "machine_id", "metric", "value"]
NOW = ["configuration_id", "machine_id", "metric", "role", "value"]


def upgrade() -> None:
    """Adds the column and makes the index anew."""
    with op.batch_alter_table("study", schema=None) as batch_op:
        batch_op.add_column(sa.Column("progress", sa.JSON(none_as_null=True), nullable=True))
    op.drop_index("ix_sample_pooled", table_name="sample")
    op.create_index("ix_sample_pooled", "sample", NOW, unique=False)


def downgrade() -> None:
    """Removes both."""
    op.drop_index("ix_sample_pooled", table_name="sample")
    op.create_index("ix_sample_pooled", "sample", BEFORE, unique=False)
    with op.batch_alter_table("study", schema=None) as batch_op:
        batch_op.drop_column("progress")
