"""How charts look: Okabe and Ito's colours, which all eyes tell apart, and never a colour alone.

No template is set: Streamlit's theme gives charts the page's light or dark ground.
"""

from __future__ import annotations

from typing import Any

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8C8C8C"
SKY, PINK, AMBER = "#56B4E9", "#CC79A7", "#E69F00"
PALETTE = (BLUE, AMBER, GREEN, PINK, SKY, ORANGE, "#999933", GREY)
PATTERNS = ("", "/", "x", ".", "\\", "-", "|", "+")
SCALE = "Cividis"  # even for colour-blind eyes, and in print
MARGIN = {"l": 10, "r": 10, "t": 30, "b": 10}
LABEL = {
    "output_tps": "output tokens per second (more is better)",
    "tpot_ms": "ms per output token (less is better)",
    "quality": "quality against 16 bits (more is better)",
}


def label(name: str) -> str:
    """An axis title."""
    return LABEL.get(name, name)


def layout(figure: Any, **settings: Any) -> Any:
    """The common layout, and these settings; the figure itself. A zoom survives new data."""
    figure.update_layout(
        margin=MARGIN, legend={"orientation": "h", "y": 1.1}, uirevision="kept", **settings
    )
    return figure


def bars(rows: Any, name: str) -> dict[str, Any]:
    """Plotly's error bars of a column, from its `_low` and `_high`."""
    return {
        "type": "data",
        "symmetric": False,
        "array": (rows[f"{name}_high"] - rows[name]).tolist(),
        "arrayminus": (rows[name] - rows[f"{name}_low"]).tolist(),
        "thickness": 1,
        "width": 2,
    }
