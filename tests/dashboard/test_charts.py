"""Charts and frames: from a store's snapshots to what Plotly gets."""

import pandas as pd
import pytest

from dashboard import charts, frames
from tuner.front import Front, front_of
from tuner.store.database import open_read_only
from tuner.store.repository import Store


@pytest.fixture
def front(storage: str) -> Front:
    store = Store(open_read_only(storage))
    study = store.study("small")
    return front_of(study, store.trials(study))


def test_every_measured_trial_is_one_point_with_its_number(front: Front):
    figure = charts.front_figure(frames.points_frame(front), "output_tps", "quality")
    numbers = sorted(point[0] for trace in figure.data for point in trace.customdata)
    assert numbers == [t.number for t in front.trials if t.state == "COMPLETE"]


def test_the_recommended_point_has_its_own_marker(front: Front):
    figure = charts.front_figure(frames.points_frame(front), "output_tps", "tpot_ms")
    [knee] = [trace for trace in figure.data if trace.name == "recommended"]
    assert knee.marker.symbol == "star"
    assert knee.customdata[0][0] == front.knee.number


def test_points_carry_their_intervals(front: Front):
    figure = charts.front_figure(frames.points_frame(front), "output_tps", "quality")
    assert all(width >= 0 for trace in figure.data for width in trace.error_x.array)
    assert any(width > 0 for trace in figure.data for width in trace.error_x.array)


def test_an_empty_study_draws_an_empty_chart(front: Front):
    empty = Front(front.objectives, (), ())
    assert len(charts.front_figure(frames.points_frame(empty), "output_tps", "quality").data) == 0


def test_the_split_stacks_every_part_of_a_token(front: Front):
    split = frames.split_frame(front.knee)
    assert {"compute", "disk_wait", "other"} <= set(split["part"])
    figure = charts.split_figure(split)
    assert figure.layout.barmode == "stack"
    assert sum(trace.x[0] for trace in figure.data) == pytest.approx(split["ms"].sum())


def test_failures_are_counted_by_class(front: Front):
    failures = frames.failures_frame(front.trials)
    assert dict(failures.itertuples(index=False, name=None))["crash"] >= 1
    assert list(charts.failures_figure(failures).data[0].y) == failures["failure"].tolist()


@pytest.mark.parametrize("customdata", [[3], {"0": 3}, 3])
def test_a_selection_names_its_trial_however_it_arrives(customdata: object):
    assert charts.selected_number({"points": [{"customdata": customdata}]}) == 3


@pytest.mark.parametrize("selection", [None, {}, {"points": []}, {"points": [{}]}])
def test_no_selection_names_none(selection: object):
    assert charts.selected_number(selection) is None


def test_a_curve_has_one_point_a_budget():
    frame = pd.DataFrame({"budget (GB)": [4.0, 8.0], "fastest tokens/s": [10.0, 14.0]})
    (line,) = charts.curve_figure(frame).data
    assert (tuple(line.x), tuple(line.y)) == ((4.0, 8.0), (10.0, 14.0))
