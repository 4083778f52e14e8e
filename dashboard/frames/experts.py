"""Frames about experts, one row a layer: activations, hit rates, prefetch precision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from engine.contract.report import ExpertUse
from tuner.formatting import format_metric
from tuner.store.snapshots import TrialSnapshot

FIGURES = (
    "expert_hit_rate",
    "expert_hit_rate.prefill",
    "oracle_hit_rate",
    "prefetch_precision",
    "prefetch_recall",
    "prefetch_in_time",
    "resident_fraction",
)


def activations_frame(use: ExpertUse) -> pd.DataFrame:
    """Frame [layer, expert] of the fraction of a layer's choices that fell on each expert."""
    counts = np.array(use.activations, dtype=float)
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    return pd.DataFrame(counts / totals)


def layers_frame(use: ExpertUse) -> pd.DataFrame:
    """Columns: layer, hit rate and prefetch precision (None without look-ups or predictions), the
    numbers of look-ups and predictions behind them, and the fraction of the four most chosen
    experts."""
    busiest = [sum(sorted(row)[-4:]) / max(1, sum(row)) for row in use.activations]
    return pd.DataFrame(
        {
            "layer": range(len(use.hits)),
            "hit rate": _fractions(
                use.hits, [a + b for a, b in zip(use.hits, use.misses, strict=True)]
            ),
            "look-ups": [a + b for a, b in zip(use.hits, use.misses, strict=True)],
            "prefetch precision": _fractions(use.predicted_demanded, use.predicted),
            "predictions": use.predicted,
            "four busiest experts": busiest,
        }
    )


def rates_frame(trial: TrialSnapshot) -> pd.DataFrame:
    """A trial's expert metrics with intervals: columns metric, value."""
    rows = [(name, format_metric(trial.figures[name])) for name in FIGURES if name in trial.figures]
    return pd.DataFrame(rows, columns=["metric", "value"])


def _fractions(parts: Sequence[int], wholes: Sequence[int]) -> list[float | None]:
    return [part / whole if whole else None for part, whole in zip(parts, wholes, strict=True)]
