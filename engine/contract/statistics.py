"""Means with 95 % intervals, for engine and tuner alike.

Quantities that are always positive (speeds, times, ratios) scatter by factors, so their intervals
are computed on the logarithm: a bound is never negative. Student's t comes from scipy, which is
imported on first use because that takes a third of a second.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence

from engine.contract.report import Metric

CONFIDENCE = 0.95
WIDEST = 300.0  # half of an interval of logarithms; e to its power is still a number


@functools.cache
def quantile(degrees: float) -> float:
    """The quantile of Student's t for a two-sided 95 % interval."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))


def mean_metric(values: Sequence[float], unit: str, *, signed: bool = False) -> Metric:
    """The mean with its interval; for a single value low = high = value.

    signed: the quantity may be negative (a difference), so its scatter is additive. So is that of
    values of which some are 0, whose lower bound is at least 0.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Metric(mean, mean, mean, len(values), unit)
    if min(values) > 0 and not signed:
        factor = math.exp(min(relative_half_width(values), WIDEST))
        return Metric(mean, mean / factor, mean * factor, len(values), unit)
    half = _half_width(values)
    low = mean - half if signed or min(values) < 0 else max(0.0, mean - half)
    return Metric(mean, low, mean + half, len(values), unit)


def relative_half_width(values: Sequence[float]) -> float:
    """Half of the interval over the mean (for positive values: half of the logarithm's
    interval); infinite for a single value or a mean of zero."""
    mean = statistics.fmean(values)
    if len(values) < 2 or mean == 0:
        return math.inf
    if min(values) > 0:
        return _half_width([math.log(value) for value in values])
    return _half_width(values) / abs(mean)


def _half_width(values: Sequence[float]) -> float:
    return quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
