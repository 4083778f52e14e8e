"""What measurements demanded of each layer's experts; one metric of many configurations at once."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "expert_use",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("configuration_id", sa.Integer(), nullable=False),
        sa.Column("machine_id", sa.Integer(), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["configuration_id"],
            ["configuration.id"],
            name=op.f("fk_expert_use_configuration_id_configuration"),
        ),
        sa.ForeignKeyConstraint(
            ["machine_id"], ["machine.id"], name=op.f("fk_expert_use_machine_id_machine")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_expert_use")),
    )
    with op.batch_alter_table("expert_use", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_expert_use_configuration_id"), ["configuration_id"], unique=False
        )
    with op.batch_alter_table("sample", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_sample_configuration_id"))
        batch_op.create_index(
            "ix_sample_pooled", ["configuration_id", "machine_id", "metric", "value"], unique=False
        )


def downgrade() -> None:
    """Undo."""
    with op.batch_alter_table("sample", schema=None) as batch_op:
        batch_op.drop_index("ix_sample_pooled")
        batch_op.create_index(
            batch_op.f("ix_sample_configuration_id"), ["configuration_id"], unique=False
        )
    op.drop_table("expert_use")
