"""The chart of a budget curve."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from dashboard.charts.style import BLUE, label, layout


def curve_figure(curve: pd.DataFrame) -> Any:
    """Plots tokens/s of the fastest recommended quality against the budget, with intervals."""
    speeds = curve["fastest tokens/s"]
    figure = go.Figure(
        go.Scatter(
            x=curve["budget (GB)"].tolist(),
            y=speeds.tolist(),
            error_y={
                "type": "data",
                "symmetric": False,
                "array": (curve["high"] - speeds).tolist(),
                "arrayminus": (speeds - curve["low"]).tolist(),
            },
            mode="lines+markers",
            line={"color": BLUE},
            marker={"size": 10},
        )
    )
    return layout(
        figure,
        height=420,
        xaxis_title="device budget (GB)",
        yaxis_title=label("output_tps"),
        showlegend=False,
    )
