"""Locks that allow one leading process per study and one service per machine; released on death.

A file lock beside an SQLite database; in PostgreSQL, whose clients run anywhere, an advisory lock
that its server holds for a connection.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import sqlalchemy as sa
from filelock import FileLock, Timeout

from engine.files import short_digest
from tuner.errors import StoreError, StudyError
from tuner.store.database import explained, parse_url

Refusal = Callable[[str], StudyError]


@contextlib.contextmanager
def study_lock(url: str, name: str) -> Iterator[None]:
    """Locks the study for this process; raises StudyError if another process holds it."""

    def refusal(holder: str) -> StudyError:
        return StudyError(
            f"study '{name}' is already running ({holder}): wait for it, end it, or give this one "
            "another name with --study"
        )

    with _lock(url, name, refusal):
        yield


@contextlib.contextmanager
def service_lock(url: str, host: str) -> Iterator[None]:
    """Locks the store's service slot on this machine; raises StudyError if another process holds
    it."""

    def refusal(holder: str) -> StudyError:
        return StudyError(
            f"a service over this store already runs on {host} ({holder}): end it, or name "
            "another store with --storage"
        )

    with _lock(url, f"\nservice {host}", refusal):  # no study's name holds a line break
        yield


@contextlib.contextmanager
def _lock(url: str, name: str, refusal: Refusal) -> Iterator[None]:
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        with _file_lock(parsed, name, refusal):
            yield
    else:
        with explained(url), _advisory_lock(parsed, name, refusal):
            yield


@contextlib.contextmanager
def _advisory_lock(parsed: sa.URL, name: str, refusal: Refusal) -> Iterator[None]:
    digest = hashlib.sha256(f"expertune {name}".encode()).digest()
    key = int.from_bytes(digest[:8], "big", signed=True)
    engine = sa.create_engine(parsed, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        held = connection.scalar(sa.text("SELECT pg_try_advisory_lock(:key)"), {"key": key})
        if not held:
            raise refusal("another process, maybe on another machine")
        yield


@contextlib.contextmanager
def _file_lock(parsed: sa.URL, name: str, refusal: Refusal) -> Iterator[None]:
    path = _lock_path(parsed, name)
    holder = path.with_suffix(".pid")
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise refusal(_holder_words(holder)) from None
    except OSError as error:
        raise StoreError(f"the lock {path} cannot be made: {error.strerror}") from None
    try:
        holder.write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        lock.release()


def _holder_words(holder: Path) -> str:
    """The process that a .pid file names; it is only told, so a damaged one does no harm."""
    with contextlib.suppress(OSError, ValueError):
        return f"process {int(holder.read_bytes())}"
    return "another process"


def _lock_path(parsed: sa.URL, name: str) -> Path:
    database = Path(parsed.database or "").resolve()
    digest = short_digest(f"{database}\n{name}")
    return database.parent / "locks" / f"{digest}.lock"
