"""What pages ask, of either database."""

import pytest
import sqlalchemy as sa

from tuner.store.database import open_read_only
from tuner.store.overview import Overview, TrialFilter
from tuner.store.repository import Store


def test_a_reader_is_refused_to_write(any_storage: str):
    database = open_read_only(any_storage)
    with (
        database.engine.connect() as connection,
        pytest.raises(sa.exc.DBAPIError, match=r"(?i)read-?only"),
    ):
        connection.execute(sa.text("DELETE FROM trial"))
    database.close()


def test_trials_are_found_by_the_value_of_a_setting(any_storage: str):
    database = open_read_only(any_storage)
    overview, store = Overview(database), Store(database)
    study = store.study("small")
    trials = store.trials(study)
    for setting in overview.settings(study):
        proposed = {str(trial.params[setting]) for trial in trials}
        assert set(overview.values(study, setting)) == proposed
        for value in proposed:
            wanted = TrialFilter(setting=setting, value=value)
            expected = [t.number for t in trials if str(t.params[setting]) == value]
            assert overview.numbers(study, wanted, 0, 10) == tuple(reversed(expected))
            assert overview.count(study, wanted) == len(expected)
    database.close()


def test_the_best_of_each_objective_is_a_figure_of_a_trial(any_storage: str):
    database = open_read_only(any_storage)
    store = Store(database)
    study = store.study("small")
    names = ("output_tps", "tpot_ms", "quality")
    points = Overview(database).points(study, names)
    trials = [trial for trial in store.trials(study) if trial.feasible]
    assert "confirmed" in {trial.source for trial in trials}
    assert {name: points.best(name) for name in names} == {
        "output_tps": pytest.approx(max(trial.scores["output_tps"] for trial in trials)),
        "tpot_ms": pytest.approx(min(trial.scores["tpot_ms"] for trial in trials)),
        "quality": pytest.approx(max(trial.scores["quality"] for trial in trials)),
    }
    database.close()
