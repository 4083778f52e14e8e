"""Charts of the front: measured trials in two or three objectives, and one trial's time split."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from dashboard.charts.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALETTE,
    PATTERNS,
    PINK,
    bars,
    label,
    layout,
)
from dashboard.frames.front import FRONT, INSIDE, KNEE, NEAR, OUTSIDE

STYLE = {
    OUTSIDE: (GREY, "x", 8),
    INSIDE: (GREEN, "circle-open", 9),
    NEAR: (PINK, "square-open", 10),
    FRONT: (BLUE, "circle", 11),
    KNEE: (ORANGE, "star", 16),
}
SOLID = {"star": "diamond"}  # scatter3d has no star


def front_figure(points: pd.DataFrame, x: str, y: str) -> Any:
    """Plots trials in two objectives, with intervals; customdata holds the trial's number."""
    figure = go.Figure()
    for kind, rows in _kinds(points):
        colour, symbol, size = STYLE[kind]
        figure.add_trace(
            go.Scatter(
                x=rows[x].tolist(),
                y=rows[y].tolist(),
                error_x=bars(rows, x),
                error_y=bars(rows, y),
                mode="markers",
                name=kind,
                marker={"color": colour, "symbol": symbol, "size": size},
                customdata=rows[["number", "probability"]].to_numpy().tolist(),
                hovertext=rows["settings"].tolist(),
                hovertemplate=_hover(f"{x} %{{x:.4g}}<br>{y} %{{y:.4g}}"),
            )
        )
    return layout(
        figure, xaxis_title=label(x), yaxis_title=label(y), clickmode="event+select", height=480
    )


def front_figure_3d(points: pd.DataFrame, x: str, y: str, z: str) -> Any:
    """Plots measured trials in three objectives, with intervals."""
    figure = go.Figure()
    for kind, rows in _kinds(points):
        colour, symbol, size = STYLE[kind]
        figure.add_trace(
            go.Scatter3d(
                x=rows[x].tolist(),
                y=rows[y].tolist(),
                z=rows[z].tolist(),
                error_x=bars(rows, x),
                error_y=bars(rows, y),
                error_z=bars(rows, z),
                mode="markers",
                name=kind,
                marker={"color": colour, "symbol": SOLID.get(symbol, symbol), "size": size // 2},
                customdata=rows[["number", "probability"]].to_numpy().tolist(),
                hovertext=rows["settings"].tolist(),
                hovertemplate=_hover(f"{x} %{{x:.4g}}<br>{y} %{{y:.4g}}<br>{z} %{{z:.4g}}"),
            )
        )
    axes = {f"{axis}axis": {"title": name} for axis, name in (("x", x), ("y", y), ("z", z))}
    camera = {"eye": {"x": 1.6, "y": 1.6, "z": 1.0}, "center": {"x": 0, "y": 0, "z": -0.15}}
    return layout(figure, scene={**axes, "camera": camera}, height=600)


def split_figure(split: pd.DataFrame) -> Any:
    """One stacked bar of the time per token by part; parts differ in pattern as well as colour."""
    figure = go.Figure()
    for position, (part, spent_ms) in enumerate(split.itertuples(index=False)):
        figure.add_trace(
            go.Bar(
                x=[spent_ms],
                y=["token"],
                name=str(part),
                orientation="h",
                marker={
                    "color": PALETTE[position % len(PALETTE)],
                    "pattern": {"shape": PATTERNS[position % len(PATTERNS)]},
                },
                hovertemplate=f"{part} %{{x:.3g}} ms<extra></extra>",
            )
        )
    layout(figure, barmode="stack", height=220, xaxis_title="ms per token")
    return figure.update_layout(legend={"y": 1.6, "traceorder": "normal"})


def selected_number(selection: Any) -> int | None:
    """Returns the trial's number in Streamlit's selection of `front_figure`; None if there is none.

    customdata arrives as a list, or as a dict keyed by position.
    """
    points = selection.get("points", []) if hasattr(selection, "get") else []
    if not points:
        return None
    found = points[0].get("customdata")
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, list | tuple):
        found = found[0] if found else None
    return None if found is None else int(found)


def _kinds(points: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yields the rows of each kind that occurs, the most important kind last (drawn on top)."""
    for kind in STYLE:
        rows = points[points["kind"] == kind] if len(points) else points
        if len(rows):
            yield kind, rows


def _hover(figures: str) -> str:
    return (
        f"trial %{{customdata[0]}}<br>{figures}<br>on the front with %{{customdata[1]:.0%}}"
        "<br>%{hovertext}<extra></extra>"
    )
