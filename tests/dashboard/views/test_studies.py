"""Studies and live progress."""

import pytest
from streamlit.testing.v1 import AppTest

from dashboard.charts.studies import spent_figure
from dashboard.frames.history import history_frame
from dashboard.frames.studies import spent_frame
from dashboard.units import objective
from tests.dashboard.conftest import Opened
from tuner.pareto.front import Front
from tuner.store.database import open_database, open_read_only
from tuner.store.outcome import TrialOutcome
from tuner.store.repository import Store
from tuner.study.stages import Activity

NOW = Activity("evaluating", 3, 40, 12.0, 90.0, 5, 5, 10, 30.0, 660.0)


def metrics_of(app: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in app.metric}


def failed_of(front: Front) -> int:
    return sum(trial.state == "FAILED" for trial in front.trials)


def test_every_study_is_listed_with_its_counts(opened: Opened, front: Front):
    app = opened("studies")
    row = app.dataframe[-1].value.iloc[0]
    assert (row["study"], row["state"], row["trials"]) == ("small", "FINISHED", 5)
    assert row["failed"] == failed_of(front) > 0


def test_the_chosen_study_shows_states_and_the_best_so_far(opened: Opened, front: Front):
    app = opened("studies")
    counts = next(one.value for one in app.markdown if "trials" in one.value)
    assert counts.startswith("**5 trials**")
    assert f"{failed_of(front)} failed" in counts
    shown = metrics_of(app)
    scores = [trial.scores for trial in front.trials if trial.feasible]
    best = max(one["output_tps"] for one in scores)
    assert shown["best throughput"] == objective(best, "output_tps")
    best = min(one["tpot_ms"] for one in scores)
    assert shown["best time per token"] == objective(best, "tpot_ms")


def test_the_best_so_far_ends_with_the_recommended_trial(storage: str, front: Front):
    study = Store(open_read_only(storage)).study("small")
    history = history_frame(study, front.trials)
    assert history["number"].iloc[-1] == front.knee.number
    assert history["minutes"].is_monotonic_increasing
    assert history["number"].iloc[0] == min(t.number for t in front.trials if t.feasible)
    for row in history.to_dict("records"):
        trial = next(one for one in front.trials if one.number == row["number"])
        assert row["output_tps"] == trial.scores["output_tps"]


def test_where_the_time_went_is_drawn_the_longest_on_top(storage: str):
    study = Store(open_read_only(storage)).study("small")
    bars = spent_figure(spent_frame(study)).data[0]
    assert list(bars.x) == sorted(bars.x, reverse=True)
    assert sum(spent_frame(study)["seconds"]) == pytest.approx(sum(study.spent.values()))
    assert "trials: choosing and running configs" in bars.y


def test_a_running_study_says_what_runs_and_that_it_looks_again(
    opened: Opened, own_storage: str, front: Front
):
    store = Store(open_database(own_storage))
    study = store.study("small")
    store.set_study_state(study.id, "RUNNING")
    trial = store.start_trial(study.id, 5, {"precision.bits": 4}, worker="w1")
    store.keep_progress(study.id, {**NOW.to_json(), "time": "2026-11-30T00:00:00+00:00"})
    app = opened("studies", own_storage)
    assert any("1 running" in one.value for one in app.markdown)
    assert app.get("progress")[0].proto.value == 12  # 90 s of 750 s
    said = "trial 5: evaluating quality 3/40 (12 s) · left: trial 30 s, study 11 min"
    assert any(said in one.value for one in app.markdown)
    assert app.dataframe[0].value["trial"].tolist() == [5]
    assert any("looked at again every" in one.value for one in app.caption)
    store.finish_trial(trial, TrialOutcome("FAILED", "crash", "it fell"))
    store.set_study_state(study.id, "FINISHED")
    store.database.close()
    app.run()
    assert not app.exception
    assert any(f"{failed_of(front) + 1} failed" in one.value for one in app.markdown)
    assert not any("looked at again" in one.value for one in app.caption)
    assert not any("evaluating" in one.value for one in app.markdown)


def test_new_trials_do_not_move_what_was_chosen(opened: Opened, own_storage: str):
    store = Store(open_database(own_storage))
    study = store.study("small")
    store.set_study_state(study.id, "RUNNING")
    app = opened("front", own_storage)
    app.selectbox(key="trial-small").set_value(0).run()
    app.selectbox(key="view").set_value("tpot_ms,quality").run()
    store.start_trial(study.id, 5, {"precision.bits": 4})
    store.database.close()
    app.run()
    assert not app.exception
    assert app.selectbox(key="trial-small").value == 0
    assert app.selectbox(key="view").value == "tpot_ms,quality"
