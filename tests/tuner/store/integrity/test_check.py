"""The store's invariants: a healthy store has no finding, and each kind of fault is found."""

import ast
import contextlib
import json
import shutil
import socket
import sqlite3
from pathlib import Path

import pytest

from tests.tuner.conftest import Tune
from tuner.errors import UsageError
from tuner.store.integrity import check as check_module
from tuner.store.integrity.check import StoreCheck, check_store

FOLDER = Path(check_module.__file__).parent
DEAD = f"{socket.gethostname()} 999999 1"
COPIED = "INSERT INTO sample SELECT (SELECT MAX(id) FROM sample) + 1, configuration_id, {}"
MEASURED = "(SELECT MIN(id) FROM trial WHERE state = 'COMPLETE')"
REST = "machine_id, trial_id, sentinel_id, repeat, role, metric, value, unit FROM sample LIMIT 1"
JOB = "(NULL, 'small', 'QUEUED', '{}', NULL, NULL, '2026-01-01', '2026-01-01')"
PLANTED = [
    # what is done to the store, the check that finds it, words of its sentence
    ("UPDATE trial SET state = 'DONE' WHERE number = 0", "outcomes", "no known state"),
    ("UPDATE trial SET number = -1 WHERE number = 0", "outcomes", "below 0"),
    (f"UPDATE trial SET finished = NULL WHERE id = {MEASURED}", "outcomes", "has no end"),
    (f"UPDATE trial SET scores = '{{}}' WHERE id = {MEASURED}", "outcomes", "has no scores"),
    (f"UPDATE trial SET configuration_id = NULL WHERE id = {MEASURED}", "outcomes", "names no"),
    (f"UPDATE trial SET quality_id = NULL WHERE id = {MEASURED}", "outcomes", "quality without"),
    ("UPDATE trial SET state = 'FAILED', reason = '' WHERE number = 0", "outcomes", "say why"),
    ("UPDATE trial SET state = 'RUNNING' WHERE number = 0", "outcomes", "it has ended"),
    (
        f"UPDATE trial SET state = 'RUNNING', finished = NULL, worker = '{DEAD}' WHERE number = 0",
        "running",
        "trial 0 of study 'small' is marked as running",
    ),
    ("UPDATE trial SET state = 'RUNNING', worker = 'nobody'", "running", "trial 0"),
    ("UPDATE study SET state = 'RUNNING', parent_pid = NULL", "running", "study 'small'"),
    (
        "UPDATE study SET state = 'RUNNING', parent_pid = 4194303, parent_host = "
        f"'{socket.gethostname()}'",
        "running",
        "its process is gone",
    ),
    ("UPDATE study SET state = 'PAUSED'", "states", "study 'small'"),
    (
        "INSERT INTO job VALUES (1, 'small', 'LOST', '{}', NULL, NULL, '2026-01-01', '2026-01-01')",
        "states",
        "job 1",
    ),
    ("UPDATE study SET workload_hash = 'other'", "outcomes", "another model or workload"),
    (f"{COPIED.format(REST)}", "counted_twice", "is counted twice"),
    (
        "UPDATE sample SET sentinel_id = (SELECT MAX(id) FROM sentinel)",
        "counted_twice",
        "several configurations",
    ),
    (
        "INSERT INTO expert_use SELECT id + 1000, configuration_id, machine_id, counts, created "
        "FROM expert_use",
        "counted_twice",
        "counts its experts",
    ),
    ("UPDATE sample SET repeat = repeat + 1", "repeats", "numbered 1 to"),
    ("DELETE FROM sample WHERE repeat = 0", "repeats", "repeats, numbered 1"),
    ("UPDATE sample SET unit = 'h' WHERE repeat = 0", "samples", "several units"),
    ("UPDATE sample SET value = value * 1.001 WHERE metric = 'tpot_ms'", "scores", "tpot_ms of"),
    ("DELETE FROM sample WHERE metric = 'output_tps'", "scores", "its 0 samples"),
    (
        "INSERT INTO machine VALUES (9, 'f', '{}', '2026-01-01'); UPDATE sample SET machine_id = 9",
        "samples",
        "different machines",
    ),
    (
        "INSERT INTO machine VALUES (9, 'f', '{}', '2026-01-01'); UPDATE study SET machine_id = 9",
        "samples",
        "of another machine or model than its study 'small'",
    ),
    (
        "CREATE TABLE copy AS SELECT * FROM model; DROP TABLE model; "
        "ALTER TABLE copy RENAME TO model; INSERT INTO model SELECT id + 1, fingerprint, name, "
        "revision, family, facts, created FROM model",
        "doubled",
        "the table 'model' holds fingerprint",
    ),
    (
        f"DROP INDEX uq_job_under_way; INSERT INTO job VALUES {JOB}, {JOB}",
        "doubled",
        "the table 'job' holds study_name small more than once",
    ),
    (
        "DROP INDEX ix_studies_study_name; INSERT INTO studies VALUES (9, 'small')",
        "optuna",
        "the study 'small' more than once",
    ),
    ("DROP INDEX ix_studies_study_name", "optuna", "index of the names"),
    ("UPDATE sample SET configuration_id = 999", "references", "configuration 999"),
    ("UPDATE sample SET trial_id = 999 WHERE id = 1", "references", "trial 999"),
    ("DELETE FROM quality_result", "references", "quality_result"),
    ("DELETE FROM model", "references", "belongs to model"),
    (
        'INSERT INTO quality_items SELECT id + 1000, quality_id, task, metric, docs, "values" '
        "FROM quality_items",
        "quality",
        "counted twice",
    ),
    ("UPDATE quality_items SET docs = '[0]'", "quality", "do not match"),
    (
        "INSERT INTO model SELECT 9, 'other', name, revision, family, facts, created FROM model; "
        "UPDATE quality_result SET model_id = 9",
        "quality",
        "is of another model",
    ),
    (
        "INSERT INTO trials SELECT trial_id + 1000, number, study_id, state, datetime_start, "
        "datetime_complete FROM trials WHERE number = 1",
        "optuna",
        "holds a trial of study 'small' twice",
    ),
    (
        "PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = 'CREATE INDEX "
        "ix_trial_study_id ON trial (number)' WHERE name = 'ix_trial_study_id'",
        "pages",
        "SQLite finds damage: row",
    ),
    ("DELETE FROM trials WHERE number = 1", "optuna", "numbers of the trials of study 'small'"),
    ("DELETE FROM trials WHERE number = 4", "optuna", "does not know trial 4"),
    ("DELETE FROM trials WHERE number = 0", "optuna", "which is not there"),
    ("DELETE FROM trial WHERE number = 4", "optuna", "missing in our table"),
    (
        "UPDATE trial SET state = 'INTERRUPTED', failure = 'interrupted', reason = 'x' "
        "WHERE number = 4",
        "optuna",
        "is INTERRUPTED, and for Optuna COMPLETE",
    ),
    ("UPDATE trial_params SET param_value = 1 - param_value", "optuna", "different parameters"),
    ("DROP TABLE studies", "optuna", "tables are missing"),
    ("DROP TABLE expert_use", "schema", "'expert_use' is missing"),
    ("ALTER TABLE study DROP COLUMN progress", "schema", "lacks 'progress'"),
    ("UPDATE trial SET params = '{' WHERE number = 0", "json", "no JSON in 'params'"),
    ("UPDATE trial SET number = 'x' WHERE number = 0", "types", "holds text in 'number'"),
    ("UPDATE trial SET params = 'null' WHERE number = 0", "json", "no JSON in 'params'"),
    ("UPDATE model SET facts = '{}'", "contents", "study 'small'"),
    ("UPDATE expertune_version SET version_num = '0999'", "opening", "version '0999'"),
    ("UPDATE expertune_version SET version_num = '0100'", "opening", "earlier version"),
    (
        "INSERT INTO export VALUES (1, 1, 1, 'knee', '/nowhere/a.yaml', '', '2026-01-01')",
        "files",
        "/nowhere/a.yaml is gone",
    ),
    (
        "UPDATE study SET state = 'INTERRUPTED', "
        "definition = json_set(definition, '$.model', '/nowhere/model')",
        "files",
        "needs /nowhere/model",
    ),
]


