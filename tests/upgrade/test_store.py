"""Stores of every revision, as a program of that time wrote them."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from tests.tuner.conftest import Tune
from tests.tuner.store.test_upgrade import migrate, rows_of, schema_of
from tests.upgrade.folders import fixture, versions_of
from tuner.store import database
from tuner.store.database import open_database
from tuner.store.integrity.check import check_store

REVISIONS = versions_of("store")
OPENED = [one for one in REVISIONS if one not in database.BEFORE_NAMES]
READING = (["studies"], ["show", "small"], ["doctor", "--store"])


def restored(revision: str, folder: Path) -> Path:
    """The database of a fixture, where the commands look for it."""
    file = folder / "data" / "expertune" / "expertune.db"
    file.parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.executescript((fixture("store", revision) / "store.sql").read_text("utf-8"))
        connection.execute("PRAGMA journal_mode=WAL")
    return file


@pytest.mark.parametrize("revision", REVISIONS)
def test_reading_says_what_to_do_and_changes_nothing(
    tune: Tune, folder: Path, revision: str
) -> None:
    file = restored(revision, folder)
    before = file.read_bytes()
    for words in READING:
        done = tune(*words)
        said = " ".join((done.err + done.out).split())
        if revision == database._head():
            assert done.code == 0, said
        else:
            assert done.code == 1
            assert ("name another with --storage" in said) == (revision not in OPENED)
            assert ("brings it up to date" in said) == (revision in OPENED)
    assert file.read_bytes() == before


@pytest.mark.parametrize("revision", OPENED)
def test_opening_to_write_brings_it_up_to_date_and_keeps_every_row(
    tune: Tune, folder: Path, revision: str
) -> None:
    file = restored(revision, folder)
    before = rows_of(file)
    open_database(f"sqlite:///{file}").close()
    untouched = folder / "untouched"
    untouched.mkdir()
    other = restored(revision, untouched)
    assert rows_of(file, like=other) == before
    assert check_store(f"sqlite:///{file}").findings == ()
    for words in READING:
        assert tune(*words).code == 0
    shown = tune("show", "small", "--json").document["trials"]
    with contextlib.closing(sqlite3.connect(file)) as connection:
        kept = connection.execute("SELECT number, state FROM trial ORDER BY number").fetchall()
    assert [(one["number"], one["state"]) for one in shown] == kept
    assert len(kept) >= 2
    assert tune("export", "small", "-o", "out.yaml").code == 0


@pytest.mark.parametrize("revision", [one for one in REVISIONS if one not in OPENED])
def test_a_store_from_before_the_names_is_left_alone(
    tune: Tune, folder: Path, revision: str
) -> None:
    file = restored(revision, folder)
    before = file.read_bytes()
    done = tune("--definition", "study.yaml", "--trials", "2")
    assert done.code == 1
    assert "and is left as it is: name another with --storage" in " ".join(done.err.split())
    assert file.read_bytes() == before


@pytest.mark.parametrize("revision", OPENED)
def test_down_to_each_earlier_revision_and_up_again_keeps_every_row(
    folder: Path, revision: str
) -> None:
    file = restored(revision, folder)
    url = f"sqlite:///{file}"
    open_database(url).close()
    before = rows_of(file)
    for lower in (one for one in OPENED if one < database._head()):
        migrate(url, lower, down=True)
        empty = folder / f"{lower}.db"
        migrate(f"sqlite:///{empty}", lower)
        assert schema_of(file) == schema_of(empty)
        migrate(url, "head")
        assert rows_of(file) == before  # nothing runs, so that progress is empty
        assert check_store(url).findings == ()
