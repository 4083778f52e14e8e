"""What ended early because of a front that later repeats lowered."""

import sqlite3
from pathlib import Path

from tests.tuner.conftest import Tune
from tests.tuner.study.test_pruning import incumbents, trial, values
from tuner.study.pruning import competitive


def test_what_the_front_still_beats_stays_ended():
    ended = trial(1, (10.0,), state="PRUNED")
    front = incumbents(trial(0, (20.0, 20.2, 19.8)))
    assert competitive([ended], front, lambda _: values(10.0)) == []


def test_what_nothing_beats_any_more_deserves_its_end_once():
    ended = [trial(n, (10.0,), state="PRUNED", configuration_id=1) for n in (1, 2)]
    lowered = incumbents(trial(0, (10.1, 10.3, 9.9)))
    assert competitive(ended, lowered, lambda _: values(10.0)) == ended[:1]
    done = trial(3, (10.0, 10.0), configuration_id=1)
    assert competitive([*ended, done], lowered, lambda _: values(10.0)) == []


def test_what_does_not_fit_or_keeps_no_limit_stays_ended():
    lowered = incumbents(trial(0, (10.1, 10.3, 9.9)))
    ended = trial(1, (10.0,), state="PRUNED", configuration_id=1)
    unfit = trial(2, (10.0,), state="INFEASIBLE", configuration_id=1)
    assert competitive([ended, unfit], lowered, lambda _: values(10.0)) == []
    late = trial(1, (10.0,), state="PRUNED", violations={"ttft": 0.2})
    assert competitive([late], lowered, lambda _: values(10.0)) == []


def test_a_study_finishes_what_its_front_wrongly_ended(tune: Tune, folder: Path):
    """Its first members turn out ten times slower than their first repeats said."""
    done = tune("--definition", "study.yaml", "--trials", "8", "--json")
    assert done.code == 0, done.err
    before = tune("show", "small", "--json").document
    ended = [t["number"] for t in before["trials"] if t["state"] == "PRUNED"]
    assert ended
    with sqlite3.connect(folder / "data" / "expertune" / "expertune.db") as database:
        complete = "SELECT configuration_id FROM trial WHERE state = 'COMPLETE'"
        of_these = f"configuration_id IN ({complete})"
        database.execute(
            f"UPDATE sample SET value = value / 10 WHERE metric = 'output_tps' AND {of_these}"
        )
        database.execute(
            f"UPDATE sample SET value = value * 10 WHERE metric = 'tpot_ms' AND {of_these}"
        )
    again = tune("--definition", "study.yaml", "--trials", "8", "--json")
    assert again.code == 0, again.err
    after = tune("show", "small", "--json").document
    states = {t["number"]: t["state"] for t in after["trials"]}
    assert len(states) == len(before["trials"])
    assert "COMPLETE" in {states[number] for number in ended}
    recommended = next(t for t in after["trials"] if t["number"] == after["recommended"])
    short = [t["scores"]["output_tps"] for t in after["trials"] if t["state"] == "PRUNED"]
    assert recommended["scores"]["output_tps"] > max(short, default=0.0)
