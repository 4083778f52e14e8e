"""Storage URLs: which file or server each names."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from tuner.errors import StoreError, UsageError
from tuner.store import database
from tuner.store.database import open_database, open_read_only
from tuner.store.url import parse_url


@pytest.mark.parametrize("name", ["feature%2Fmoe", "50%", "a b", "what?", "c#1", "é", "a?b/c"])
def test_a_path_is_taken_as_it_is_written(tmp_path: Path, name: str) -> None:
    # papis/papis#850, CentOS/duffy#393: SQLAlchemy decodes %2F and ends a path at a question mark
    url = f"sqlite:///{tmp_path / name / 'store.db'}"
    open_database(url).close()
    assert (tmp_path / name / "store.db").is_file()
    with contextlib.closing(open_read_only(url)) as opened:
        assert opened.read_only


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite://relative.db", "needs a file"),
        ("sqlite:///", "needs a file"),
        ("sqlite:////tmp/a.db?mode=ro", r"takes no options: write sqlite:////tmp/a\.db$"),
        ("sqlite:///~no-such-user/a.db", "there is no user ~no-such-user"),
        ("sqlite+aiosqlite:///a.db", "needs a file: write sqlite:///"),
        ("postgresql+psycopg2://u@h/d", r"not postgresql\+psycopg2"),
        ("postgres://u@h/d", "not postgres$"),
        ("postgresql://u@h:port/d", "is not a storage URL"),
        ("store.db", "is not a storage URL"),
    ],
)
def test_a_url_that_names_no_store_is_one_sentence(url: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_url(url)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_url("sqlite:///~/a.db").database == str(tmp_path / "a.db")


def test_a_url_that_cannot_be_read_is_shown_without_its_password():
    with pytest.raises(UsageError, match=r"'postgresql://u:\*\*\*@h:port/d' is not a storage URL"):
        parse_url("postgresql://u:secret@h:port/d")


def test_a_transaction_that_an_interrupt_left_open_locks_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # SIGINT at a random moment: "is locked by another program", which was the study itself
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.2)
    opened = open_database(f"sqlite:///{tmp_path / 'a.db'}")
    left = opened.engine.connect()  # as a traceback's frames hold it
    left.exec_driver_sql("UPDATE study SET state = 'X'")
    with pytest.raises(StoreError, match="is locked"), opened.session() as session:
        session.connection()
    opened.roll_back()
    with opened.session() as session:
        session.connection()
    left.close()
    opened.close()


@pytest.mark.parametrize("method", ["do_close", "do_rollback"])
def test_an_interrupt_while_a_connection_ends_is_no_traceback(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
) -> None:
    # SIGTERM while a study confirmed its front: SQLAlchemy logged "Exception closing connection"
    opened = open_database(f"sqlite:///{tmp_path / 'a.db'}")
    dialect = opened.engine.dialect
    plain, said = getattr(dialect, method), []

    def interrupted(connection: sqlite3.Connection) -> None:
        plain(connection)
        if not said:
            said.append(method)
            raise KeyboardInterrupt

    def use_and_close() -> None:
        with opened.engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
        opened.close()

    monkeypatch.setattr(dialect, method, interrupted)
    with pytest.raises(KeyboardInterrupt):
        use_and_close()
    opened.close()
    assert said
    assert caplog.text == ""