@pytest.fixture
def file(finished: Path, tmp_path: Path) -> Path:
    """The database of a finished study, to be damaged."""
    shutil.copytree(finished / "data", tmp_path / "copy")
    return tmp_path / "copy" / "expertune" / "expertune.db"


def check(file: Path) -> StoreCheck:
    return check_store(f"sqlite:///{file}")


def plant(file: Path, statements: str) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.executescript(statements)


def test_a_finished_study_is_whole(file: Path) -> None:
    found = check(file)
    assert found.healthy, found.findings
    assert found.counts["trials"] == 5
    assert found.counts["samples"] > 0


@pytest.mark.parametrize(("statements", "name", "says"), PLANTED, ids=lambda value: None)
def test_a_planted_fault_is_found(file: Path, statements: str, name: str | None, says: str) -> None:
    plant(file, statements)
    found = check(file).findings
    named = [one for one in found if one.check == name and says in one.sentence]
    assert bool(named) == (name is not None), found
    assert all(one.remedy and "\n" not in one.sentence for one in found)


def test_every_check_is_planted() -> None:
    place = {"Finding": 0, "shortened": 1}  # of the check's name among the arguments
    named = {
        call.args[place[call.func.id]]
        for path in FOLDER.glob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in place
    }
    checks = {node.value for node in named if isinstance(node, ast.Constant)}
    assert checks == {name for _, name, _ in PLANTED}


