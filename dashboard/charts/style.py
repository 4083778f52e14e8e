"""The common chart style: Okabe and Ito's colour-blind-safe colours, never colour alone.

No template is set, so that Streamlit's theme gives charts the page's light or dark background.
"""

from __future__ import annotations

from typing import Any

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8C8C8C"
SKY, PINK, AMBER = "#56B4E9", "#CC79A7", "#E69F00"
PALETTE = (BLUE, AMBER, GREEN, PINK, SKY, ORANGE, "#999933", GREY)
PATTERNS = ("", "/", "x", ".", "\\", "-", "|", "+")
SCALE = "Cividis"  # uniform for colour-blind readers and in print
MARGIN = {"l": 10, "r": 10, "t": 30, "b": 10}
LABEL = {
    "output_tps": "output tokens per second (more is better)",
    "tpot_ms": "ms per output token (less is better)",
    "quality": "quality against 16 bits (more is better)",
}


def label(name: str) -> str:
    """Returns the axis title of a metric."""
    return LABEL.get(name, name)


def layout(figure: Any, **settings: Any) -> Any:
    """Applies the common layout and these settings; returns the same figure.

    uirevision keeps the user's zoom when new data arrive.
    """
    figure.update_layout(
        margin=MARGIN, legend={"orientation": "h", "y": 1.1}, uirevision="kept", **settings
    )
    return figure


def bars(rows: Any, name: str) -> dict[str, Any]:
    """Returns Plotly's error bars of a column, from its `_low` and `_high` columns."""
    return {
        "type": "data",
        "symmetric": False,
        "array": (rows[f"{name}_high"] - rows[name]).tolist(),
        "arrayminus": (rows[name] - rows[f"{name}_low"]).tolist(),
        "thickness": 1,
        "width": 2,
    }
