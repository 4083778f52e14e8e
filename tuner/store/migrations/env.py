"""Alembic's entry point: runs our migrations on the connection from tuner.store.database."""

from alembic import context

from tuner.store.tables import Base

VERSION_TABLE = "expertune_version"


def run() -> None:
    """Runs the migrations in one transaction, touching our tables only."""
    ours = set(Base.metadata.tables)
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=Base.metadata,
        version_table=VERSION_TABLE,
        render_as_batch=True,
        include_name=lambda name, kind, _: kind != "table" or name in ours,
    )
    with context.begin_transaction():
        context.run_migrations()


run()
