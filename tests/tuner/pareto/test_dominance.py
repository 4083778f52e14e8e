"""Fronts, hypervolume and knee, by their laws."""

import math

from hypothesis import given
from hypothesis import strategies as st

from tuner.pareto.dominance import dominates, front, hypervolume, knee

SIGNS = (1, -1, 1)
numbers = st.integers(min_value=0, max_value=20).map(float)
vectors = st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=25)


@given(vectors)
def test_nothing_on_the_front_is_dominated(points):
    kept = front(points, SIGNS)
    assert kept
    assert not any(dominates(a, points[i], SIGNS) for i in kept for a in points)


@given(vectors)
def test_what_is_left_out_is_dominated_or_a_twin(points):
    kept = [points[i] for i in front(points, SIGNS)]
    for point in points:
        assert point in kept or any(dominates(member, point, SIGNS) for member in kept)


@given(vectors, st.randoms())
def test_the_front_does_not_depend_on_the_order(points, random):
    shuffled = list(points)
    random.shuffle(shuffled)
    before = {points[i] for i in front(points, SIGNS)}
    assert {shuffled[i] for i in front(shuffled, SIGNS)} == before


@given(vectors, st.tuples(numbers, numbers, numbers))
def test_more_points_never_lower_the_hypervolume(points, extra):
    reference = (0.0, 20.0, 0.0)
    before = hypervolume(points, reference, SIGNS)
    assert hypervolume([*points, extra], reference, SIGNS) >= before - 1e-9


@given(vectors)
def test_the_front_alone_has_the_whole_hypervolume(points):
    reference = (0.0, 20.0, 0.0)
    kept = [points[i] for i in front(points, SIGNS)]
    whole = hypervolume(points, reference, SIGNS)
    assert math.isclose(hypervolume(kept, reference, SIGNS), whole, abs_tol=1e-9)


def test_hypervolume_of_two_boxes_counts_their_overlap_once():
    assert hypervolume([(2.0, 1.0), (1.0, 2.0)], (0.0, 0.0), (1, 1)) == 3.0


def test_hypervolume_follows_the_direction_of_each_objective():
    assert hypervolume([(2.0, 3.0)], (0.0, 5.0), (1, -1)) == 4.0


@given(vectors)
def test_the_knee_of_a_front_is_on_it(points):
    members = [points[i] for i in front(points, SIGNS)]
    assert 0 <= knee(members, SIGNS) < len(members)


def test_the_knee_is_the_compromise():
    assert knee([(10.0, 0.0), (8.0, 8.0), (0.0, 10.0)], (1, 1)) == 1


def test_a_difference_that_nobody_would_notice_does_not_decide_the_knee():
    slow_and_exact, fast = (7.3, 171.0, 0.9999), (14.8, 36.0, 0.9986)
    fastest, whole = (16.5, 116.0, 0.9986), (2.9, 211.0, 1.0)
    assert knee([fastest, fast, slow_and_exact, whole], SIGNS) == 1
    # a tenth of the quality is worth the whole span of the speeds
    assert knee([(14.8, 36.0, 0.90), (13.0, 40.0, 0.9999), (2.9, 211.0, 1.0)], SIGNS) == 1
