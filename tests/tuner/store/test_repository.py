"""The store: migrations, read-only opening, pooling, and one sentence for each thing that fails."""

import os
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from engine.config.settings import EngineConfig
from engine.contract.report import ExpertUse, MemoryReading, Report, Sample, Sentinel
from engine.contract.requests import Workload
from engine.facts.machine import probe
from engine.memory.plan import resolve
from tests.fakes.fake_engine import facts_of
from tuner.definition.study import StudyDefinition
from tuner.errors import StoreError, StudyError, UsageError
from tuner.store.database import open_database, open_read_only
from tuner.store.outcome import TrialOutcome
from tuner.store.overview import Overview
from tuner.store.repository import Store
from tuner.store.tables import Base

WORK = Workload("w", ("a",))


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'e.db'}"


def begin(store: Store, **fields: object):
    definition = StudyDefinition.model_validate({"model": "m", "name": "s", **fields})
    return store.begin_study(definition, facts_of("m"), probe(), WORK)


def report_of(*values: float) -> Report:
    samples = tuple(Sample("output_tps", n, value, "tok/s") for n, value in enumerate(values))
    memory = MemoryReading(0, 0, 0, 0, 0, "fake", 0, 0)
    return Report({}, samples, memory, Sentinel(2.0, 1.0))


def test_the_migrations_build_exactly_the_tables_of_the_code(tmp_path: Path):
    database = open_database(url_of(tmp_path))
    inspector = sa.inspect(database.engine)
    for name, table in Base.metadata.tables.items():
        columns = {column["name"] for column in inspector.get_columns(name)}
        assert columns == set(table.columns.keys())
    assert "expertune_version" in inspector.get_table_names()
    database.close()


def set_version(folder: Path, version: str) -> None:
    with sqlite3.connect(folder / "e.db") as connection:
        connection.execute("UPDATE expertune_version SET version_num = ?", (version,))
    connection.close()


@pytest.mark.parametrize("opening", [open_database, open_read_only])
@pytest.mark.parametrize("version", ["0001", "0006"])
def test_a_store_of_before_the_names_is_left_alone(tmp_path: Path, opening, version: str):
    open_database(url_of(tmp_path)).close()
    set_version(tmp_path, version)
    before = (tmp_path / "e.db").read_bytes()
    with pytest.raises(StoreError, match="run the study again"):
        opening(url_of(tmp_path))
    assert (tmp_path / "e.db").read_bytes() == before


