"""The chart of the time that a study spent."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from dashboard.charts.style import BLUE, layout


def spent_figure(spent: pd.DataFrame) -> Any:
    """Bars of seconds by stage, with their numbers."""
    seconds = spent["seconds"].tolist()
    figure = go.Figure(
        go.Bar(
            x=seconds,
            y=spent["stage"].tolist(),
            text=[f"{value:.1f} s" for value in seconds],
            orientation="h",
            marker={"color": BLUE},
            hovertemplate="%{y} %{x:.1f} s<extra></extra>",
        )
    )
    return layout(figure, height=100 + 32 * len(spent), xaxis_title="seconds")
