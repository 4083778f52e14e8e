"""Charts of a study: the time that it spent, and the best so far."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from dashboard.charts.style import BLUE, GREY, ORANGE, axis, layout
from dashboard.units import duration, objective, word


def spent_figure(spent: pd.DataFrame) -> Any:
    """Bars of the time by stage, with their durations; the longest on top."""
    seconds = spent["seconds"].tolist()
    longest = max(seconds, default=0.0)
    scale, unit = (60.0, "minutes") if longest >= 300 else (1.0, "seconds")
    said = [duration(value) for value in seconds]
    figure = go.Figure(
        go.Bar(
            x=[value / scale for value in seconds],
            y=spent["stage"].tolist(),
            text=said,
            textposition="auto",
            orientation="h",
            marker={"color": BLUE},
            hovertext=said,
            hovertemplate="%{y} %{hovertext}<extra></extra>",
        )
    )
    layout(figure, height=100 + 32 * len(spent), xaxis_title=unit)
    return figure.update_yaxes(autorange="reversed")


def history_figure(history: pd.DataFrame, name: str) -> Any:
    """A step line of the recommended trial's figure over time, with a mark at each change."""
    largest = float(history[name].max()) if len(history) else 0.0
    scale, title = axis(name, largest)
    numbers = history["number"].tolist()
    changed = [place == 0 or numbers[place - 1] != n for place, n in enumerate(numbers)]
    figure = go.Figure(
        go.Scatter(
            x=history["minutes"].tolist(),
            y=(history[name] / scale).tolist(),
            mode="lines+markers",
            line={"shape": "hv", "color": GREY},
            marker={
                "color": [ORANGE if one else GREY for one in changed],
                "symbol": ["star" if one else "line-ns-open" for one in changed],
                "opacity": 1,
                "size": [14 if one else 8 for one in changed],
            },
            hovertext=[
                f"trial {row['number']}: {word(name)} {objective(row[name], name)}"
                for row in history.to_dict("records")
            ],
            hovertemplate="after %{x:.1f} min<br>%{hovertext}<extra></extra>",
        )
    )
    layout(figure, height=320, xaxis_title="minutes since the study began", yaxis_title=title)
    figure.update_xaxes(rangemode="tozero")
    return figure.update_yaxes(rangemode="tozero")
