"""What a study is expected to take, and what it took."""

import re
from dataclasses import replace
from pathlib import Path

from tests.tuner.conftest import Tune
from tuner.folders import default_storage
from tuner.store.database import open_database
from tuner.store.repository import Store
from tuner.study.estimate import check


def test_the_plan_names_its_stages(tune: Tune, folder: Path):
    def planned(*options: str) -> dict:
        done = tune("--definition", "study.yaml", "--dry-run", "--json", *options)
        return done.document["plan"]

    few, many = planned("--trials", "4"), planned("--trials", "16")
    assert set(few["estimate_by_stage_s"]) == {"search", "trace", "twin", "confirm"}
    assert few["estimate_s"] == sum(few["estimate_by_stage_s"].values())
    assert many["estimate_by_stage_s"]["search"] > few["estimate_by_stage_s"]["search"]
    assert set(planned("--sampler", "random")["estimate_by_stage_s"]) == {"search", "confirm"}
    speed = planned("--trials", "4", "--objectives", "output_tps,tpot_ms")
    assert speed["estimate_by_stage_s"]["search"] < few["estimate_by_stage_s"]["search"]


def test_a_study_says_what_was_expected_and_what_it_took(tune: Tune, study: Path):
    shown = tune("show", "small").out
    assert re.search(r"estimated: .*; took: ", shown)
    document = tune("show", "small", "--json").document["study"]
    assert document["estimate_s"] > 0


def test_the_first_word_on_the_time_stands(tune: Tune, study: Path):
    database = open_database(default_storage())
    try:
        store = Store(database)
        before = store.study("small")
        store.keep_estimate(before.id, 1e6)
        assert store.study("small").estimate_s == before.estimate_s
    finally:
        database.close()
    assert check(replace(before, estimate_s=None)) == ""
    assert check(replace(before, estimate_s=600.0, spent={"search": 100.0, "confirm": 20.0})) == (
        "estimated: 10 min; took: 2 min"
    )
