"""Intervals against figures worked out elsewhere."""

import math

import pytest

from tuner.statistics import half_width, interval, paired_ratio, relative_half_width


def test_the_interval_of_three_values_uses_students_t():
    metric = interval([9.0, 10.0, 11.0], "ms")
    assert (metric.value, metric.n, metric.unit) == (10.0, 3, "ms")
    assert metric.high - metric.value == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)


def test_one_value_has_no_interval():
    metric = interval([5.0], "ms")
    assert metric.low == metric.high == 5.0
    assert relative_half_width([5.0]) == math.inf


def test_more_samples_narrow_the_interval():
    assert half_width([9.0, 11.0] * 20) < half_width([9.0, 11.0] * 2)


def test_ratios_are_paired_by_round():
    ratio = paired_ratio([2.0, 4.0, 8.0], [1.0, 2.0, 4.0])
    assert ratio is not None
    assert ratio.low == ratio.high == 2.0


def test_no_common_round_gives_no_ratio():
    assert paired_ratio([], [1.0]) is None
