"""What a search predicted, spent and bounded; whether a sample confirms; who runs a trial."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("trial", schema=None) as batch_op:
        batch_op.add_column(sa.Column("predicted", sa.JSON(), nullable=True))
        batch_op.add_column(sa.Column("bounds", sa.JSON(), nullable=True))
        batch_op.add_column(sa.Column("engine_s", sa.Float(), nullable=True))
        batch_op.add_column(sa.Column("origin", sa.String(length=200), nullable=True))
        batch_op.add_column(sa.Column("worker", sa.String(length=200), nullable=True))
    with op.batch_alter_table("sample", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("role", sa.String(length=10), nullable=False, server_default="search")
        )
    with op.batch_alter_table("study", schema=None) as batch_op:
        batch_op.add_column(sa.Column("spent", sa.JSON(), nullable=True))


def downgrade() -> None:
    """Undo."""
    with op.batch_alter_table("study", schema=None) as batch_op:
        batch_op.drop_column("spent")
    with op.batch_alter_table("sample", schema=None) as batch_op:
        batch_op.drop_column("role")
    with op.batch_alter_table("trial", schema=None) as batch_op:
        for name in ("worker", "origin", "engine_s", "bounds", "predicted"):
            batch_op.drop_column(name)
