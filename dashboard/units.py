"""Figures as people read them: three digits, SI units, never an exponent.

In: a value and the unit that the store keeps with it. Out: text.
"""

from __future__ import annotations

from collections.abc import Mapping

from engine.contract.report import Metric
from engine.types import format_bytes
from tuner.formatting import has_interval

# What objectives are called where a newcomer reads them, and the unit that the store keeps.
WORDS = {
    "output_tps": "throughput",
    "tpot_ms": "time per token",
    "quality": "quality",
    "ttft_ms": "time to the first token",
}
UNITS = {"output_tps": "tokens/s", "tpot_ms": "ms", "ttft_ms": "ms", "quality": "ratio"}
# Titles of table columns: a name in words and the unit of the numbers below it.
TITLES: Mapping[str, str] = {
    "output_tps": "throughput, tokens/s",
    "tpot_ms": "time per token, ms",
    "ttft_ms": "time to the first token, ms",
    "quality": "quality (16 bits: 1)",
    "figures": "measured",
}
_LENGTHS = (("h", 3.6e6, 5.4e6), ("min", 6e4, 9e4), ("s", 1e3, 1e3), ("ms", 1.0, 0.1))


def word(name: str) -> str:
    """The name of an objective in words; another metric's own name."""
    return WORDS.get(name, name)


def figure(value: float, unit: str) -> str:
    """`414 tokens/s`, `1.04 ms`, `66 s`, `12.2 MB`, `0.9992`."""
    if unit == "ms":
        return _length(value)
    if unit in ("bytes", "bytes/s"):
        return format_bytes(value) + unit.removeprefix("bytes")
    if unit in ("ratio", "fraction", ""):
        return f"{value:.4f}".rstrip("0").rstrip(".") if abs(value) < 1000 else digits(value)
    return f"{digits(value)} {unit}"


def objective(value: float, name: str) -> str:
    """The value of an objective with its unit."""
    return figure(value, UNITS.get(name, ""))


def interval(metric: Metric, with_unit: bool = True) -> str:
    """`367 to 467 tokens/s`; empty where there are too few repeats for one. with_unit: else only
    where the two ends differ in it, or where it is not the value's."""
    if not has_interval(metric.n):
        return ""
    low, high = figure(metric.low, metric.unit), figure(metric.high, metric.unit)
    unit = high.partition(" ")[2]
    if not unit or not low.endswith(f" {unit}"):
        return f"{low} to {high}"
    low = low.removesuffix(f" {unit}")
    shared = not with_unit and figure(metric.value, metric.unit).endswith(f" {unit}")
    return f"{low} to {high.removesuffix(f' {unit}') if shared else high}"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    return _length(seconds * 1e3)


def digits(value: float) -> str:
    """Three significant digits, all digits before the point: 0.0123, 41.2, 666,032."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    places = 2
    while abs(value) < 10 ** (2 - places) and places < 9:
        places += 1
    if abs(value) >= 10:
        places = 1
    return f"{value:.{places}f}".rstrip("0").rstrip(".")


def _length(value_ms: float) -> str:
    for unit, scale, least in _LENGTHS:
        if abs(value_ms) >= least:
            return f"{digits(value_ms / scale)} {unit}"
    return "0 ms" if value_ms == 0 else f"{digits(value_ms * 1e3)} µs"
