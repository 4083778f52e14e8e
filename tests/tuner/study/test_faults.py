"""What a machine does to a study: a full disk, a locked database, a clock that is set back.

Failures of engines are in test_cli_study.py, killed processes in test_chaos.py.
"""

import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.tuner.conftest import Tune
from tuner.store import database, repository
from tuner.store.repository import Store
from tuner.store.snapshots import FINISHED_STATES

STUDY = ("--definition", "study.yaml", "--trials", "6", "--sampler", "random")


def trials_of(tune: Tune) -> list[dict[str, Any]]:
    return tune("show", "small", "--json").document["trials"]


def check_continued(tune: Tune, before: list[dict[str, Any]]) -> None:
    """The same command goes on: what was finished stays, what was lost is said and done again."""
    done = tune(*STUDY)
    assert done.code == 0, done.err
    after = trials_of(tune)
    numbers = [trial["number"] for trial in after]
    states = Counter(trial["state"] for trial in after)
    assert numbers == list(range(len(numbers)))
    assert states["RUNNING"] == 0
    assert sum(states[state] for state in FINISHED_STATES) == 6
    kept = {t["number"]: t for t in after}
    for trial in before:
        if trial["state"] in FINISHED_STATES:
            assert kept[trial["number"]]["finished"] == trial["finished"]
    for trial in after:
        if trial["state"] == "INTERRUPTED":
            assert trial["failure"] == "interrupted"
            assert trial["reason"]


def strikes_at(monkeypatch: pytest.MonkeyPatch, call: int, do: Callable[[], None]) -> None:
    """Something happens before the n-th trial is written."""
    plain, calls = Store.finish_trial, [0]

    def finish(self: Store, *arguments: Any) -> None:
        calls[0] += 1
        if calls[0] == call:
            do()
        plain(self, *arguments)

    monkeypatch.setattr(Store, "finish_trial", finish)


class Disk:
    """One that can be filled: from then on no database grows by a page."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._full = False
        self._engines: list[Any] = []
        prepare, make = database._prepare_sqlite, database._make_engine

        def prepared(connection: Any, record: Any) -> None:
            prepare(connection, record)
            if self._full:
                pages = connection.execute("PRAGMA page_count").fetchone()[0]
                connection.execute(f"PRAGMA max_page_count={pages}")

        def made(url: Any) -> Any:
            self._engines.append(make(url))
            return self._engines[-1]

        monkeypatch.setattr(database, "_prepare_sqlite", prepared)
        monkeypatch.setattr(database, "_make_engine", made)

    def fill(self) -> None:
        """Connections are made anew, so that they see it."""
        self._full = True
        for engine in self._engines:
            engine.dispose()


@pytest.fixture
def file(folder: Path) -> Path:
    return folder / "data" / "expertune" / "expertune.db"


def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(
    tune: Tune, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patched:
        disk = Disk(patched)
        strikes_at(patched, 3, disk.fill)
        done = tune(*STUDY)
    assert done.code == 1
    assert "the disk is full" in done.err
    before = trials_of(tune)
    assert sum(trial["state"] in FINISHED_STATES for trial in before) >= 2
    check_continued(tune, before)


def test_a_locked_database_ends_the_run_and_the_next_one_goes_on(
    tune: Tune, file: Path, monkeypatch: pytest.MonkeyPatch
):
    other: list[sqlite3.Connection] = []

    def lock() -> None:
        other.append(sqlite3.connect(file, isolation_level=None))
        other[0].execute("BEGIN IMMEDIATE")

    with monkeypatch.context() as patched:
        patched.setattr(database, "BUSY_TIMEOUT_S", 0.5)
        strikes_at(patched, 3, lock)
        done = tune(*STUDY)
    assert done.code == 1
    assert "is locked by another program" in done.err
    other[0].close()
    before = trials_of(tune)
    assert Counter(trial["state"] for trial in before)["RUNNING"] == 1
    check_continued(tune, before)


@pytest.mark.parametrize("call", [1, 3, 6])
@pytest.mark.parametrize("how", ["removed", "replaced", "folder"])
def test_a_store_that_is_removed_is_an_error_and_the_front_is_shown(
    tune: Tune, file: Path, monkeypatch: pytest.MonkeyPatch, call: int, how: str
):
    def strike() -> None:
        for path in file.parent.glob(f"{file.name}*"):
            path.unlink()
        if how == "replaced":
            file.touch()
        if how == "folder":
            shutil.rmtree(file.parent)

    strikes_at(monkeypatch, call, strike)
    done = tune(*STUDY)
    assert done.code == 1
    assert "was removed or replaced while it was open" in done.err
    assert "Pareto front" in done.out


def test_a_store_that_is_removed_is_said_in_json(
    tune: Tune, file: Path, monkeypatch: pytest.MonkeyPatch
):
    strikes_at(monkeypatch, 3, file.unlink)
    done = tune(*STUDY, "--json")
    assert done.code == 1
    assert "was removed or replaced" in done.document["error"]["message"]


def test_a_clock_that_is_set_back_costs_nothing(tune: Tune, monkeypatch: pytest.MonkeyPatch):
    moments = (datetime(2026, 1, 1, tzinfo=UTC) - timedelta(hours=n) for n in range(10_000))
    monkeypatch.setattr(repository, "now", lambda: next(moments))
    done = tune(*STUDY)
    assert done.code == 0, done.err
    assert "left: -" not in done.err
    states = Counter(trial["state"] for trial in trials_of(tune))
    assert sum(states[state] for state in FINISHED_STATES) == 6
    assert states["INTERRUPTED"] == 0


def test_an_index_that_optuna_could_not_make_is_made_by_the_next_start(
    tune: Tune, folder: Path
) -> None:
    # without it, Optuna would begin a study of the same name twice
    tune("--definition", "study.yaml", "--trials", "1", "--sampler", "random")
    with sqlite3.connect(folder / "data" / "expertune" / "expertune.db") as store:
        store.execute("DROP INDEX ix_studies_study_name")
    tune("--definition", "study.yaml", "--trials", "2", "--sampler", "random")
    with sqlite3.connect(folder / "data" / "expertune" / "expertune.db") as store:
        made = store.execute("SELECT 1 FROM sqlite_master WHERE name = 'ix_studies_study_name'")
        assert made.fetchone()
