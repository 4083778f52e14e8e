"""The frame of a budget curve."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from tuner.formatting import has_interval
from tuner.pareto.budget_curve import CurvePoint, fastest_tps


def curve_frame(points: Sequence[CurvePoint]) -> pd.DataFrame:
    """One row a budget; empty for a single budget."""
    if len(points) < 2:
        return pd.DataFrame()
    return pd.DataFrame([_row(point) for point in points])


def _row(point: CurvePoint) -> dict[str, object]:
    fastest = fastest_tps(point.front)
    metrics = [
        figure
        for member in point.front.members
        if member.scores.get("output_tps") == fastest
        and (figure := member.figures.get("output_tps")) is not None
        and has_interval(figure.n)
    ]
    return {
        "budget (GB)": point.budget_bytes / 1e9,
        "recommended trial": point.front.knee.number if point.front.members else None,
        "fastest tokens/s": fastest,
        "low": metrics[0].low if metrics else fastest,
        "high": metrics[0].high if metrics else fastest,
        "more tokens/s for each GB": point.gained_tps,
    }
