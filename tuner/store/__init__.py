"""The record of studies: tables, migrations, frozen values; must not decide anything."""
