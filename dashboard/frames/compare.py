"""Frames that compare two configs."""

from __future__ import annotations

import pandas as pd

from tuner.deployment.compare import Comparison, Figure
from tuner.deployment.document import MeasuredMetric
from tuner.formatting import has_interval

DIFFERS, ALIKE, UNKNOWN = "differs", "not told apart", "no interval"


def settings_frame(found: Comparison) -> pd.DataFrame:
    """One row a setting that differs."""
    rows = [(path, str(one), str(two)) for path, (one, two) in found.settings.items()]
    return pd.DataFrame(rows, columns=["setting", "first", "second"])


def figures_frame(found: Comparison) -> pd.DataFrame:
    """One row a metric that both have: values and ratio with intervals, and the verdict."""
    return pd.DataFrame(
        [
            {
                "metric": figure.metric,
                "unit": figure.first.unit,
                "first": _band(figure.first),
                "second": _band(figure.second),
                "second / first": figure.ratio.value if figure.ratio else None,
                "low": figure.ratio.low if figure.ratio else None,
                "high": figure.ratio.high if figure.ratio else None,
                "verdict": _verdict(figure),
            }
            for figure in found.figures
        ]
    )


def _verdict(figure: Figure) -> str:
    if figure.ratio is None:
        return UNKNOWN
    return DIFFERS if figure.differs else ALIKE


def _band(metric: MeasuredMetric) -> str:
    if not has_interval(metric.n):
        return f"{metric.value:.4g}"
    return f"{metric.value:.4g} [{metric.low:.4g}, {metric.high:.4g}]"
