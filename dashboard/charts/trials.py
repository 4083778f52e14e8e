"""Charts of trials: failures, settings against objectives, importances."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from dashboard.charts.style import ORANGE, PALETTE, PATTERNS, SCALE, TICKS, layout


def failures_figure(failures: pd.DataFrame) -> Any:
    """Bars of the number of trials by failure class."""
    figure = go.Figure(
        go.Bar(
            x=failures["trials"].tolist(),
            y=failures["failure"].tolist(),
            text=failures["trials"].tolist(),
            orientation="h",
            marker={"color": ORANGE},
        )
    )
    return layout(figure, height=100 + 32 * len(failures), xaxis_title="trials")


def parallel_figure(table: pd.DataFrame, colour_by: str) -> Any:
    """Parallel coordinates of settings and objectives, one line a trial; dragging on an axis
    filters."""
    figure = go.Figure(
        go.Parcoords(
            dimensions=[_dimension(table[name], str(name)) for name in table.columns],
            line={
                "color": table[colour_by].tolist(),
                "colorscale": SCALE,
                "showscale": True,
                "colorbar": {"title": {"text": colour_by}},
            },
            labelangle=-15,
        )
    )
    layout(figure, height=460)
    return figure.update_layout(margin={"l": 80, "r": 30, "t": 90, "b": 20})


def importances_figure(fractions: pd.DataFrame) -> Any:
    """One group of bars a setting, one bar an objective; patterns differ as well as colours."""
    figure = go.Figure()
    for place, (objective, rows) in enumerate(fractions.groupby("objective", sort=False)):
        figure.add_trace(
            go.Bar(
                x=rows["fraction"].tolist(),
                y=rows["setting"].tolist(),
                name=str(objective),
                orientation="h",
                marker={"color": PALETTE[place], "pattern": {"shape": PATTERNS[place]}},
                hovertemplate=f"%{{y}}: %{{x:.0%}} of {objective}<extra></extra>",
            )
        )
    layout(figure, barmode="group", height=140 + 24 * len(fractions))
    return figure.update_layout(
        xaxis={"title": "fraction of what decides", "tickformat": ".0%"},
        yaxis={"autorange": "reversed"},
    )


def _dimension(column: pd.Series[Any], name: str) -> dict[str, Any]:
    """Returns one axis: numbers as they are, other values as their index in sorted order."""
    values = column.tolist()
    short = name.rsplit(".", 1)[-1] if "." in name else name
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        few = sorted(set(values))
        listed = len(few) <= 8 and all(isinstance(value, int) for value in few)
        ticks: dict[str, Any] = {"tickvals": few} if listed else {"tickformat": TICKS}
        shown = [float(f"{value:.4g}") for value in values]  # the ends are written out in full
        return {"label": short, "values": shown, **ticks}
    known = sorted({str(value) for value in values})
    places = [known.index(str(value)) for value in values]
    return {
        "label": short, "values": places, "tickvals": list(range(len(known))), "ticktext": known
    }  # fmt: skip
