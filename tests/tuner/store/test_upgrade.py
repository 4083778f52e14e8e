"""Stores of every schema revision: opened and brought up to date, or left alone with a sentence.

A store of revision N is made by migrating an empty database up to N, and inserting what a finished
study stores, as far as N has the columns.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command

from tests.tuner.conftest import Tune
from tuner.errors import StoreError
from tuner.store import database
from tuner.store.database import open_database, open_read_only
from tuner.store.integrity.check import check_store
from tuner.store.tables import Base

REVISIONS = database._revisions()
EARLIER = REVISIONS[1:]
OURS = set(Base.metadata.tables) | {database.VERSION_TABLE}


def migrate(url: str, revision: str, *, down: bool = False) -> None:
    engine, config = sa.create_engine(url), database._alembic()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        (command.downgrade if down else command.upgrade)(config, revision)
    engine.dispose()


def rows_of(file: Path, like: Path | None = None) -> dict[str, list[tuple[object, ...]]]:
    """All rows by table, in the columns that both databases have."""
    found = {}
    with (
        contextlib.closing(sqlite3.connect(file)) as one,
        contextlib.closing(sqlite3.connect(like or file)) as other,
    ):
        for table in OURS - {database.VERSION_TABLE}:
            names = [columns_of(connection, table) for connection in (one, other)]
            shared = ", ".join(f'"{name}"' for name in names[0] if name in names[1])
            found[table] = one.execute(f"SELECT {shared} FROM {table} ORDER BY id").fetchall()
    return found


def columns_of(connection: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


def store_of(revision: str, source: Path, target: Path) -> None:
    """A store of this revision with the rows of a finished study, Optuna's tables as they are."""
    migrate(f"sqlite:///{target}", revision)
    with contextlib.closing(sqlite3.connect(target)) as new:
        new.execute("PRAGMA journal_mode=WAL")
        new.execute("ATTACH ? AS source", (str(source),))
        tables = new.execute("SELECT name, sql FROM source.sqlite_master WHERE type = 'table'")
        for table, made_by in tables.fetchall():
            if table == database.VERSION_TABLE:
                continue
            if table not in OURS:
                new.execute(made_by)
            shared = ", ".join(f'"{name}"' for name in columns_of(new, table))
            new.execute(f"INSERT INTO {table} ({shared}) SELECT {shared} FROM source.{table}")
        for table, made_by in new.execute(
            "SELECT tbl_name, sql FROM source.sqlite_master WHERE type = 'index' AND sql NOT NULL"
        ).fetchall():
            if table not in OURS:
                new.execute(made_by)
        new.commit()


@pytest.fixture
def file(study: Path) -> Path:
    return study / "data" / "expertune" / "expertune.db"


def take_back(file: Path, revision: str) -> None:
    """Makes it the store that a program of an earlier revision would have written."""
    made = file.with_name("earlier.db")
    store_of(revision, file, made)
    for path in file.parent.glob(f"{file.name}*"):
        path.unlink()
    made.replace(file)


def test_there_is_an_earlier_revision() -> None:
    assert EARLIER == ("0100",)
    assert REVISIONS[0] == database._head()


@pytest.mark.parametrize("revision", EARLIER)
def test_reading_an_earlier_store_says_what_to_do_and_changes_nothing(
    tune: Tune, file: Path, revision: str
) -> None:
    take_back(file, revision)
    before = file.read_bytes()
    for words in (["studies"], ["show", "small"], ["export", "small"], ["doctor", "--store"]):
        done = tune(*words)
        assert done.code == 1
        assert "earlier version" in done.err + done.out
        assert "brings it up to date" in " ".join((done.err + done.out).split())
    assert file.read_bytes() == before


@pytest.mark.parametrize("revision", EARLIER)
def test_an_earlier_store_is_brought_up_to_date_and_its_study_continues(
    tune: Tune, folder: Path, revision: str
) -> None:
    words = ("--definition", "study.yaml", "--sampler", "random", "--json")
    assert tune(*words, "--trials", "3").code == 0
    file = folder / "data" / "expertune" / "expertune.db"
    take_back(file, revision)
    before = rows_of(file)
    done = tune(*words, "--trials", "5")
    assert done.code == 0, done.err
    assert len(done.document["trials"]) == 5
    assert check_store(f"sqlite:///{file}").findings == ()
    after = rows_of(file)
    for table in ("trial", "sample", "sentinel", "configuration", "quality_items"):
        assert ids_of(before[table]) <= ids_of(after[table])


def ids_of(rows: list[tuple[object, ...]]) -> set[object]:
    return {row[0] for row in rows}


@pytest.mark.parametrize("revision", EARLIER)
def test_down_and_up_again_keeps_every_row(file: Path, revision: str, tmp_path: Path) -> None:
    url, before = f"sqlite:///{file}", rows_of(file)
    migrate(url, revision, down=True)
    lower = tmp_path / "lower.db"
    migrate(f"sqlite:///{lower}", revision)
    shared = rows_of(file)
    assert shared.keys() == before.keys()
    assert {t: len(rows) for t, rows in shared.items()} == {t: len(r) for t, r in before.items()}
    assert schema_of(file) == schema_of(lower)
    migrate(url, "head")
    assert rows_of(file) == before
    assert check_store(url).findings == ()


def schema_of(file: Path) -> dict[str, list[str]]:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        return {table: sorted(columns_of(connection, table)) for table in OURS}


@pytest.mark.parametrize("opening", [open_database, open_read_only])
def test_an_older_program_changes_nothing_in_a_newer_store(file: Path, opening) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("ALTER TABLE trial ADD COLUMN later TEXT DEFAULT 'x'")
        connection.execute(f"UPDATE {database.VERSION_TABLE} SET version_num = '0999'")
    connection.close()
    before = file.read_bytes()
    with pytest.raises(StoreError, match="update expertune, or name another with --storage"):
        opening(f"sqlite:///{file}")
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        ["studies"],
        ["show", "small"],
        ["export", "small"],
        ["doctor", "--store"],
        ["--definition", "study.yaml"],
        ["worker", "small"],
        ["service", "token", "add", "ci"],
    ],
    ids=" ".join,
)
def test_every_command_of_an_older_program_leaves_a_newer_store(
    tune: Tune, file: Path, words: list[str]
) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(f"UPDATE {database.VERSION_TABLE} SET version_num = '0999'")
    connection.close()
    before = file.read_bytes()
    done = tune(*words)
    assert done.code == 1
    assert "version '0999', which this program does not know" in " ".join(
        (done.err + done.out).split()
    )
    assert file.read_bytes() == before
