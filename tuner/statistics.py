"""Means with 95 % intervals, and ratios pair by pair. Pure arithmetic on small lists."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from engine.contract.report import Metric

# Student's t, two-sided 95 %, by degrees of freedom; beyond the table the normal's 1.96 is close.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def interval(values: Sequence[float], unit: str) -> Metric:
    """The mean and its 95 % confidence bounds; one value has none, so low = high = value."""
    mean = statistics.fmean(values)
    half = half_width(values)
    return Metric(mean, mean - half, mean + half, len(values), unit)


def confirmed_interval(confirming: Sequence[float], every: Sequence[float], unit: str) -> Metric:
    """The mean of the confirming values; its bounds from the spread of all values, of which the
    confirming ones are a part, around the mean of either part."""
    mean, count = statistics.fmean(confirming), len(confirming)
    others = list(every)
    for value in confirming:
        others.remove(value)
    squares = sum((value - mean) ** 2 for value in confirming)
    degrees = count - 1
    if len(others) > 1:
        centre = statistics.fmean(others)
        squares += sum((value - centre) ** 2 for value in others)
        degrees += len(others) - 1
    if degrees < 1:
        return Metric(mean, mean, mean, count, unit)
    half = quantile(degrees) * math.sqrt(squares / degrees / count)
    return Metric(mean, mean - half, mean + half, count, unit)


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean, in the values' unit; 0 for one value."""
    if len(values) < 2:
        return 0.0
    return quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def relative_half_width(values: Sequence[float]) -> float:
    """half_width over the mean; infinite for a single value or a mean of zero."""
    mean = statistics.fmean(values)
    return math.inf if len(values) < 2 or mean == 0 else half_width(values) / abs(mean)


def paired_ratio(values: Sequence[float], to: Sequence[float]) -> Metric | None:
    """values / to, round by round, with the interval of the ratios; None without common rounds."""
    ratios = [a / b for a, b in zip(values, to, strict=False) if b]
    return interval(ratios, "ratio") if ratios else None


def quantile(degrees: int) -> float:
    """Student's t, two-sided 95 %."""
    return _T95[degrees - 1] if degrees <= len(_T95) else 1.96
