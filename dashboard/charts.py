"""Charts: pure functions from a frame to a Plotly figure.

Colours are Okabe and Ito's, told apart without red and green; every kind has its own marker too.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from dashboard.frames import FRONT, INSIDE, KNEE, OUTSIDE

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8C8C8C"
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8C8C8C")
STYLE = {
    OUTSIDE: (GREY, "x", 8),
    INSIDE: (GREEN, "circle-open", 9),
    FRONT: (BLUE, "circle", 11),
    KNEE: (ORANGE, "star", 16),
}
LABEL = {
    "output_tps": "output tokens per second (more is better)",
    "tpot_ms": "ms per output token (less is better)",
    "quality": "quality against 16 bits (more is better)",
}


def curve_figure(curve: pd.DataFrame) -> Any:
    """Tokens a second of the fastest recommended quality against the budget."""
    figure = go.Figure(
        go.Scatter(
            x=curve["budget (GB)"].tolist(),
            y=curve["fastest tokens/s"].tolist(),
            mode="lines+markers",
            line={"color": BLUE},
            marker={"size": 10},
        )
    )
    figure.update_layout(
        xaxis_title="device budget (GB)", yaxis_title=LABEL["output_tps"], showlegend=False
    )
    return figure


def front_figure(points: pd.DataFrame, x: str, y: str) -> Any:
    """Measured trials at two objectives, with intervals; customdata holds the trial's number."""
    figure = go.Figure()
    for kind, (colour, symbol, size) in STYLE.items():
        rows = points[points["kind"] == kind] if len(points) else points
        if not len(rows):
            continue
        figure.add_trace(
            go.Scatter(
                x=rows[x].tolist(),
                y=rows[y].tolist(),
                error_x=_bars(rows, x),
                error_y=_bars(rows, y),
                mode="markers",
                name=kind,
                marker={"color": colour, "symbol": symbol, "size": size},
                customdata=rows[["number"]].to_numpy().tolist(),
                hovertext=rows["settings"].tolist(),
                hovertemplate=(
                    f"trial %{{customdata[0]}}<br>{x} %{{x:.4g}}<br>{y} %{{y:.4g}}"
                    "<br>%{hovertext}<extra></extra>"
                ),
            )
        )
    figure.update_layout(
        template="plotly_white",
        xaxis_title=LABEL.get(x, x),
        yaxis_title=LABEL.get(y, y),
        legend={"orientation": "h", "y": 1.1},
        margin={"l": 10, "r": 10, "t": 30, "b": 10},
        clickmode="event+select",
    )
    return figure


def split_figure(split: pd.DataFrame) -> Any:
    """One stacked bar: where the time of a token goes."""
    figure = go.Figure()
    for position, (part, spent_ms) in enumerate(split.itertuples(index=False)):
        figure.add_trace(
            go.Bar(
                x=[spent_ms],
                y=["token"],
                name=str(part),
                orientation="h",
                marker={"color": PALETTE[position % len(PALETTE)]},
                hovertemplate=f"{part} %{{x:.3g}} ms<extra></extra>",
            )
        )
    figure.update_layout(
        template="plotly_white",
        barmode="stack",
        height=180,
        xaxis_title="ms per token",
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
    )
    return figure


def failures_figure(failures: pd.DataFrame) -> Any:
    """How many trials ended in each class of failure."""
    figure = go.Figure(
        go.Bar(
            x=failures["trials"].tolist(),
            y=failures["failure"].tolist(),
            orientation="h",
            marker={"color": ORANGE},
        )
    )
    figure.update_layout(
        template="plotly_white",
        height=120 + 30 * len(failures),
        xaxis_title="trials",
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
    )
    return figure


def selected_number(selection: Any) -> int | None:
    """The trial's number in Streamlit's selection of `front_figure`; None where nothing is chosen.

    customdata arrives as a list, or as a dict of its positions.
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


def _bars(rows: pd.DataFrame, name: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": (rows[f"{name}_high"] - rows[name]).tolist(),
        "arrayminus": (rows[name] - rows[f"{name}_low"]).tolist(),
        "thickness": 1,
        "width": 2,
    }
