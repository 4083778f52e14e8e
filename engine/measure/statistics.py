"""Means with 95 % intervals over repeats, and percentiles over pooled events."""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.contract.report import Metric

# Two-sided 95 % quantiles of Student's t by degrees of freedom (standard table).
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179,
        2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)  # fmt: skip
_T95_LARGE = 1.96
_NEEDED_EVENTS = {50: 1, 90: 64, 95: 130, 99: 662}


def mean_metric(values: Sequence[float], unit: str) -> Metric:
    """Mean of repeats with its t-interval; low = high = mean where there is one repeat."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Metric(mean, mean, mean, 1, unit)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    quantile = _T95[n - 2] if n - 2 < len(_T95) else _T95_LARGE
    half = quantile * math.sqrt(variance / n)
    return Metric(mean, mean - half, mean + half, n, unit)


def percentile_metric(values: Sequence[float], percent: int, unit: str) -> Metric:
    """A percentile (nearest rank) with its order-statistic interval; marked an estimate where
    there are too few events for it."""
    ordered = sorted(values)
    n = len(ordered)
    fraction = percent / 100
    spread = 1.96 * math.sqrt(n * fraction * (1 - fraction))
    return Metric(
        ordered[_rank(n * fraction, n)],
        ordered[_rank(n * fraction - spread, n)],
        ordered[_rank(n * fraction + spread, n)],
        n,
        unit,
        estimate=n < _NEEDED_EVENTS.get(percent, 1),
    )


def _rank(position: float, n: int) -> int:
    return min(n - 1, max(0, math.ceil(position) - 1))
