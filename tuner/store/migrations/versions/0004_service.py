"""Which machine runs a job, and one job at a time for a study."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

UNDER_WAY = sa.text("state IN ('QUEUED', 'RUNNING', 'STOPPING')")


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.add_column(sa.Column("host", sa.String(length=200), nullable=True))
        batch_op.create_index(
            "uq_job_under_way",
            ["study_name"],
            unique=True,
            sqlite_where=UNDER_WAY,
            postgresql_where=UNDER_WAY,
        )


def downgrade() -> None:
    """Undo."""
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.drop_index("uq_job_under_way")
        batch_op.drop_column("host")
