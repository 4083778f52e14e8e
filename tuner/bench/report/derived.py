"""Metrics derived from a row's own metrics, or from the fastest resident row beside it.

regret: Belady's hit rate less the row's own (negative where prefetching does better than any
cache); policy_fraction: fraction of a token's time spent on policy decisions; efficiency_ratio: the
shortest time that this budget allows over the time taken, where the shortest is the fastest
resident row's at equal bits, or that of reading what even Belady's rule must load, whichever takes
longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.contract.report import Metric
from tuner.bench.report.rounds import POLICY, combined, least_read_ms, mean, series
from tuner.bench.run import RowResult

_EQUAL = (
    ("precision", "bits"), ("precision", "prequantized"), ("batch", "count"), ("batch", "size"),
    ("kernel", "name"), ("compute", "dtype"), ("device", "name"),
)  # fmt: skip


def derived_metrics(results: Sequence[RowResult]) -> list[dict[str, Metric]]:
    """The derived metrics of each row, by name; what cannot be derived is left out."""
    return [_derive(row, results) for row in results]


def fastest_resident(row: RowResult, results: Sequence[RowResult]) -> RowResult | None:
    """The fastest row that held all experts of the same model at equal bits, kernels and batch."""
    held = [
        other
        for other in results
        if _comparable(other) == _comparable(row)
        and (mean(other, "resident_fraction") or 0.0) >= 1.0
        and mean(other, "wall_ms_per_token")
    ]
    return min(held, key=lambda other: mean(other, "wall_ms_per_token") or 0.0, default=None)


def _derive(row: RowResult, results: Sequence[RowResult]) -> dict[str, Metric]:
    wall = series(row, "wall_ms_per_token")
    best, hits = series(row, "oracle_hit_rate"), series(row, "expert_hit_rate")
    found = {
        "regret": combined(lambda oracle, own: oracle - own, "fraction", best, hits),
        "policy_fraction": combined(
            lambda ms, all_ms: ms / all_ms, "fraction", series(row, POLICY), wall
        ),
    }
    resident = fastest_resident(row, results) if row.model is not None else None
    if resident is not None and resident is not row:
        found["efficiency_ratio"] = combined(
            lambda held, read, taken: max(held, read) / taken,
            "fraction",
            series(resident, "wall_ms_per_token"),
            least_read_ms(row),
            wall,
        )
    return {name: metric for name, metric in found.items() if metric is not None}


def _comparable(row: RowResult) -> tuple[Any, ...]:
    return (row.model, *(row.config.get(section, {}).get(name) for section, name in _EQUAL))
