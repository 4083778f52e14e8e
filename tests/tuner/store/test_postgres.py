"""Studies in PostgreSQL: the same commands, the same rows, one parent a study."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.fakes.postgres import serving
from tests.tuner.conftest import Tune
from tests.tuner.store.test_upgrade import EARLIER, migrate
from tuner.errors import StudyError
from tuner.store.database import open_database
from tuner.store.integrity.check import check_store
from tuner.store.lock import study_lock
from tuner.store.tables import Base


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as found:
        yield found


@pytest.fixture
def empty(url: str) -> str:
    """An empty database."""
    engine = sa.create_engine(with_driver(url))
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    engine.dispose()
    return url


def test_a_study_runs_resumes_and_is_shown(tune: Tune, folder: Path, empty: str):
    there = ("--storage", empty)
    done = tune("--definition", "study.yaml", "--trials", "3", *there, "--json")
    assert done.code == 0, done.err
    done = tune("--definition", "study.yaml", *there, "--json")
    assert done.code == 0, done.err
    trials = done.document["trials"]
    assert [trial["number"] for trial in trials] == list(range(6))
    listed = tune("studies", *there, "--json").document["studies"]
    assert [(one["name"], one["trials"], one["state"]) for one in listed] == [
        ("small", 6, "FINISHED")
    ]
    assert tune("show", "small", *there, "--json").document["front"]
    assert tune("export", "small", *there, "-o", "best.yaml").code == 0


def test_the_same_trials_come_of_the_same_seed_as_in_sqlite(tune: Tune, folder: Path, empty: str):
    here = tune("--definition", "study.yaml", "--json").document["trials"]
    there = tune("--definition", "study.yaml", "--storage", empty, "--json").document["trials"]
    assert [t["params"] for t in here] == [t["params"] for t in there]
    assert [t["scores"] for t in here] == [t["scores"] for t in there]


def test_a_second_parent_is_refused_wherever_it_runs(url: str, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "one"))
    with study_lock(url, "small"):
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "another machine"))
        with pytest.raises(StudyError, match="already running"), study_lock(url, "small"):
            pass
        with study_lock(url, "other"):
            pass
    with study_lock(url, "small"):
        pass


def test_what_cannot_be_reached_is_said_in_one_sentence(tune: Tune, folder: Path, url: str):
    away = "postgresql://somebody:secret@127.0.0.1:1/nothing"
    done = tune("studies", "--storage", away)
    assert done.code == 1
    assert "secret" not in done.err
    assert "127.0.0.1:1" in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_migrations_leave_what_the_models_say(empty: str):
    database = open_database(empty)
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": "expertune_version"}
        )
        found = compare_metadata(context, Base.metadata)
    database.close()
    assert found == []


def test_down_and_up_again_keeps_every_row(tune: Tune, folder: Path, empty: str):
    done = tune("--definition", "study.yaml", "--trials", "2", "--storage", empty)
    assert done.code == 0, done.err
    before = rows_of(empty)
    for revision in reversed(EARLIER):
        migrate(with_driver(empty), revision, down=True)
        migrate(with_driver(empty), "head")
        assert rows_of(empty) == before
    assert check_store(empty).findings == ()


def with_driver(url: str) -> str:
    return url.replace("postgresql:", "postgresql+psycopg:")


def rows_of(url: str) -> dict[str, list[sa.Row]]:
    """All rows by table."""
    engine = sa.create_engine(with_driver(url), poolclass=sa.NullPool)
    with engine.connect() as connection:
        return {
            table.name: list(connection.execute(sa.select(table).order_by(table.c.id)))
            for table in Base.metadata.sorted_tables
        }
