"""Studies and live progress."""

from streamlit.testing.v1 import AppTest

from tests.dashboard.conftest import Opened
from tuner.pareto.front import Front
from tuner.store.database import open_database
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
    row = app.dataframe[0].value.iloc[0]
    assert (row["study"], row["state"], row["trials"]) == ("small", "FINISHED", 5)
    assert row["failed"] == failed_of(front) > 0


def test_the_chosen_study_shows_states_and_the_best_so_far(opened: Opened, front: Front):
    shown = metrics_of(opened("studies"))
    assert (shown["trials"], shown["failed"]) == ("5", str(failed_of(front)))
    scores = [trial.scores for trial in front.trials if trial.feasible]
    assert shown["best output_tps"] == f"{max(one['output_tps'] for one in scores):.4g}"
    assert shown["best tpot_ms"] == f"{min(one['tpot_ms'] for one in scores):.4g}"


def test_a_running_study_says_what_runs_and_that_it_looks_again(
    opened: Opened, own_storage: str, front: Front
):
    store = Store(open_database(own_storage))
    study = store.study("small")
    store.set_study_state(study.id, "RUNNING")
    trial = store.start_trial(study.id, 5, {"precision.bits": 4}, worker="w1")
    store.keep_progress(study.id, {**NOW.to_json(), "time": "2026-11-30T00:00:00+00:00"})
    app = opened("studies", own_storage)
    assert metrics_of(app)["running"] == "1"
    said = "trial 5: evaluating quality 3/40 (12 s) · left: trial 30 s, study 11 min"
    assert any(said in one.value for one in app.markdown)
    assert app.dataframe[1].value["trial"].tolist() == [5]
    assert any("looked at again every" in one.value for one in app.caption)
    store.finish_trial(trial, TrialOutcome("FAILED", "crash", "it fell"))
    store.set_study_state(study.id, "FINISHED")
    store.database.close()
    app.run()
    assert not app.exception
    assert metrics_of(app)["failed"] == str(failed_of(front) + 1)
    assert not any("looked at again" in one.value for one in app.caption)
    assert not any("evaluating" in one.value for one in app.markdown)


def test_new_trials_do_not_move_what_was_chosen(opened: Opened, own_storage: str):
    store = Store(open_database(own_storage))
    study = store.study("small")
    store.set_study_state(study.id, "RUNNING")
    app = opened("front", own_storage)
    app.selectbox(key="trial-small").set_value(0).run()
    app.selectbox(key="y").set_value("tpot_ms").run()
    store.start_trial(study.id, 5, {"precision.bits": 4})
    store.database.close()
    app.run()
    assert not app.exception
    assert app.selectbox(key="trial-small").value == 0
    assert app.selectbox(key="y").value == "tpot_ms"
