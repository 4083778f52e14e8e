"""Plotly figures of a bench; pure functions of the document.

Colours are Okabe and Ito's, told apart without red and green; curves differ in marker and dash too,
parts of bars in pattern. Backgrounds are transparent, so that the page's light or dark one shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from tuner.bench.report.curves import cache_curves
from tuner.bench.report.tables import PARTS

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8C8C8C")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star", "hexagon")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_PATTERNS = ("", "/", "x", "", "\\", "-", "", ".")
_GRID = "rgba(128, 128, 128, 0.3)"


def figures_of(document: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(title, figure) of each figure that has data."""
    found = (
        ("decode_tps against cache fraction", curve_figure(document)),
        ("Time of a decoded token", split_figure(document)),
    )
    return [(title, figure) for title, figure in found if figure is not None]


def curve_figure(document: Mapping[str, Any]) -> Any:
    """Speed by cache fraction, one line per policy with its intervals; None without fractions."""
    curves = cache_curves(document)
    if not curves:
        return None
    figure = go.Figure()
    for number, curve in enumerate(curves):
        speeds = [point.speed for point in curve.points]
        figure.add_trace(
            go.Scatter(
                x=[point.percent for point in curve.points],
                y=[speed.value for speed in speeds],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [speed.high - speed.value for speed in speeds],
                    "arrayminus": [speed.value - speed.low for speed in speeds],
                },
                mode="lines+markers",
                name=curve.name,
                marker={"symbol": _SYMBOLS[number % len(_SYMBOLS)], "size": 10},
                line={
                    "color": PALETTE[number % len(PALETTE)],
                    "dash": _DASHES[number % len(_DASHES)],
                },
            )
        )
    fractions = [point.percent for curve in curves for point in curve.points]
    figure.update_xaxes(
        title="fraction of all expert bytes in slots (%)",
        range=[min(10.0, *fractions) - 2, max(75.0, *fractions) + 2],
    )
    figure.update_yaxes(title="decode tokens/s", rangemode="tozero")
    return _plain(figure, 420)


def split_figure(document: Mapping[str, Any]) -> Any:
    """Stacked bars of the time split, one per row; None if no row has one."""
    rows = [
        row
        for row in document["rows"]
        if any(f"time_ms_per_token.{part}" in row["metrics"] for part in PARTS)
    ]
    if not rows:
        return None
    figure = go.Figure()
    for number, part in enumerate(PARTS):
        spent = [row["metrics"].get(f"time_ms_per_token.{part}") for row in rows]
        figure.add_trace(
            go.Bar(
                x=[metric["value"] if metric else 0.0 for metric in spent],
                y=[row["name"] for row in rows],
                name=part,
                orientation="h",
                marker={
                    "color": PALETTE[number],
                    "pattern": {"shape": _PATTERNS[number], "fillmode": "overlay", "size": 6},
                },
                hovertemplate=f"{part} %{{x:.3g}} ms<extra>%{{y}}</extra>",
            )
        )
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title="ms per token")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return _plain(figure, 140 + 28 * len(rows))


def _plain(figure: Any, height: int) -> Any:
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        height=height,
        showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        margin={"l": 60, "r": 20, "t": 60, "b": 50},
    )
    figure.update_xaxes(gridcolor=_GRID, zerolinecolor=_GRID)
    figure.update_yaxes(gridcolor=_GRID, zerolinecolor=_GRID)
    return figure
