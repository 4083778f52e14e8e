"""Few of very many trials: the front of the few is the front of all."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as some
from hypothesis.extra.numpy import arrays

from dashboard.thinning import thinned
from tuner.definition.objectives import CONSTRAINTS, SIGNS
from tuner.pareto import dominance
from tuner.pareto.dominance import non_dominated
from tuner.store.points import Points

OBJECTIVES = ("output_tps", "tpot_ms")


def points_of(values: np.ndarray) -> Points:
    count = len(values)
    return Points(
        numbers=np.arange(count) * 2,
        configurations=np.arange(count),
        means={name: values[:, place] for place, name in enumerate(OBJECTIVES)},
        counts=dict.fromkeys(OBJECTIVES, np.full(count, 3)),
        deviations=dict.fromkeys(OBJECTIVES, np.full(count, 0.02)),
        violations={name: np.zeros(count) for name in CONSTRAINTS},
    )


VALUES = arrays(
    float, some.tuples(some.integers(11, 60), some.just(2)), elements=some.integers(1, 99)
)


@given(VALUES)
@settings(deadline=None)
def test_every_member_of_the_front_is_drawn(values: np.ndarray):
    signs = [SIGNS[name] for name in OBJECTIVES]
    front = dominance.front(values.tolist(), signs)
    chosen = thinned(points_of(values), OBJECTIVES, np.ones(len(values), bool), most=10)
    assert {index * 2 for index in front} <= set(chosen)


@given(VALUES)
@settings(deadline=None)
def test_non_dominated_points_are_those_that_no_other_dominates(values: np.ndarray):
    kept = non_dominated(values)
    for place, point in enumerate(values):
        beaten = any(dominance.dominates(other, point, (1, 1)) for other in values)
        assert kept[place] == (not beaten)


def test_what_is_outside_the_limits_is_no_front():
    values = np.column_stack([np.arange(1.0, 51.0), np.full(50, 10.0)])
    kept = np.arange(50) != 49
    chosen = thinned(points_of(values), OBJECTIVES, kept, most=5)
    assert 48 * 2 in chosen


def test_the_newest_fill_what_is_left():
    values = np.column_stack([np.arange(100.0, 0.0, -1.0), np.arange(1.0, 101.0)])
    chosen = thinned(points_of(values), OBJECTIVES, np.ones(100, bool), most=50)
    assert 0 in chosen
    assert chosen[-5:] == (190, 192, 194, 196, 198)
    assert len(chosen) == 50


def test_few_are_drawn_all():
    values = np.ones((4, 2))
    assert thinned(points_of(values), OBJECTIVES, np.zeros(4, bool)) == (0, 2, 4, 6)
