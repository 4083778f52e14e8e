"""A row's metrics over its rounds, for formulas that pair them round by round."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from engine.contract.report import Metric
from engine.contract.statistics import mean_metric
from tuner.bench.run import RowResult

PART = "time_ms_per_token."
PREFILL_PART = "prefill_ms_per_token."
POLICY = f"{PART}policy"
_ONE_TIER = 0.99


def mean(row: RowResult, name: str) -> float | None:
    """The mean of a metric; None if it was not measured."""
    values = row.values.get(name)
    return statistics.fmean(values) if values else None


def combined(formula: Callable[..., float], unit: str, *series: list[float]) -> Metric | None:
    """formula(a, b, ...) round by round, with its interval; None without a common round, or if it
    divides by zero."""
    try:
        found = [formula(*values) for values in zip(*series, strict=False)]
    except ZeroDivisionError:
        return None
    return mean_metric(found, unit) if found else None


def series(row: RowResult, name: str) -> list[float]:
    """One value per round; empty if the metric was not measured."""
    return list(row.values.get(name, ()))


def busy_ms(row: RowResult, part: str = PART) -> list[float]:
    """The time per token in each round without the parts that are waits. part: PART, or
    PREFILL_PART for the prompts."""
    waits = (f"{part}transfer_wait", f"{part}disk_wait")
    parts = [
        values for name, values in row.values.items() if name.startswith(part) and name not in waits
    ]
    return [sum(values) for values in zip(*parts, strict=False)]


def least_read_ms(row: RowResult, name: str = "oracle_bytes_per_token") -> list[float]:
    """The time in each round that the disk (or the link from a host tier that holds all experts)
    needs to read what even Belady's rule must load. Empty if unknown: mixed sizes, or two tiers."""
    moved, read = mean(row, "transfer_bytes_per_token"), mean(row, "disk_bytes_per_token")
    if moved and read is not None and (1 - _ONE_TIER) * moved < read < _ONE_TIER * moved:
        return []
    pairs = zip(series(row, name), series(row, "read_bytes_per_s"), strict=False)
    return [least / rate * 1e3 for least, rate in pairs if rate]
