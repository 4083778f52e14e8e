"""The front's charts: from a front to what Plotly gets."""

from dataclasses import replace

import pytest

from dashboard.charts.front import (
    STYLE,
    front_figure,
    front_figure_3d,
    selected_number,
    split_figure,
)
from dashboard.frames.front import INSIDE, KNEE, NEAR, points_frame, split_frame
from tuner.pareto.front import Front


def test_every_measured_trial_is_one_point_with_its_number(front: Front):
    figure = front_figure(points_frame(front, {}), "output_tps", "quality")
    numbers = sorted(point[0] for trace in figure.data for point in trace.customdata)
    assert numbers == [t.number for t in front.trials if t.state == "COMPLETE"]


def test_three_objectives_hold_the_same_points_with_intervals_on_every_axis(front: Front):
    figure = front_figure_3d(points_frame(front, {}), "output_tps", "tpot_ms", "quality")
    numbers = sorted(point[0] for trace in figure.data for point in trace.customdata)
    assert numbers == [t.number for t in front.trials if t.state == "COMPLETE"]
    assert all(trace.error_x.array and trace.error_z.array for trace in figure.data)


def test_the_recommended_point_has_its_own_marker(front: Front):
    figure = front_figure(points_frame(front, {}), "output_tps", "tpot_ms")
    [knee] = [trace for trace in figure.data if trace.name == KNEE]
    assert knee.marker.symbol == "star"
    assert knee.customdata[0][0] == front.knee.number


def test_no_two_kinds_share_a_symbol_or_a_colour():
    assert len({colour for colour, _, _ in STYLE.values()}) == len(STYLE)
    assert len({symbol for _, symbol, _ in STYLE.values()}) == len(STYLE)


def test_points_carry_their_intervals(front: Front):
    figure = front_figure(points_frame(front, {}), "output_tps", "quality")
    assert all(width >= 0 for trace in figure.data for width in trace.error_x.array)
    assert any(width > 0 for trace in figure.data for width in trace.error_x.array)


def test_a_likely_trial_beside_the_front_is_told_from_a_beaten_one(front: Front):
    front = replace(front, members=front.members[:1])
    members = {member.number for member in front.members}
    beside = [t.number for t in front.trials if t.feasible and t.number not in members]
    kinds = points_frame(front, {beside[0]: 0.4}).set_index("number")["kind"]
    assert kinds[beside[0]] == NEAR
    assert points_frame(front, {}).set_index("number")["kind"][beside[0]] == INSIDE


def test_an_empty_study_draws_an_empty_chart(front: Front):
    empty = Front(front.objectives, (), ())
    assert len(front_figure(points_frame(empty, {}), "output_tps", "quality").data) == 0


def test_the_split_stacks_every_part_of_a_token(front: Front):
    split = split_frame(front.knee)
    assert {"compute", "disk_wait", "other"} <= set(split["part"])
    figure = split_figure(split)
    assert figure.layout.barmode == "stack"
    assert sum(trace.x[0] for trace in figure.data) == pytest.approx(split["ms"].sum())
    looks = [(trace.marker.color, trace.marker.pattern.shape) for trace in figure.data]
    assert len(set(looks)) == len(looks)


@pytest.mark.parametrize("customdata", [[3, 0.5], {"0": 3}, 3])
def test_a_selection_names_its_trial_however_it_arrives(customdata: object):
    assert selected_number({"points": [{"customdata": customdata}]}) == 3


@pytest.mark.parametrize("selection", [None, {}, {"points": []}, {"points": [{}]}])
def test_no_selection_names_none(selection: object):
    assert selected_number(selection) is None
