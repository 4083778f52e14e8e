"""One parent a study: a lock that is released when its holder dies.

A file lock beside an SQLite database; in PostgreSQL, whose clients run anywhere, an advisory lock
that its server holds for a connection.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from tuner.errors import StoreError, StudyError
from tuner.store.database import explained, parse_url


@contextlib.contextmanager
def study_lock(url: str, name: str) -> Iterator[None]:
    """Hold the study for this process; StudyError where another one has it."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        with _file_lock(parsed, name):
            yield
    else:
        with explained(url), _advisory_lock(parsed, name):
            yield


@contextlib.contextmanager
def _advisory_lock(parsed: sa.URL, name: str) -> Iterator[None]:
    digest = hashlib.sha256(f"expertune {name}".encode()).digest()
    key = int.from_bytes(digest[:8], "big", signed=True)
    engine = sa.create_engine(parsed, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        held = connection.scalar(sa.text("SELECT pg_try_advisory_lock(:key)"), {"key": key})
        if not held:
            raise _running(name, "another process, maybe on another machine")
        yield


@contextlib.contextmanager
def _file_lock(parsed: sa.URL, name: str) -> Iterator[None]:
    path = _lock_path(parsed, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(f"the lock {path} cannot be made: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "another process"
            raise _running(name, f"process {holder}") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


def _running(name: str, holder: str) -> StudyError:
    return StudyError(
        f"study '{name}' is already running ({holder}): wait for it, end it, or give this one "
        "another name with --study"
    )


def _lock_path(parsed: sa.URL, name: str) -> Path:
    database = Path(parsed.database or "").resolve()
    digest = hashlib.sha256(f"{database}\n{name}".encode()).hexdigest()[:16]
    return database.parent / "locks" / f"{digest}.lock"
