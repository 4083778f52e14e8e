"""The chart of metric ratios between two configs, with their intervals and the line at 1."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from dashboard.charts.style import BLUE, GREY, ORANGE, layout
from dashboard.frames.compare import ALIKE, DIFFERS

LEAST = 0.1
STYLE = {DIFFERS: (ORANGE, "diamond"), ALIKE: (BLUE, "circle-open")}


def ratios_figure(figures: pd.DataFrame) -> Any:
    """One row a metric, on a log axis; an interval that excludes 1 is a difference beyond noise.

    A bound at or below 0, as few repeats of a small value may give, is drawn at LEAST of the ratio.
    """
    figure = go.Figure()
    order = figures["metric"].tolist()
    for verdict, (colour, symbol) in STYLE.items():
        rows = figures[figures["verdict"] == verdict]
        if not len(rows):
            continue
        ratio = rows["second / first"]
        figure.add_trace(
            go.Scatter(
                x=ratio.tolist(),
                y=rows["metric"].tolist(),
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": (rows["high"] - ratio).tolist(),
                    "arrayminus": (ratio - rows["low"].clip(lower=LEAST * ratio)).tolist(),
                },
                mode="markers",
                name=verdict,
                marker={"color": colour, "symbol": symbol, "size": 10},
                hovertemplate="%{y}: %{x:.3f}<extra></extra>",
            )
        )
    figure.add_vline(x=1.0, line={"color": GREY, "dash": "dash"})
    layout(figure, height=140 + 26 * len(figures))
    return figure.update_layout(
        xaxis={"title": "second / first", "type": "log"},
        yaxis={"categoryorder": "array", "categoryarray": order, "autorange": "reversed"},
    )
