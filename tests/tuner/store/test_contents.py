"""Stores that another program wrote into: a sentence from every reader, and from the check."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path

import pytest

from tests.upgrade.folders import fixture
from tuner.errors import StoreError
from tuner.store.database import open_read_only
from tuner.store.integrity.check import check_store
from tuner.store.overview import Overview
from tuner.store.repository import Store
from tuner.store.service import Jobs

DEEP = "[" * 3000 + "]" * 3000
JOB = "INSERT INTO job VALUES (1, 'a', '{}', '{}', NULL, NULL, '2026-01-01', '2026-01-01')"
PLANTED = [
    # what is done to the store, the check that finds it, words of what a reader says
    ("UPDATE study SET name = x'00ff'", "types", "its name is"),
    ("UPDATE trial SET number = 'one' WHERE number = 0", "types", "its number is 'one'"),
    ("UPDATE trial SET started = 5", "types", "date"),
    ("UPDATE trial SET started = 'yesterday'", "opening", "date"),
    ("UPDATE trial SET params = 5", "json", "JSON value"),
    ("UPDATE trial SET params = 'null'", "json", "its params is missing"),
    ("UPDATE trial SET params = '[]'", "json", "its params is"),
    (f"UPDATE trial SET params = '{DEEP}'", "json", "JSON value"),
    (f"UPDATE trial SET params = '{DEEP[2900:-2900]}'", "json", "nested more than 64 deep"),
    ("UPDATE trial SET params = '{'", "json", "JSON value"),
    (r"""UPDATE trial SET params = '{"a": "\uD800"}'""", "opening", "JSON value"),
    ("""UPDATE trial SET scores = '{"output_tps": "fast"}'""", "contents", "scores.output_tps"),
    ("""UPDATE trial SET scores = '{"output_tps": 1e200}'""", "contents", "scores.output_tps"),
    ("""UPDATE trial SET predicted = '{"output_tps": null}'""", "contents", "predicted.output_tps"),
    ("UPDATE sample SET value = 'much'", "types", "a figure of it is 'much'"),
    ("UPDATE sample SET value = 1e200", "scores", "a figure of it is"),
    ("UPDATE sentinel SET read_ms = 1e200", "", "sentinel"),
    ("UPDATE configuration SET config = '{}'", "contents", "'device'"),
    ("UPDATE study SET definition = '{}'", "contents", "'model'"),
    ("UPDATE study SET definition = replace(definition, '\"output_tps\"', '\"speed\"')", "contents",
     "no objective 'speed'"),
    ("UPDATE study SET definition = replace(definition, '\"vram_bytes\"', '\"vram\"')", "contents",
     "vram"),
    ("UPDATE study SET workload = '{}'", "contents", "prompts"),
    ("UPDATE study SET spent = '{\"search\": []}'", "contents", "spent.search"),
    ("UPDATE model SET facts = '{}'", "contents", "parts"),
    ("UPDATE quality_result SET report = '{}'", "contents", "tasks"),
    ("UPDATE expert_use SET counts = '{}'", "contents", "expert use"),
    ("UPDATE expert_use SET counts = replace(counts, '\"hits\": [', '\"hits\": [1, ')", "contents",
     "not of every layer"),
    ("UPDATE quality_items SET docs = '[\"a\"]'", "contents", "whole number"),
    ("UPDATE quality_items SET \"values\" = '[1]'", "quality", "as many values"),
    (JOB.format("GONE", "{}"), "states", "job 1"),
    (JOB.format("QUEUED", "{}"), "", "job 1"),
    ("DROP TABLE sentinel; CREATE VIEW sentinel AS SELECT 1 AS id", "opening", "a view in place"),
]  # fmt: skip


def planted(folder: Path, statement: str) -> str:
    """The URL of a small study's store after this statement."""
    file = folder / "e.db"
    sql = (fixture("store", "0101") / "store.sql").read_text("utf-8")
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.executescript(sql)
        connection.executescript(statement)
    return f"sqlite:///{file}"


def read_all(url: str) -> None:
    """What commands, service and dashboard read."""
    database = open_read_only(url)
    with contextlib.closing(database):
        store, overview = Store(database), Overview(database)
        for study in store.studies():
            trials = store.trials(study)
            store.with_items({one.quality_id for one in trials if one.quality_id})
            for trial in trials:
                assert trial.configuration_id is not None
                overview.expert_use(trial.configuration_id, study.machine_id)
        Jobs(database).latest()


def test_an_untouched_store_is_read(tmp_path: Path) -> None:
    url = planted(tmp_path, "")
    read_all(url)
    assert check_store(url).healthy


@pytest.mark.parametrize(("statement", "check", "says"), PLANTED)
def test_what_no_program_of_ours_wrote_is_refused_with_a_sentence(
    tmp_path: Path, statement: str, check: str, says: str
) -> None:
    url = planted(tmp_path, statement)
    with pytest.raises(StoreError) as caught:
        read_all(url)
    assert says in str(caught.value)
    assert "--storage" in str(caught.value)
    found = [one.check for one in check_store(url).findings]
    assert (check in found) if check else not found


def test_numbers_of_optuna_that_are_texts_are_found(tmp_path: Path) -> None:
    statement = (
        "CREATE TABLE t AS SELECT * FROM trials; DROP TABLE trials; ALTER TABLE t RENAME TO "
    )
    url = planted(tmp_path, f"{statement} trials; UPDATE trials SET number = 'x' || number")
    assert "no whole numbers" in check_store(url).findings[0].sentence


def test_names_that_no_file_can_have_are_missing_files(tmp_path: Path) -> None:
    long = json.dumps("/" + "a" * 5000)
    changed = f"""UPDATE study SET state = 'INTERRUPTED',
        definition = replace(definition, '"some-moe"', '{long}')"""
    found = check_store(planted(tmp_path, changed)).findings
    assert [one.check for one in found] == ["files"]
