"""A trial has one figure, wherever it is read."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from dashboard.frames.front import members_frame, metrics_frame, points_frame
from dashboard.frames.trials import trials_frame
from tests.fakes.study import make_study, tune_in
from tuner.deployment.document import MeasuredMetric, parse_deployment
from tuner.formatting import format_metric
from tuner.pareto.front import Front
from tuner.pareto.probability import front_of, on_front
from tuner.service.events import _trial
from tuner.store.database import open_read_only
from tuner.store.overview import Overview
from tuner.store.repository import Store
from tuner.store.service import ended_trials
from tuner.store.snapshots import TrialSnapshot

NAME = "output_tps"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished, confirmed study."""
    folder = tmp_path_factory.mktemp("figure")
    make_study(folder)
    return folder


@pytest.fixture(scope="module")
def front(made: Path) -> Front:
    store = Store(open_read_only(f"sqlite:///{made}/data/expertune/expertune.db"))
    study = store.study("small")
    return front_of(study, store.trials(study))


def cell(printed: str, title: str, trial: TrialSnapshot, column: int) -> str:
    """A cell of a trial's row in the table under this title."""
    table = printed[printed.index(title) :]
    row = re.search(rf"^│ +{trial.number}(?: \*)? │.*$", table, re.MULTILINE)
    assert row is not None
    return row.group().split("│")[column].strip()


def row_of(frame: pd.DataFrame, key: str, trial: TrialSnapshot) -> pd.Series:
    return frame[frame[key] == trial.number].iloc[0]


def test_confirmation_moved_the_figure_so_that_the_outputs_could_differ(front: Front):
    knee = front.knee
    assert knee.source == "confirmed"
    assert knee.metrics[NAME].value != knee.confirmed[NAME].value
    assert any(trial.source == "searched" for trial in front.trials if trial.scores)


def test_every_output_states_the_same_figure_of_a_trial(made: Path, front: Front):
    printed = tune_in(made, "show", "small")
    shown = json.loads(tune_in(made, "show", "small", "--json"))
    probability = on_front(front)
    store = Store(open_read_only(f"sqlite:///{made}/data/expertune/expertune.db"))
    study = store.study("small")
    points = Overview(store.database).points(study, (NAME,))
    events = {one.number: _trial(one) for one in ended_trials(store.database, study.id, 0)}
    for trial in front.members:
        figure, text = trial.figures[NAME], format_metric(trial.figures[NAME])
        document = next(one for one in shown["front"] if one["number"] == trial.number)
        exported = parse_deployment(tune_in(made, "export", "small", "--pick", str(trial.number)))
        measured = exported.measured[NAME]
        assert isinstance(measured, MeasuredMetric)
        stated = [
            trial.scores[NAME],
            document["scores"][NAME],
            document["metrics"][NAME]["value"],
            measured.value,
            events[trial.number]["scores"][NAME],
            points.means[NAME][points.numbers.tolist().index(trial.number)],
            row_of(points_frame(front, probability), "number", trial)[NAME],
            metrics_frame(trial).set_index("metric").loc[NAME, "value"],
        ]
        assert stated == pytest.approx([figure.value] * len(stated), rel=1e-12)
        for printed_text in (
            cell(printed, "Pareto front", trial, 2),
            cell(printed, "Trials", trial, 3),
            row_of(members_frame(front, probability), "trial", trial)[NAME],
            row_of(trials_frame(front.trials, (NAME,)), "trial", trial)[NAME],
        ):
            assert printed_text == text
        sources = {
            document["source"],
            exported.provenance.source,
            events[trial.number]["source"],
            row_of(points_frame(front, probability), "number", trial)["figures"],
            row_of(trials_frame(front.trials, (NAME,)), "trial", trial)["figures"],
            cell(printed, "Pareto front", trial, 2 + len(front.objectives)),
        }
        assert sources == {trial.source}


def test_the_recommended_config_is_the_same_everywhere(made: Path, front: Front):
    shown = json.loads(tune_in(made, "show", "small", "--json"))
    written = parse_deployment((made / "expertune-small.yaml").read_text())
    frame = members_frame(front, on_front(front))
    starred = frame[frame[""] != ""]["trial"].tolist()
    assert starred == [shown["recommended"]] == [written.provenance.trial]
