"""A disk that is full at its n-th write, or from there on: in SQLite and in replaced files."""

import errno
import os
import sqlite3
import sqlite3.dbapi2
from typing import Any

import pytest

READS = ("SELECT", "PRAGMA", "BEGIN", "ROLLBACK", "SAVEPOINT", "RELEASE")


class FullDisk:
    """Counts every write of this process; number `full_at`, if lasting those behind it too, finds
    no space."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, full_at: int | None = None, lasting: bool = True
    ) -> None:
        self.writes = 0
        self._lasting = lasting
        self._full_at = full_at
        connect = sqlite3.dbapi2.connect
        disk = self

        class Cursor(sqlite3.Cursor):
            def execute(self, statement: str, *arguments: Any) -> Any:
                if not statement.lstrip().upper().startswith(READS):
                    disk.write_page()
                return super().execute(statement, *arguments)

            def executemany(self, statement: str, *arguments: Any) -> Any:
                disk.write_page()
                return super().executemany(statement, *arguments)

        class Connection(sqlite3.Connection):
            def cursor(self, *_: Any) -> Any:
                return super().cursor(Cursor)

            def commit(self) -> None:
                if self.in_transaction:
                    disk.write_page()
                super().commit()

        monkeypatch.setattr(
            sqlite3.dbapi2,
            "connect",
            lambda *words, **named: connect(*words, **{"factory": Connection, **named}),
        )
        sync = os.fsync

        def synced(descriptor: int) -> None:
            disk._count(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", synced)

    def write_page(self) -> None:
        """One write of a database. Raises what SQLite raises on a full disk."""
        self._count(sqlite3.OperationalError("database or disk is full"))

    def _count(self, error: Exception) -> None:
        self.writes += 1
        behind = self.writes - (self._full_at or self.writes + 1)
        if behind == 0 or (self._lasting and behind > 0):
            raise error
