"""Storage URLs: what is written after --storage, as SQLAlchemy takes it and as it is shown."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import exc

from tuner.errors import UsageError

SQLITE = "sqlite:///"


def shown_url(url: str) -> str:
    """A storage URL without its password."""
    if url.startswith(SQLITE):
        return url
    with contextlib.suppress(exc.ArgumentError, ValueError):
        parsed = sa.make_url(url).difference_update_query(["password"])
        if "@" not in (parsed.host or ""):
            return parsed.render_as_string(hide_password=True)
    return _masked(url)


def _masked(url: str) -> str:
    """A text that should have been a URL, without whatever may be a password."""
    return re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url)


def parse_url(url: str) -> sa.URL:
    """A storage URL with its driver; UsageError for an unsupported one.

    What follows sqlite:/// is a path as it is written: SQLAlchemy would decode %2F, and end it at a
    question mark.
    """
    if url.startswith(SQLITE):
        return sa.URL.create("sqlite", database=str(sqlite_path(url)))
    try:
        parsed = sa.make_url(url)
        backend = parsed.get_backend_name()
    except (exc.SQLAlchemyError, ValueError):
        raise UsageError(
            f"'{_masked(url)}' is not a storage URL: write sqlite:///file.db or postgresql://user@host/"
            "name"
        ) from None
    if backend == "sqlite":
        raise UsageError("--storage needs a file: write sqlite:///file.db")
    if parsed.drivername not in ("postgresql", "postgresql+psycopg"):
        raise UsageError(f"--storage takes sqlite:/// or postgresql://, not {parsed.drivername}")
    if "@" in (parsed.host or ""):
        raise UsageError(f"'{_masked(url)}' has two @: write the one in the password as %40")
    return parsed.set(drivername="postgresql+psycopg")


def sqlite_path(url: str) -> Path:
    """The file of a URL that begins with sqlite:///. Raises UsageError if it names none."""
    path = url.removeprefix(SQLITE)
    if path in ("", ":memory:"):
        raise UsageError("--storage needs a file: write sqlite:///file.db")
    if re.search(r"\?\w+=[^/]*$", path):
        raise UsageError(f"--storage takes no options: write {SQLITE}{path.rpartition('?')[0]}")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UsageError(f"--storage {url}: there is no user {path.partition('/')[0]}") from None
