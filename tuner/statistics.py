"""Intervals of confirmed figures and of paired ratios; see engine.contract.statistics."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from engine.contract.report import Metric
from engine.contract.statistics import WIDEST, mean_metric, quantile


def confirmed_interval(confirming: Sequence[float], every: Sequence[float], unit: str) -> Metric:
    """The mean of the confirming values. Its bounds come from the spread of all values, which
    include the confirming ones, around the mean of either part; positive values spread by
    factors."""
    mean, count = statistics.fmean(confirming), len(confirming)
    positive = min(every) > 0
    others = list(every)
    for value in confirming:
        others.remove(value)
    squares, degrees = 0.0, 0
    for part in (confirming, others):
        if len(part) > 1:
            scaled = [math.log(value) for value in part] if positive else part
            squares += statistics.variance(scaled) * (len(part) - 1)
            degrees += len(part) - 1
    if degrees < 1:
        return Metric(mean, mean, mean, count, unit)
    half = quantile(degrees) * math.sqrt(squares / degrees / count)
    if not positive:
        return Metric(mean, mean - half, mean + half, count, unit)
    factor = math.exp(min(half, WIDEST))
    return Metric(mean, mean / factor, mean * factor, count, unit)


def paired_ratio(values: Sequence[float], to: Sequence[float]) -> Metric | None:
    """values / to, round by round, with the interval of the ratios; None without common rounds."""
    ratios = [a / b for a, b in zip(values, to, strict=False) if b]
    return mean_metric(ratios, "ratio") if ratios else None