def test_what_the_next_start_mends_is_no_damage(file: Path) -> None:
    plant(file, f"UPDATE trial SET state = 'RUNNING', finished = NULL, worker = '{DEAD}'")
    plant(file, "UPDATE study SET state = 'RUNNING', parent_pid = NULL")
    plant(file, "UPDATE trials SET state = 'RUNNING'")
    found = check(file)
    assert {one.check for one in found.findings} == {"running"}
    assert not found.damage


def test_a_store_whose_tables_were_never_made_is_mended_by_the_next_start(tmp_path: Path) -> None:
    # a full disk at the first write of all
    file = tmp_path / "empty.db"
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    (found,) = check(file).findings
    assert "holds no study yet" in found.sentence
    assert found.mended_by_next_start


def test_tables_of_optuna_that_were_never_made_are_mended_by_the_next_start(file: Path) -> None:
    for table in ("sample", "trial", "trial_params", "trial_values"):
        plant(file, f"DROP TABLE {table}" if "_" in table else f"DELETE FROM {table}")
    found = [one for one in check(file).findings if one.check == "optuna"]
    assert [one.mended_by_next_start for one in found] == [True]
    assert found[0].sentence.endswith("missing: trial_params, trial_values")


def test_flipped_pages_are_found(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[4096 * 9 : 4096 * 9 + 200] = b"\xff" * 200
    file.write_bytes(data)
    assert {one.check for one in check(file).findings} <= {"pages", "opening"}
    assert not check(file).healthy


def test_what_is_no_database_or_is_not_there_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database" * 1000)
    assert "is not a database" in check(tmp_path / "text.db").findings[0].sentence
    assert "there is no database" in check(tmp_path / "absent.db").findings[0].sentence
    assert not (tmp_path / "absent.db").exists()
    with pytest.raises(UsageError):
        check_store("mysql://somewhere")


def test_very_many_faults_of_one_kind_are_counted(file: Path) -> None:
    plant(file, "UPDATE sample SET configuration_id = 999")
    sentences = [one.sentence for one in check(file).findings if one.check == "references"]
    assert len(sentences) == 4
    assert "more of the same kind" in sentences[-1]


def test_doctor_says_it_and_exits_with_1(tune: Tune, study: Path) -> None:
    whole = tune("doctor", "--store")
    assert whole.code == 0
    assert "whole, nothing counted twice: studies 1, trials 5" in whole.out
    plant(study / "data" / "expertune" / "expertune.db", PLANTED[0][0])
    broken = tune("doctor", "--store")
    assert broken.code == 1
    assert "- trial 0 of study 'small' is in no known state ('DONE'): give" in broken.out
    shown = tune("doctor", "--store", "--json")
    assert shown.code == 1
    document = json.loads(shown.out)
    assert document["schema"]
    assert document["store"]["findings"][0]["check"] == "outcomes"
    assert tune("doctor", "--storage", "sqlite:///a.db").code == 2
