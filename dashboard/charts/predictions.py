"""The chart of predictions: measured against predicted, the diagonal, and the band of errors."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from dashboard.charts.style import BLUE, GREY, axis, bars, layout
from dashboard.frames.predictions import BAND, MEASURED, PREDICTED, ErrorBand
from dashboard.units import UNITS, objective, word

SHADE = "rgba(140,140,140,0.25)"
ROOM = 1.08  # beyond the largest value


def predicted_figure(pairs: pd.DataFrame, metric: str, band: ErrorBand | None = None) -> Any:
    """Plots measurements with intervals over predictions; the dashed line is equality."""
    largest = float(max(pairs[PREDICTED].max(), pairs[f"{MEASURED}_high"].max()))
    scale, title = axis(metric, largest)
    unit = "s" if scale != 1.0 else UNITS.get(metric, "")
    end = ROOM * largest / scale
    figure = go.Figure()
    if band is not None:
        figure.add_trace(
            go.Scatter(
                x=[0, end, end, 0],
                y=[0, end * band.low, end * band.high, 0],
                fill="toself",
                fillcolor=SHADE,
                mode="lines",
                line={"width": 0},
                name=f"{BAND:.0%} of the errors seen",
                hoverinfo="skip",
            )
        )
    figure.add_trace(
        go.Scatter(
            x=[0, end],
            y=[0, end],
            mode="lines",
            name="as predicted",
            line={"color": GREY, "dash": "dash"},
            hoverinfo="skip",
        )
    )
    said = [
        f"trial {row['number']}<br>predicted {objective(row[PREDICTED], metric)}<br>measured "
        f"{objective(row[MEASURED], metric)}"
        for row in pairs.to_dict("records")
    ]
    figure.add_trace(
        go.Scatter(
            x=(pairs[PREDICTED] / scale).tolist(),
            y=(pairs[MEASURED] / scale).tolist(),
            error_y=bars(pairs, MEASURED, scale),
            mode="markers",
            name="trials",
            marker={"color": BLUE, "size": 9},
            customdata=pairs["number"].tolist(),
            hovertext=said,
            hovertemplate="%{hovertext}<extra></extra>",
        )
    )
    layout(figure, height=420, xaxis_title=f"predicted {word(metric)}, {unit}")
    figure.update_xaxes(range=[0, end])
    return figure.update_yaxes(range=[0, end], title=f"measured {title}")
