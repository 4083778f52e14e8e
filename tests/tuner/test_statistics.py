"""Intervals against figures worked out elsewhere."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

from engine.contract.statistics import mean_metric, quantile, relative_half_width
from tuner.deployment.compare import _ratio
from tuner.deployment.document import MeasuredMetric
from tuner.statistics import confirmed_interval, paired_ratio


def test_the_interval_of_three_values_uses_students_t():
    metric = mean_metric([9.0, 10.0, 11.0], "ms", signed=True)
    assert (metric.value, metric.n, metric.unit) == (10.0, 3, "ms")
    assert metric.high - metric.value == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)


def test_positive_figures_scatter_by_factors_and_no_bound_is_negative():
    metric = mean_metric([0.5, 20.0], "tok/s")
    assert 0 < metric.low < metric.value < metric.high
    assert metric.high / metric.value == pytest.approx(metric.value / metric.low)
    logs = statistics.stdev([math.log(0.5), math.log(20.0)])
    assert math.log(metric.high / metric.value) == pytest.approx(12.706 * logs / 2**0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.706), (22, 2.074), (30, 2.042), (math.inf, 1.960)]
)
def test_students_t_is_that_of_the_tables(degrees: float, expected: float):
    assert quantile(degrees) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("count", range(2, 61))
@pytest.mark.parametrize("least", [1.0, -1.0])
def test_engine_and_tuner_give_equal_intervals_of_any_number_of_repeats(count: int, least: float):
    """A table that ended at 30 and rounded degrees gave 22 to 31 repeats two intervals."""
    values = [least + (7 * number % 13) / 5 for number in range(count)]
    measured = mean_metric(values, "ms")
    confirmed = confirmed_interval(values, values, "ms")
    assert (confirmed.low, confirmed.high) == pytest.approx((measured.low, measured.high))
    exact = float(student.ppf(0.975, count - 1))
    scaled = [math.log(value) for value in values] if least > 0 else values
    half = exact * statistics.stdev(scaled) / math.sqrt(count)
    mean = statistics.fmean(values)
    assert measured.high == pytest.approx(mean * math.exp(half) if least > 0 else mean + half)


def test_figures_of_all_sizes_have_bounds_that_are_numbers():
    values = [1e-300, 1e90]
    for found in (mean_metric(values, "s"), confirmed_interval(values, values, "s")):
        assert 0 <= found.low <= found.value <= found.high < math.inf


def test_one_value_has_no_interval():
    metric = mean_metric([5.0], "ms")
    assert metric.low == metric.high == 5.0
    assert relative_half_width([5.0]) == math.inf


def test_more_samples_narrow_the_interval():
    assert relative_half_width([9.0, 11.0] * 20) < relative_half_width([9.0, 11.0] * 2)


def test_ratios_are_paired_by_round():
    ratio = paired_ratio([2.0, 4.0, 8.0], [1.0, 2.0, 4.0])
    assert ratio is not None
    assert ratio.low == ratio.high == 2.0


def test_no_common_round_gives_no_ratio():
    assert paired_ratio([], [1.0]) is None


@given(st.lists(st.just(0.0) | st.floats(1e-3, 1e3), min_size=2, max_size=8))
def test_no_bound_of_a_figure_that_is_never_negative_is_negative(values: list[float]):
    found = mean_metric(values, "ms")
    assert 0 <= found.low <= found.value * (1 + 1e-9) <= found.high * (1 + 1e-9)


def test_a_difference_may_have_a_negative_bound():
    assert mean_metric([0.0, 1.0], "x", signed=True).low < 0


@pytest.mark.parametrize("low", [0.0, 0.01, 0.05])
def test_no_ratio_of_two_figures_has_a_negative_bound(low: float):
    # a stall of 0.052 ms with the interval 0 to 0.14 was shown as 1.000 [-1.516, 3.516]
    figure = MeasuredMetric(value=0.052, low=low, high=0.14, n=2, unit="ms")
    ratio = _ratio(figure, figure)
    assert ratio is not None
    assert 0 < ratio.low < 1 < ratio.high
    assert ratio.low * ratio.high == pytest.approx(1)
