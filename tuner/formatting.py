"""Formats figures as text, the same for terminals and reports."""

from __future__ import annotations

from typing import Any

from engine.contract.report import Metric

INTERVAL_REPEATS = 3  # the fewest whose interval is printed


def format_count(count: int, noun: str) -> str:
    """`1 trial`, `3 trials`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def format_cell(cell: Any) -> str:
    """Formats floats with four significant digits, None as a dash."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return format_number(cell)
    return str(cell)


def format_number(value: float, digits: int = 4) -> str:
    """Formats with so many significant digits; never with an exponent for large numbers."""
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e+" in text else text


def format_metric(metric: Metric | None) -> str:
    """Formats as value ± half of the 95 % interval, if there are repeats enough for one."""
    if metric is None:
        return "-"
    if not has_interval(metric.n):
        return format_number(metric.value)
    half = (metric.high - metric.low) / 2
    return f"{format_number(metric.value)} ± {format_number(half, 2)}"


def has_interval(repeats: int) -> bool:
    """Whether an interval of so many repeats is worth stating: two give one that says nothing."""
    return repeats >= INTERVAL_REPEATS


def format_duration(seconds: float) -> str:
    """Formats seconds for users: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