def test_sqlite_runs_in_wal_mode(tmp_path: Path):
    open_database(url_of(tmp_path)).close()
    with sqlite3.connect(tmp_path / "e.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_repeats_of_one_configuration_are_pooled_over_trials(tmp_path: Path):
    store = Store(open_database(url_of(tmp_path)))
    study = begin(store)
    config, plan = resolve(EngineConfig(), facts_of("m"))
    key = store.keep_configuration(study.model_id, study.workload_hash, config, plan)
    assert store.keep_configuration(study.model_id, study.workload_hash, config, plan) == key
    for number, values in enumerate([(1.0, 2.0), (3.0,)]):
        trial = store.start_trial(study.id, number, {})
        store.add_samples(key, study.machine_id, trial, report_of(*values))
        store.finish_trial(trial, TrialOutcome("COMPLETE", configuration_id=key))
    assert store.pool(key, study.machine_id).values["output_tps"] == (1.0, 2.0, 3.0)
    for trial in store.trials(study):
        assert (trial.metrics["output_tps"].value, trial.metrics["output_tps"].n) == (2.0, 3)
        assert trial.sentinel == {"compute_ms": 2.0, "read_ms": 1.0}
    store.database.close()


def test_trials_of_a_dead_parent_become_interrupted(tmp_path: Path):
    store = Store(open_database(url_of(tmp_path)))
    study = begin(store)
    store.start_trial(study.id, 0, {}, worker="a")
    store.start_trial(study.id, 1, {}, worker="b")
    assert store.interrupt_running(study.id, lambda worker: worker == "a") == (0,)
    assert [trial.state for trial in store.trials(study)] == ["INTERRUPTED", "RUNNING"]
    store.database.close()


def test_a_name_of_another_question_is_refused(tmp_path: Path):
    store = Store(open_database(url_of(tmp_path)))
    begin(store)
    with pytest.raises(StudyError, match="asked something else"):
        begin(store, budget={"vram_bytes": 1})
    with pytest.raises(StudyError, match="another model"):
        store.begin_study(StudyDefinition(model="m", name="s"), facts_of("other"), probe(), WORK)
    store.database.close()


def test_read_only_opening_cannot_write(tmp_path: Path):
    writer = Store(open_database(url_of(tmp_path)))
    begin(writer)
    reader = Store(open_read_only(url_of(tmp_path)))
    assert [study.name for study in reader.studies()] == ["s"]
    with reader.database.engine.connect() as connection, pytest.raises(sa.exc.OperationalError):
        connection.execute(sa.text("DELETE FROM study"))
    reader.database.close()
    writer.database.close()


def test_reading_what_is_not_there_says_so_and_creates_nothing(tmp_path: Path):
    with pytest.raises(StoreError, match="there is no database"):
        open_read_only(url_of(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opening", [open_database, open_read_only])
def test_a_newer_version_is_refused(tmp_path: Path, opening):
    open_database(url_of(tmp_path)).close()
    set_version(tmp_path, "9999")
    with pytest.raises(StoreError, match=r"version '9999'.*update expertune"):
        opening(url_of(tmp_path))


@pytest.mark.parametrize("opening", [open_database, open_read_only])
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, opening):
    (tmp_path / "e.db").write_text("these are words, many words, and surely no database " * 40)
    with pytest.raises(StoreError, match="is not a database"):
        opening(url_of(tmp_path))


def test_tables_of_another_program_are_left_alone(tmp_path: Path):
    with sqlite3.connect(tmp_path / "e.db") as connection:
        connection.execute("CREATE TABLE study (x int)")
    connection.close()
    with pytest.raises(StoreError, match="another program"):
        open_database(url_of(tmp_path))


def test_a_locked_database_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tuner.store.database.BUSY_TIMEOUT_S", 0.1)
    store = Store(open_database(url_of(tmp_path)))
    other = sqlite3.connect(tmp_path / "e.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked by another program"):
        begin(store)
    other.close()
    store.database.close()


def test_a_full_disk_is_said(tmp_path: Path):
    store = Store(open_database(url_of(tmp_path)))
    begin(store)

    def limit(connection, _record, _proxy):
        connection.execute("PRAGMA max_page_count=1")

    sa.event.listen(store.database.engine, "checkout", limit)
    study = store.study("s")
    with pytest.raises(StoreError, match="disk is full"):
        store.start_trial(study.id, 0, {"x": "y" * 1_000_000})
    store.database.close()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be created"):
        open_database(f"sqlite:///{tmp_path / 'file' / 'below' / 'e.db'}")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_said_and_can_still_be_read(tmp_path: Path):
    begin(Store(open_database(url_of(tmp_path))))
    tmp_path.chmod(0o555)
    try:
        assert Store(open_read_only(url_of(tmp_path))).study_names() == ("s",)
        with pytest.raises(StoreError, match="read-only"):
            begin(Store(open_database(url_of(tmp_path))))
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize("url", ["foo", "mysql://host/name", "sqlite://", "sqlite:///:memory:"])
def test_a_url_that_is_no_store_is_a_usage_error(url: str):
    with pytest.raises(UsageError):
        open_database(url)


def test_what_experts_were_asked_adds_up_over_a_configurations_measurements(tmp_path: Path):
    store = Store(open_database(url_of(tmp_path)))
    study = begin(store)
    config, plan = resolve(EngineConfig(), facts_of("m"))
    key = store.keep_configuration(study.model_id, study.workload_hash, config, plan)
    overview = Overview(store.database)
    assert overview.expert_use(key, study.machine_id) is None
    use = ExpertUse(((3, 1), (2, 2)), (3, 0), (1, 4), (0, 4), (0, 2))
    for _ in range(2):
        report = replace(report_of(1.0), experts=use)
        store.add_samples(key, study.machine_id, None, report)
    store.add_samples(key, study.machine_id, None, report_of(1.0))
    found = overview.expert_use(key, study.machine_id)
    assert found == ExpertUse(((6, 2), (4, 4)), (6, 0), (2, 8), (0, 8), (0, 4))
    assert overview.expert_use(key, study.machine_id + 1) is None
    store.database.close()
