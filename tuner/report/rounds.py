"""Figures of a row over its rounds, for formulas that pair them round by round."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from engine.report import Metric
from tuner.bench import RowResult
from tuner.statistics import interval

PART = "time_ms_per_token."
WAITS = (f"{PART}transfer_wait", f"{PART}disk_wait")
POLICY = f"{PART}policy"
_FROM_DISK = 0.99


def mean(row: RowResult, name: str) -> float | None:
    """The mean of a metric; None where it was not measured."""
    values = row.values.get(name)
    return statistics.fmean(values) if values else None


def combined(formula: Callable[..., float], unit: str, *series: list[float]) -> Metric | None:
    """formula(a, b, ...) round by round, with its interval; None without a common round, or
    where it divides by zero."""
    try:
        found = [formula(*values) for values in zip(*series, strict=False)]
    except ZeroDivisionError:
        return None
    return interval(found, unit) if found else None


def series(row: RowResult, name: str) -> list[float]:
    """One value a round; empty where it was not measured."""
    return list(row.values.get(name, ()))


def busy_ms(row: RowResult) -> list[float]:
    """Of each round: the parts of a token's time that are no waits."""
    parts = [
        values for name, values in row.values.items() if name.startswith(PART) and name not in WAITS
    ]
    return [sum(values) for values in zip(*parts, strict=False)]


def least_read_ms(row: RowResult) -> list[float]:
    """Of each round: how long the disk needs for what even Belady's rule must load. Empty where
    that is not known (mixed sizes), or where another tier than the disk delivers."""
    moved, read = mean(row, "transfer_bytes_per_token"), mean(row, "disk_bytes_per_token")
    if moved and read is not None and read < _FROM_DISK * moved:
        return []
    pairs = zip(
        series(row, "oracle_bytes_per_token"), series(row, "read_bytes_per_s"), strict=False
    )
    return [least / rate * 1e3 for least, rate in pairs if rate]
