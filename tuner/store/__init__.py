"""The record of studies: SQLAlchemy tables, migrations, and functions that return frozen values."""
