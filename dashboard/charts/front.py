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
    POINT_SCALE,
    TICKS,
    axis,
    bars,
    layout,
)
from dashboard.frames.front import FRONT, INSIDE, KNEE, NEAR, OUTSIDE
from dashboard.units import figure as text_of
from dashboard.units import objective, word
from tuner.definition.objectives import SIGNS
from tuner.pareto.front import KNEE_MIN_QUALITY

STYLE = {
    OUTSIDE: (GREY, "x", 9),
    INSIDE: (GREEN, "circle-open", 11),
    NEAR: (PINK, "square-open", 12),
    FRONT: (BLUE, "circle", 14),
    KNEE: (ORANGE, "star", 20),
}
LEGEND = {
    KNEE: "recommended",
    FRONT: "on the front",
    NEAR: "perhaps on the front",
    INSIDE: "beaten by another",
    OUTSIDE: "outside the limits",
}
MEANING = {
    KNEE: "★ recommended: the best compromise",
    FRONT: "● on the front: no other is better without being worse in something",
    NEAR: "□ perhaps on the front: more repeats would tell",
    INSIDE: "○ beaten: another is better in something and worse in nothing",
    OUTSIDE: "✕ outside the limits below",
}
SOLID = {"star": "diamond"}  # scatter3d has no star
BETTER = {(1, 1): "↗", (1, -1): "↘", (-1, 1): "↖", (-1, -1): "↙"}


def front_figure(
    points: pd.DataFrame,
    x: str,
    y: str,
    colour_by: str | None = None,
    chosen: int | None = None,
) -> Any:
    """Plots trials in two objectives, with intervals; customdata holds the trial's number.

    colour_by: a third objective; without one the kinds have their own colours. chosen: the number
    of a trial to put a ring around.
    """
    figure = go.Figure()
    (x_scale, x_title), (y_scale, y_title) = (_axis(points, name) for name in (x, y))
    if chosen is not None and len(ringed := points[points["number"] == chosen]):
        figure.add_trace(_ring(ringed[x] / x_scale, ringed[y] / y_scale))
    for kind, rows in _kinds(points):
        colour, symbol, size = STYLE[kind]
        scaled = colour_by is not None
        figure.add_trace(
            go.Scatter(
                x=(rows[x] / x_scale).tolist(),
                y=(rows[y] / y_scale).tolist(),
                error_x={**bars(rows, x, x_scale), "color": GREY},
                error_y={**bars(rows, y, y_scale), "color": GREY},
                mode="markers",
                name=LEGEND[kind],
                marker={
                    "color": rows[colour_by].tolist() if scaled else colour,
                    "symbol": symbol,
                    "size": size,
                    "line": {"width": 2 if symbol.endswith("-open") else 0},
                    **({"coloraxis": "coloraxis"} if scaled else {}),
                },
                unselected={"marker": {"opacity": 1}},
                customdata=rows[["number", "probability"]].to_numpy().tolist(),
                hovertext=_hovers(rows, [name for name in (x, y, colour_by) if name]),
                hovertemplate="%{hovertext}<extra></extra>",
            )
        )
    layout(figure, xaxis_title=x_title, yaxis_title=y_title, clickmode="event+select", height=440)
    if colour_by is not None:
        figure.update_layout(coloraxis=_colours(points, colour_by))
    figure.update_layout(showlegend=False)  # the words below the chart explain the symbols
    return figure.add_annotation(**_better(x, y))


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
                name=LEGEND[kind],
                marker={"color": colour, "symbol": SOLID.get(symbol, symbol), "size": size // 2},
                customdata=rows[["number", "probability"]].to_numpy().tolist(),
                hovertext=_hovers(rows, [x, y, z]),
                hovertemplate="%{hovertext}<extra></extra>",
            )
        )
    axes = {
        f"{letter}axis": {"title": word(name), "tickformat": TICKS}
        for letter, name in (("x", x), ("y", y), ("z", z))
    }
    camera = {"eye": {"x": 1.6, "y": 1.6, "z": 1.0}, "center": {"x": 0, "y": 0, "z": -0.15}}
    return layout(figure, scene={**axes, "camera": camera}, height=430)


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
                hovertemplate=f"{part} {text_of(spent_ms, 'ms')}<extra></extra>",
            )
        )
    layout(figure, barmode="stack", height=220, xaxis_title="ms per token")
    figure.update_yaxes(showticklabels=False)
    return figure.update_layout(legend={"traceorder": "normal"})


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


def _axis(points: pd.DataFrame, name: str) -> tuple[float, str]:
    return axis(name, float(points[name].max()) if len(points) else 0.0)


def _ring(x: pd.Series[float], y: pd.Series[float]) -> Any:
    """A ring around the chosen trial, which lets clicks through."""
    return go.Scatter(
        x=x.tolist(),
        y=y.tolist(),
        mode="markers",
        name="shown beside",
        marker={"symbol": "circle-open", "size": 30, "color": GREY, "line": {"width": 3}},
        unselected={"marker": {"opacity": 1}},
        hoverinfo="skip",
    )


def _colours(points: pd.DataFrame, name: str) -> dict[str, Any]:
    """The colour scale of a third objective. Quality spans at least what a recommended config may
    lose, so that a thousandth does not look like much."""
    values = points[name] if len(points) else pd.Series([0.0])
    low, high = float(values.min()), float(values.max())
    if name == "quality":
        low, high = min(low, KNEE_MIN_QUALITY), max(high, 1.0)
    best_first = SIGNS.get(name, 1) < 0
    bar = {
        "title": {"text": word(name), "side": "top"},
        "orientation": "h",
        "y": -0.22,
        "yanchor": "top",
        "thickness": 10,
        "len": 0.7,
        "nticks": 5,
        "tickformat": ",~f",
    }
    scale = {"colorscale": POINT_SCALE, "reversescale": best_first, "colorbar": bar}
    return {**scale, "cmin": low, "cmax": high if high > low else low + 1e-9}


def _better(x: str, y: str) -> dict[str, Any]:
    """The word in the corner towards which configs are better."""
    right, up = SIGNS.get(x, 1) > 0, SIGNS.get(y, 1) > 0
    return {
        "text": f"better {BETTER[SIGNS.get(x, 1), SIGNS.get(y, 1)]}",
        "xref": "paper",
        "yref": "paper",
        "x": 1.0 if right else 0.0,
        "y": 1.0 if up else 0.0,
        "xanchor": "right" if right else "left",
        "yanchor": "top" if up else "bottom",
        "showarrow": False,
        "font": {"color": GREY, "size": 14},
    }


def _hovers(rows: pd.DataFrame, names: list[str]) -> list[str]:
    found = []
    for row in rows.to_dict("records"):
        figures = "<br>".join(f"{word(name)} {objective(row[name], name)}" for name in names)
        chance = f"on the front with {row['probability']:.0%}"
        found.append(f"trial {row['number']}<br>{figures}<br>{chance}<br>{row['settings']}")
    return found
