"""Keeps secrets from child processes that need none, and out of the argument lists of all.

Everyone on a machine reads argument lists, its user alone the environment.
"""

from __future__ import annotations

KEY_VARIABLE = "EXPERTUNE_API_KEY"  # read by `tune deploy`, whose server gets its digest


def without_password(storage: str) -> tuple[str, dict[str, str]]:
    """The URL without its password, and what to add to the child's environment: the password as
    libpq reads it."""
    import sqlalchemy as sa  # here: whatever starts a process imports this file

    try:
        url = sa.make_url(storage)
    except (sa.exc.ArgumentError, ValueError):
        return storage, {}
    asked = url.query.get("password")
    password = url.password if url.password is not None else asked
    if url.get_backend_name() == "sqlite" or not isinstance(password, str):
        return storage, {}
    query = {name: value for name, value in url.query.items() if name != "password"}
    shown = sa.URL.create(
        url.drivername, url.username, None, url.host, url.port, url.database, query
    )
    return shown.render_as_string(hide_password=False), {"PGPASSWORD": password}
