"""Other limits than a study's own, over what it measured."""

from pathlib import Path

import numpy as np
import pytest

from tuner.definition.study import Constraints
from tuner.pareto.limits import MEASURES, inside, judged, own_limits
from tuner.store.database import open_read_only
from tuner.store.overview import Overview
from tuner.store.repository import Store


@pytest.fixture
def url(finished: Path) -> str:
    return f"sqlite:///{finished / 'data' / 'expertune' / 'expertune.db'}"


def test_limits_that_stay_judge_as_the_study_did(url: str):
    store = Store(open_read_only(url))
    study = store.study("small")
    trials, own = store.trials(study), own_limits(study)
    assert judged(trials, own, own) == trials


@pytest.mark.parametrize("field", ["min_quality", "max_ttft_ms", "max_tpot_ms"])
def test_columns_and_trials_are_judged_alike(url: str, field: str):
    database = open_read_only(url)
    store = Store(database)
    study = store.study("small")
    trials, own = store.trials(study), own_limits(study)
    points = Overview(database).points(study, ("output_tps", *MEASURES))
    name = {"min_quality": "quality"}.get(field, field.removeprefix("max_"))
    best, next_best = np.sort(points.means[name])[:: -1 if field == "min_quality" else 1][:2]
    if best == next_best:
        next_best = points.means[name].mean()
    wanted = Constraints(**{field: float(best + next_best) / 2})
    kept = {t.number for t in judged(trials, own, wanted) if t.feasible}
    assert kept == set(points.numbers[inside(points, own, wanted)].tolist())
    assert 0 < len(kept) < sum(trial.feasible for trial in trials)


def test_columns_hold_the_figures_of_the_trials(url: str):
    database = open_read_only(url)
    store = Store(database)
    study = store.study("small")
    points = Overview(database).points(study, ("output_tps", "quality"), with_budgets=True)
    trials = {trial.number: trial for trial in store.trials(study)}
    assert points.budgets is not None
    for place, number in enumerate(points.numbers.tolist()):
        trial = trials[number]
        assert points.means["output_tps"][place] == pytest.approx(trial.scores["output_tps"])
        assert points.means["quality"][place] == pytest.approx(trial.scores["quality"])
        assert points.counts["output_tps"][place] == trial.figures["output_tps"].n
        assert points.budgets[place] == trial.config["budget"]["vram_bytes"]
