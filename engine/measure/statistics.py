"""Percentiles over pooled events, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.contract.report import Metric
from engine.contract.statistics import quantile

_NEEDED_EVENTS = {50: 1, 90: 64, 95: 130, 99: 662}


def percentile_metric(values: Sequence[float], percent: int, unit: str) -> Metric:
    """A percentile (nearest rank) with its order-statistic interval; marked as an estimate if
    there are too few events for it."""
    ordered = sorted(values)
    n = len(ordered)
    fraction = percent / 100
    spread = quantile(math.inf) * math.sqrt(n * fraction * (1 - fraction))
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
