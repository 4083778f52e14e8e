"""Locks that allow one leading process per study and one service per machine; released on death.

A file lock beside an SQLite database; in PostgreSQL, whose clients run anywhere, an advisory lock
that its server holds for a connection. A server that restarts, or drops the connection, drops the
lock: the holder takes it again with `keep`, which is called now and then.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy import exc

from engine.files import short_digest
from tuner.errors import StoreError, StudyError, TakenStudyError
from tuner.store.database import explained
from tuner.store.url import parse_url

Refusal = Callable[[str], StudyError]
Keep = Callable[[], None]
RETAKE_S = 2.0  # what a server may take to end the connection that held the lock
_OWN = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
_END = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE pid = :pid AND backend_start = :start"
)


@contextlib.contextmanager
def study_lock(url: str, name: str) -> Iterator[Keep]:
    """Locks the study for this process; raises StudyError if another process holds it.

    Yields `keep`: takes a lock that was lost with its connection again. It raises TakenStudyError
    if another process has it now, StoreError if the database cannot be reached.
    """

    def refusal(holder: str) -> StudyError:
        return StudyError(
            f"study '{name}' is already running ({holder}): wait for it, end it, or give this one "
            "another name with --study"
        )

    with _lock(url, name, refusal) as keep:
        yield keep


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
def _lock(url: str, name: str, refusal: Refusal) -> Iterator[Keep]:
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        with _file_lock(parsed, name, refusal):
            yield lambda: None  # the system holds it as long as this process lives
        return
    with explained(url), contextlib.closing(_AdvisoryLock(parsed, name)) as lock:
        if not lock.take():
            raise refusal("another process, maybe on another machine")

        def keep() -> None:
            with explained(url):
                if not lock.is_kept():
                    raise TakenStudyError(
                        f"study '{name}' was taken over by another process while the connection to "
                        "the database was lost; what was measured here until then is kept"
                    )

        yield keep


class _AdvisoryLock:
    """A lock of a PostgreSQL server for one connection. Its methods raise SQLAlchemy's errors."""

    def __init__(self, parsed: sa.URL, name: str) -> None:
        digest = hashlib.sha256(f"expertune {name}".encode()).digest()
        self._key = int.from_bytes(digest[:8], "big", signed=True)
        self._engine = sa.create_engine(parsed, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
        self._connection = self._engine.connect()
        self._session = self._connection.execute(sa.text(_OWN)).one()
        self._holds = False

    def take(self) -> bool:
        """Whether this connection holds the lock now."""
        taking = sa.text("SELECT pg_try_advisory_lock(:key)")
        self._holds = bool(self._connection.scalar(taking, {"key": self._key}))
        return self._holds

    def is_kept(self) -> bool:
        """Whether the lock is still held, or could be taken again over a new connection."""
        try:
            self._connection.scalar(sa.text("SELECT 1"))
        except exc.DBAPIError:
            return self._retake()
        return True

    def close(self) -> None:
        """Gives the lock back at once, where a closed connection's is given back some time later;
        one whose connection is gone is given back already."""
        if self._holds:
            with contextlib.suppress(exc.SQLAlchemyError):
                self._connection.scalar(sa.text("SELECT pg_advisory_unlock_all()"))
        with contextlib.suppress(exc.SQLAlchemyError):
            self._connection.close()

    def _retake(self) -> bool:
        self.close()
        self._connection = self._engine.connect()
        # where only the network broke, the server still holds the lock for the old connection
        lost = {"pid": self._session.pid, "start": self._session.backend_start}
        self._connection.execute(sa.text(_END), lost)
        self._session = self._connection.execute(sa.text(_OWN)).one()
        until_s = time.monotonic() + RETAKE_S
        while not (taken := self.take()) and time.monotonic() < until_s:
            time.sleep(0.05)
        return taken


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
