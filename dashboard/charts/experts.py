"""Charts about experts: the heat map of activations and the rates by layer."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from dashboard.charts.style import AMBER, BLUE, SCALE, layout

RATES = (("hit rate", BLUE, ""), ("prefetch precision", AMBER, "/"))


def activations_figure(fractions: pd.DataFrame) -> Any:
    """Heat map with layers down and experts across; the colour is the fraction of a layer's
    choices."""
    layers, experts = fractions.shape
    even = 1 / experts if experts else 0.0
    figure = go.Figure(
        go.Heatmap(
            z=fractions.to_numpy().tolist(),
            colorscale=SCALE,
            zmin=0,
            colorbar={"title": {"text": "fraction of the<br>layer's choices"}, "tickformat": ".0%"},
            hovertemplate="layer %{y}, expert %{x}<br>%{z:.2%} of the choices"
            f"<br>(even would be {even:.2%})<extra></extra>",
        )
    )
    layout(figure, height=max(260, min(700, 60 + 22 * layers)))
    return figure.update_layout(
        xaxis={"title": "expert"}, yaxis={"title": "layer", "autorange": "reversed", "dtick": 1}
    )


def rates_figure(layers: pd.DataFrame) -> Any:
    """Bars of hit rate and prefetch precision by layer, told apart by pattern as well as colour."""
    figure = go.Figure()
    for name, colour, shape in RATES:
        known = layers.dropna(subset=[name])
        if not len(known):
            continue
        figure.add_trace(
            go.Bar(
                x=known["layer"].tolist(),
                y=known[name].tolist(),
                name=name,
                marker={"color": colour, "pattern": {"shape": shape}},
                hovertemplate=f"layer %{{x}}: {name} %{{y:.1%}}<extra></extra>",
            )
        )
    layout(figure, barmode="group", height=340)
    return figure.update_layout(
        xaxis={"title": "layer", "dtick": 1}, yaxis={"range": [0, 1], "tickformat": ".0%"}
    )
