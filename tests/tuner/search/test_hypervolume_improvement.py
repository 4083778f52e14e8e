"""Improvements by slices equal the difference of two hypervolumes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tuner.pareto import dominance
from tuner.pareto.dominance import non_dominated
from tuner.search.hypervolume_improvement import BoxDecomposition

unit = st.floats(-0.2, 1.0, allow_nan=False)


@given(st.integers(1, 3), st.data())
def test_it_is_what_the_hypervolume_grows_by(objectives: int, data: st.DataObject):
    point = st.tuples(*[unit] * objectives)
    front = data.draw(st.lists(point, max_size=6))
    points = data.draw(st.lists(point, min_size=1, max_size=4))
    gains = np.array(front, dtype=float).reshape(len(front), objectives)
    found = BoxDecomposition(gains).improvement(np.array(points))
    reference, signs = [0.0] * objectives, [1] * objectives
    before = dominance.hypervolume(front, reference, signs)
    for added, point_ in zip(found, points, strict=True):
        grown = dominance.hypervolume([*front, point_], reference, signs)
        assert abs(added - (grown - before)) < 1e-9


@given(st.lists(st.tuples(unit, unit, unit), min_size=1, max_size=12))
def test_the_same_points_are_non_dominated(points: list[tuple[float, ...]]):
    kept = non_dominated(np.array(points))
    for index, point in enumerate(points):
        beaten = any(dominance.dominates(other, point, [1, 1, 1]) for other in points)
        assert kept[index] == (not beaten)
